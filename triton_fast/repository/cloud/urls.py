"""``s3://``, ``gs://`` and ``as://`` paths: what they name, and how they may be shown.

Source: spec/capi.md section 8. Knows no credentials and no network; importing it imports no cloud library.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from urllib.parse import urlsplit

from triton_fast.errors import InvalidArg

PREFIXES = {"s3": "s3://", "gs": "gs://", "as": "as://"}
_AZURE_HOST = ".blob.core.windows.net"
_NAME = re.compile(r"[0-9A-Za-z$][0-9A-Za-z._\-]{0,221}")
# host, host:port or [v6]:port, as it may stand before a bucket.
_HOST = r"(?:[0-9A-Za-z.\-]+|\[[0-9A-Fa-f:.]+\])"
_WITH_PORT = re.compile(rf"({_HOST}:\d{{1,5}})(?:/(.*))?", re.DOTALL)
_WITH_SCHEME = re.compile(rf"(https?://)({_HOST}(?::\d{{1,5}})?)(?:/(.*))?", re.DOTALL)
# A query may be a signature, what stands before an '@' a password.
_SECRET = re.compile(r"\?.*$|(?<=//)[^/@]*@", re.DOTALL)
_MAX_PATH = 1024


@dataclass(frozen=True)
class CloudUrl:
    """A place in a store. ``path`` is without slashes at its ends; ``endpoint`` is empty for the provider's own."""

    kind: str
    bucket: str
    path: str
    endpoint: str = ""
    # Azure: the storage account that the host names.
    account: str = ""

    @property
    def location(self) -> str:
        """The path as users see it, always spelled alike and without secrets."""
        where = self.endpoint.removeprefix("https://") if self.kind == "as" else self.endpoint
        return "/".join(part for part in (PREFIXES[self.kind] + where, self.bucket, self.path) if part).replace(
            ":///", "://", 1
        )

    @property
    def prefix(self) -> str:
        """What the keys of the repository begin with: empty, or with a slash at its end."""
        return f"{self.path}/" if self.path else ""


def kind_of(path: str) -> str:
    """Return s3, gs or as, or an empty string for a local path."""
    return next((kind for kind, prefix in PREFIXES.items() if path.startswith(prefix)), "")


def shown(path: str) -> str:
    """Return a repository path as it may stand in a log: a cloud path without what could be a secret."""
    return _SECRET.sub("", path) if kind_of(path) else path


def location_of(path: str) -> str:
    """Return the location of the repository that a path names, local or not. Raises InvalidArg."""
    return parse(path).location if kind_of(path) else os.path.abspath(path)


def parse(path: str) -> CloudUrl:
    """Return what a cloud path names.

    Raises
    ------
    InvalidArg
        It names no bucket, leads out of one, or holds a password.
    """
    kind = kind_of(path)
    rest = path[len(PREFIXES[kind]) :]
    if "@" in rest.partition("://")[2].partition("/")[0] or "@" in rest.partition("/")[0]:
        raise _bad(
            path, "credentials do not belong into a path: they would be seen by everybody who may list processes"
        )
    if kind == "as":
        # Triton takes a query (a snapshot) and ignores it too.
        rest = rest.partition("?")[0]
    endpoint, rest = _endpoint(kind, rest)
    if endpoint and not is_address(endpoint):
        raise _bad(path, f"'{endpoint}' is no address of a host")
    parts = [part for part in rest.split("/") if part]
    if kind == "as":
        return _azure(path, endpoint, parts)
    if not parts:
        raise _bad(path, f"it names no bucket: {PREFIXES[kind]}<bucket>/<path>")
    return CloudUrl(kind, _name(path, parts[0]), _below(path, parts[1:]), endpoint)


def is_address(endpoint: str) -> bool:
    """Tell whether ``http://host[:port]`` names a host and a port that there can be."""
    try:
        found = urlsplit(endpoint)
        return bool(found.hostname) and found.port != 0
    except ValueError:
        return False


def _endpoint(kind: str, rest: str) -> tuple[str, str]:
    """Split ``http://host:port/...`` or, for S3, ``host:port/...`` into the endpoint and what follows."""
    if found := _WITH_SCHEME.fullmatch(rest):
        return found[1] + found[2], found[3] or ""
    if kind == "s3" and (found := _WITH_PORT.fullmatch(rest)):
        return f"http://{found[1]}", found[2] or ""
    return "", rest


def _azure(path: str, endpoint: str, parts: list[str]) -> CloudUrl:
    form = "as://<account>.blob.core.windows.net/<container>/<path>"
    if endpoint:
        # An emulator: http://host:port/account/container/path.
        if len(parts) < 2:
            raise _bad(path, f"it names no container: {form}, or as://http://host:port/<account>/<container>/<path>")
        account = _name(path, parts[0])
        return CloudUrl("as", _name(path, parts[1]), _below(path, parts[2:]), f"{endpoint}/{account}", account)
    if len(parts) < 2:
        raise _bad(path, f"it names no container: {form}")
    host = parts[0] if "." in parts[0] else parts[0] + _AZURE_HOST
    if not re.fullmatch(_HOST, host):
        raise _bad(path, f"'{parts[0]}' is no host: {form}")
    return CloudUrl("as", _name(path, parts[1]), _below(path, parts[2:]), f"https://{host}", host.partition(".")[0])


def _name(path: str, name: str) -> str:
    if not _NAME.fullmatch(name) or ".." in name:
        raise _bad(path, f"'{name[:64]}' can not be the name of a bucket or container")
    return name


def _below(path: str, parts: list[str]) -> str:
    below = "/".join(parts)
    if any(part in (".", "..") for part in parts):
        raise _bad(path, "'.' and '..' mean nothing in a store")
    if len(below) > _MAX_PATH or not below.isprintable() or "\\" in below:
        raise _bad(path, "the path is too long or has characters that no model repository needs")
    return below


def _bad(path: str, why: str) -> InvalidArg:
    text = shown(path).encode("utf-8", "backslashreplace").decode()[:256]
    return InvalidArg(f"model repository '{text}' can not be used: {why}")
