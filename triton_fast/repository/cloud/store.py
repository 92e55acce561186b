"""One store, seen as listings and readable objects; the only module that imports the cloud library (obstore).

Everything blocks and lets go of the GIL while it waits. What fails raises ``StoreError``. Knows no models.
"""

from __future__ import annotations

import os
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Protocol, TypeVar

from triton_fast.errors import InvalidArg, ServerError, Unsupported
from triton_fast.observability import log
from triton_fast.repository.cloud import faults
from triton_fast.repository.cloud.credentials import (
    AzureCredential,
    Credential,
    Credentials,
    GcsCredential,
    S3Credential,
    with_profile,
)  # fmt: skip
from triton_fast.repository.cloud.faults import Kind, StoreError
from triton_fast.repository.cloud.urls import CloudUrl, is_address

MISSING = (
    "'{location}' needs the package obstore, which is not installed: run pip install 'triton_fast[cloud]' "
    "(or pip install obstore)"
)
_CHUNK = 1 << 20
_ATTEMPTS = 4
_FIRST_WAIT_S = 0.2
_LONGEST_WAIT_S = 5.0
# Object stores' client libraries know these two for emulators.
_GCS_EMULATORS = ("CLOUD_STORAGE_EMULATOR_ENDPOINT", "STORAGE_EMULATOR_HOST")
_AWS_CHAIN = (
    "AWS_WEB_IDENTITY_TOKEN_FILE",
    "AWS_CONTAINER_CREDENTIALS_RELATIVE_URI",
    "AWS_CONTAINER_CREDENTIALS_FULL_URI",
)
_GCLOUD = ".config/gcloud/application_default_credentials.json"
T = TypeVar("T")


@dataclass(frozen=True)
class Object:
    """One object. ``etag`` is without quotes, and empty where the store gives none that tells two contents apart."""

    key: str
    size: int
    etag: str
    modified_ns: int


class Store(Protocol):
    """What a source needs of a store; keys are whole, prefixes end with a slash or are empty."""

    @property
    def url(self) -> CloudUrl: ...

    def children(self, prefix: str) -> tuple[list[str], list[Object]]:
        """Return the names right below a prefix that have more below them, and the objects; all of them or raises."""

    def walk(self, prefix: str) -> list[Object]:
        """Return all objects below a prefix, or raise."""

    def read(self, item: Object, offset: int) -> Iterator[bytes]:
        """Yield the object's bytes from ``offset``. Raises StoreError of kind CHANGED when it is no longer that one."""


class ObStore:
    """A store through obstore.

    Parameters
    ----------
    wait
        Called with the seconds to wait before a request is tried again.
    retries
        How often the library repeats one request by itself.
    """

    def __init__(
        self,
        url: CloudUrl,
        credentials: Credentials,
        environ: Mapping[str, str] | None = None,
        *,
        wait: Callable[[float], object] | None = None,
        retries: int = 3,
    ) -> None:
        """Raises Unsupported without the library, InvalidArg when there are no usable credentials."""
        try:
            import obstore
        except ImportError:
            raise Unsupported(MISSING.format(location=url.location)) from None
        self._library: Any = obstore
        self.url = url
        self._env = os.environ if environ is None else environ
        self._credentials = credentials
        self._wait = threading.Event().wait if wait is None else wait
        self._retries = retries
        self._lock = threading.Lock()
        self._credential = credentials.find(url.location)
        self._is_anonymous = False
        self._client = self._connect(self._credential)

    def children(self, prefix: str) -> tuple[list[str], list[Object]]:
        found = self._ask(lambda client: self._library.list_with_delimiter(client, prefix.rstrip("/") or None))
        names = [_below(key, prefix) for key in found["common_prefixes"]]
        return [name for name in names if name], [_object(row) for row in found["objects"]]

    def walk(self, prefix: str) -> list[Object]:
        # All pages or an exception: a listing that breaks off is none.
        found = self._ask(lambda client: self._library.list(client, prefix.rstrip("/") or None).collect())
        return [_object(row) for row in found]

    def read(self, item: Object, offset: int) -> Iterator[bytes]:
        options: dict[str, Any] = {}
        if item.etag:
            options["if_match"] = f'"{item.etag}"'
        if offset:
            options["range"] = {"offset": offset}
        try:
            reply = self._library.get(self._client, item.key, options=options)
            # Not every store keeps to If-Match.
            is_other = reply.meta["size"] != item.size or (item.etag and _etag(reply.meta) != item.etag)
            if is_other or reply.range[0] != offset:
                raise self._changed(item)
            for chunk in reply.stream(min_chunk_size=_CHUNK):
                yield bytes(chunk)
        except StoreError:
            raise
        except BaseException as error:
            if not faults.is_told(error):
                raise
            found = self._fault(error)
            raise self._changed(item) if found.kind is Kind.CHANGED else found from None

    # ---- asking

    def _ask(self, request: Callable[[Any], T]) -> T:
        """Make a request, again after a while if that may help, and with what the credential file says now."""
        delay = _FIRST_WAIT_S
        is_renewed = False
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                return request(self._client)
            except BaseException as error:
                if not faults.is_told(error):
                    raise
                found = self._fault(error)
            if found.kind is Kind.METADATA and not self._is_anonymous:
                log.info(f"'{self.url.location}': no credentials were found, access is anonymous")
                self._is_anonymous = True
                self._client = self._connect(self._credential)
            elif found.kind in faults.REFUSED and not is_renewed and self._renew():
                is_renewed = True
            elif found.kind in faults.PASSING and attempt < _ATTEMPTS:
                self._wait(delay * random.uniform(0.5, 1.0))
                delay = min(delay * 2, _LONGEST_WAIT_S)
            else:
                break
        raise found

    def _renew(self) -> bool:
        """Look for other credentials than those in use; tell whether there are any."""
        with self._lock:
            try:
                credential = self._credentials.find(self.url.location, fresh=True)
            except InvalidArg as error:
                # Perhaps somebody is writing the file just now.
                log.warning(f"'{self.url.location}': {error}")
                return False
            if credential == self._credential:
                return False
            self._credential = credential
            self._is_anonymous = False
            self._client = self._connect(credential)
            return True

    def _fault(self, error: BaseException) -> StoreError:
        return faults.fault(error, self.url.kind, self.url.location, is_anonymous=self._is_anonymous)

    def _changed(self, item: Object) -> StoreError:
        return StoreError(f"'{self.url.location}': object '{item.key}' changed while it was downloaded", Kind.CHANGED)

    # ---- connecting

    def _connect(self, credential: Credential) -> Any:
        from obstore.store import AzureStore, GCSStore, S3Store

        common: dict[str, Any] = {
            # A body may take long; only a connection that stands still is given up.
            "client_options": {
                "allow_http": self.url.endpoint.startswith("http://") or bool(self._emulator()),
                "connect_timeout": "5s", "read_timeout": "30s", "timeout": "1day",
            },
            "retry_config": {
                "max_retries": self._retries, "retry_timeout": timedelta(seconds=30),
                "backoff": {"init_backoff": timedelta(milliseconds=100), "max_backoff": timedelta(seconds=3)},
            },
        }  # fmt: skip
        kinds = {"s3": (S3Store, self._s3), "gs": (GCSStore, self._gcs), "as": (AzureStore, self._azure)}
        store: Any
        store, settings = kinds[self.url.kind]
        try:
            return store(self.url.bucket, config=settings(credential, common), **common)
        except BaseException as error:
            if isinstance(error, ServerError) or not faults.is_told(error):
                raise
            raise self._fault(error) from None

    def _s3(self, given: Any, common: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(given, S3Credential)
        found = with_profile(given, self._env)
        config: dict[str, Any] = {"region": found.region or "us-east-1", "virtual_hosted_style_request": False}
        if self.url.endpoint:
            config["endpoint"] = self.url.endpoint
        if found.key_id and found.secret_key:
            # A function, so that nothing of the environment's keys is mixed in.
            common["credential_provider"] = lambda: {
                "access_key_id": found.key_id, "secret_access_key": found.secret_key,
                "token": found.session_token or None, "expires_at": None,
            }  # fmt: skip
            return config
        if not any(self._env.get(name) for name in _AWS_CHAIN):
            # Only a machine at Amazon has a role, and only Amazon's own stores take it.
            self._is_anonymous |= bool(self.url.endpoint) or self._env.get("AWS_EC2_METADATA_DISABLED") == "true"
        config["skip_signature"] = self._is_anonymous
        return config

    def _gcs(self, given: Any, common: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(given, GcsCredential)
        config: dict[str, Any] = {}
        endpoint = self.url.endpoint or self._emulator()
        if endpoint:
            config["base_url"] = endpoint
        if given.path:
            config["application_credentials"] = given.path
            return config
        home = Path(self._env.get("HOME", "~")).expanduser()
        self._is_anonymous |= bool(endpoint) and not (home / _GCLOUD).exists()
        config["skip_signature"] = self._is_anonymous
        return config

    def _azure(self, given: Any, common: dict[str, Any]) -> dict[str, Any]:
        assert isinstance(given, AzureCredential)
        account = given.account or self.url.account
        endpoint = self.url.endpoint
        if given.account and endpoint == f"https://{self.url.account}.blob.core.windows.net":
            endpoint = f"https://{given.account}.blob.core.windows.net"
        config: dict[str, Any] = {"account_name": account, "endpoint": endpoint}
        if given.auth_type == "managed_identity":
            config["credential_type"] = "managed_identity"
            if given.client_id:
                config["client_id"] = given.client_id
        elif given.auth_type != "default":
            self._is_anonymous = not given.key
            if given.key:
                config |= {"account_key": given.key, "credential_type": "access_key"}
            else:
                config["skip_signature"] = True
        return config

    def _emulator(self) -> str:
        if self.url.kind != "gs":
            return ""
        found = next((self._env[name] for name in _GCS_EMULATORS if self._env.get(name)), "")
        found = found if not found or "://" in found else f"http://{found}"
        if found and not is_address(found):
            raise InvalidArg(f"{' or '.join(_GCS_EMULATORS)} names no address of a host")
        return found


def _object(row: Mapping[str, Any]) -> Object:
    modified: datetime = row["last_modified"]
    return Object(row["path"], row["size"], _etag(row), int(modified.timestamp()) * 1_000_000_000)


def _etag(row: Mapping[str, Any]) -> str:
    etag = row.get("e_tag") or ""
    # A weak one only says that two contents mean the same.
    return "" if etag.startswith("W/") else etag.strip('"')


def _below(key: str, prefix: str) -> str:
    return key.removeprefix(prefix).strip("/")
