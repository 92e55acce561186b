"""What went wrong at a store, in words that say what to do; never the store's own text, which may hold what was signed.

Knows the cloud library's exceptions by their text alone.
"""

from __future__ import annotations

import re
from enum import Enum

from triton_fast.errors import Internal

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>\s*([A-Za-z][A-Za-z0-9]{0,63})\s*</Code>")
_REGION = re.compile(r"<Region>\s*([a-z0-9\-]{1,32})\s*</Region>|expecting '([a-z0-9\-]{1,32})'")
_ENDPOINT = re.compile(r"performing (?:GET|PUT|HEAD|POST) https?://([^/?#\s@]{1,255})[/?\s]")
_METADATA = re.compile(
    r"169\.254\.\d+\.\d+|latest/api/token|computeMetadata|metadata\.google\.internal|security-credentials"
)
_NETWORK = ("error sending request", "dns error", "tcp connect error", "operation timed out", "timed out",
            "connection closed", "connection reset", "error decoding response body", "Timeout", "kind: Connect",
            "request or response body error")  # fmt: skip
_NO_BUCKET = frozenset({"NoSuchBucket", "ContainerNotFound", "InvalidBucketName", "InvalidResourceName"})
_EXPIRED = frozenset({"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "RequestExpired"})
_WRONG_KEY = frozenset({
    "InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidToken", "AuthenticationFailed", "InvalidAuthenticationInfo",
})  # fmt: skip
_WRONG_REGION = frozenset(
    {"PermanentRedirect", "TemporaryRedirect", "AuthorizationHeaderMalformed", "IllegalLocationConstraintException"}
)
_PANIC = "PanicException"
_RIGHTS = {
    "s3": "the credentials must allow s3:ListBucket on the bucket and s3:GetObject on its objects",
    "gs": "the account must have the role Storage Object Viewer on the bucket",
    "as": "the identity must have the role Storage Blob Data Reader on the container",
}
_GIVE = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to the JSON file of a service account",
    "as": "set AZURE_STORAGE_ACCOUNT and AZURE_STORAGE_KEY, or AZURE_STORAGE_AUTH_TYPE",
}


class Kind(Enum):
    ABSENT = "absent"
    DENIED = "denied"
    EXPIRED = "expired"
    REGION = "region"
    NETWORK = "network"
    METADATA = "metadata"
    BUSY = "busy"
    KEY = "key"
    CHANGED = "changed"
    OTHER = "other"


# Another set of credentials may help.
REFUSED = frozenset({Kind.DENIED, Kind.EXPIRED})
# The same request may succeed a little later.
PASSING = frozenset({Kind.NETWORK, Kind.BUSY})


class StoreError(Internal):
    """A store that does not do what it should."""

    def __init__(self, message: str, kind: Kind = Kind.OTHER) -> None:
        super().__init__(message)
        self.kind = kind


def is_told(error: BaseException) -> bool:
    """Tell whether an exception is the cloud library's to report: its panics are no ``Exception``."""
    return isinstance(error, Exception) or type(error).__name__ == _PANIC


def fault(error: BaseException, provider: str, location: str, *, is_anonymous: bool) -> StoreError:
    """Return what an exception of the cloud library means for the store of ``provider`` (s3, gs, as)."""
    text = str(error)
    name = type(error).__name__
    found = _STATUS.search(text)
    status = int(found[1]) if found else 0
    code = found[1] if (found := _CODE.search(text)) else ""
    said = ", ".join(part for part in (code, str(status or "")) if part)
    said = f" ({said})" if said else ""

    def make(kind: Kind, what: str) -> StoreError:
        return StoreError(f"model repository '{location}': {what}", kind)

    if name == _PANIC:
        # Its text is of the library's inside, and may quote what it was given.
        return make(Kind.OTHER, "no request can be made of what was given: look for characters that do not belong in "
                                f"the address, the region and the credentials; {_GIVE[provider]}")  # fmt: skip
    if name == "InvalidPathError" or "Could not parse path" in text:
        return make(
            Kind.KEY, f"it has an object whose key can not be a path: {_key(text)}; remove or rename that object"
        )
    if name == "PreconditionError" or status == 412:
        return make(Kind.CHANGED, "an object changed while it was downloaded")
    if _METADATA.search(text):
        return make(Kind.METADATA, f"there are no credentials, and this machine has no role: {_GIVE[provider]}")
    if code in _NO_BUCKET:
        return make(Kind.ABSENT, f"the bucket or container does not exist{said}: check its name and the account")
    if code in _EXPIRED or (code in _WRONG_KEY and "xpired" in text):
        return make(Kind.EXPIRED, f"the credentials have expired{said}: fetch new ones; {_GIVE[provider]}")
    if code in _WRONG_REGION or status in (301, 307):
        where = next((part for part in _groups(_REGION, text) if part), "")
        fix = f"set AWS_DEFAULT_REGION={where}" if where else "set AWS_DEFAULT_REGION to the bucket's region"
        return make(Kind.REGION, f"the bucket is in another region{said}: {fix}")
    if name in ("PermissionDeniedError", "UnauthenticatedError") or status in (401, 403) or code in _WRONG_KEY:
        why = f"no credentials were given: {_GIVE[provider]}" if is_anonymous else _RIGHTS[provider]
        if code in _WRONG_KEY:
            why = f"the key or token is wrong: {_GIVE[provider]}"
        return make(Kind.DENIED, f"access denied{said}: {why}")
    if status == 404 or isinstance(error, FileNotFoundError):
        return make(Kind.CHANGED if isinstance(error, FileNotFoundError) else Kind.ABSENT,
                    f"there is no such object or bucket{said}")  # fmt: skip
    if status in (408, 429) or status >= 500:
        return make(Kind.BUSY, f"the store could not answer{said}; tried several times")
    if any(mark in text for mark in _NETWORK):
        host = found[1] if (found := _ENDPOINT.search(text)) else "the store"
        why = (
            "its certificate is not trusted" if "ertificate" in text else "check the address, the network and the proxy"
        )
        return make(Kind.NETWORK, f"{host} can not be reached or broke off: {why}")
    if "credential" in text.lower() or "Access Key" in text or "service account" in text or "private key" in text:
        return make(Kind.DENIED, f"the credentials can not be used: {_GIVE[provider]}")
    return make(Kind.OTHER, f"the store gave no proper answer{said}")


def _groups(pattern: re.Pattern[str], text: str) -> tuple[str | None, ...]:
    found = pattern.search(text)
    return found.groups() if found else ()


def _key(text: str) -> str:
    found = re.search(r'Path "([^"\n]{0,200})', text)
    return repr(found[1]) if found else "its name could not be shown"
