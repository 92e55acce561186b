"""The file of API keys: its two forms, what one entry holds, and how entries are added and removed.

A key is ``tfk_<id>_<secret>``; the file has its id and a salted SHA-256 of the whole. A slow hash is for secrets that
can be guessed: 256 random bits cannot, and a slow one would let wrong keys cost the server more than their sender. No
text of this module repeats what stands in the file: it may be a key put there by mistake.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from triton_fast.errors import AlreadyExists, Internal, InvalidArg, NotFound

SCOPES = ("infer", "admin", "metrics")
PREFIX = "tfk_"
MAX_KEYS = 4096
MAX_FILE = 4 << 20
HEADER = "# API keys of triton_fast: id, hash, scopes, then name=, expires=, rate= (requests a second). Hashes only.\n"

_ID = re.compile(r"[0-9a-f]{12}")
_NAME = re.compile(r"[A-Za-z0-9_.@:+-]{1,64}")
_HASH = re.compile(r"sha256\$([0-9a-f]{16,64})\$([0-9a-f]{64})")
_TEXT = re.compile(PREFIX + r"([0-9a-f]{12})_[A-Za-z0-9_-]{32,64}")
_FIELDS = {"id", "hash", "scopes", "name", "expires", "rate"}


@dataclass(frozen=True, slots=True)
class Key:
    """One entry. ``expires``: seconds since the epoch; ``rate``: requests a second, 0 for any number."""

    id: str
    scopes: tuple[str, ...]
    salt: bytes
    digest: bytes
    name: str = ""
    expires: float | None = None
    rate: float = 0

    def matches(self, text: bytes) -> bool:
        return hmac.compare_digest(_digest(self.salt, text), self.digest)

    def fields(self) -> dict[str, str]:
        """Return the entry as it stands in the file."""
        found = {
            "id": self.id, "hash": f"sha256${self.salt.hex()}${self.digest.hex()}", "scopes": ",".join(self.scopes),
        }  # fmt: skip
        if self.name:
            found["name"] = self.name
        if self.expires is not None:
            found["expires"] = datetime.fromtimestamp(self.expires, timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ")
        if self.rate:
            found["rate"] = f"{self.rate:g}"
        return found


def _digest(salt: bytes, text: bytes) -> bytes:
    return hashlib.sha256(salt + text).digest()


def make(scopes: tuple[str, ...], *, name: str = "", expires: float | None = None, rate: float = 0) -> tuple[str, Key]:
    """Return a new key, which nobody can find again, and its entry."""
    number = secrets.token_hex(6)
    text = f"{PREFIX}{number}_{secrets.token_urlsafe(32)}"
    salt = secrets.token_bytes(16)
    return text, Key(number, scopes, salt, _digest(salt, text.encode()), name, expires, rate)


def id_of(text: bytes) -> str:
    """Return the id in a key that a request presents, '' when it has not the form of one."""
    found = _TEXT.fullmatch(text.decode("latin-1"))
    return found[1] if found else ""


# ---- reading


def parse(data: bytes) -> dict[str, Key]:
    """Return the entries by id. Raises InvalidArg, which names the line or entry but nothing that stands there."""
    if len(data) > MAX_FILE:
        raise InvalidArg(f"the file has more than {MAX_FILE} bytes")
    if not data.strip():
        raise InvalidArg("the file is empty; one without keys begins with a comment")
    try:
        text = data.decode()
    except UnicodeDecodeError:
        raise InvalidArg("the file is not UTF-8") from None
    found: dict[str, Key] = {}
    for where, entry in _json(text) if text.lstrip().startswith("{") else _lines(text):
        try:
            key = _key(entry)
        except InvalidArg as error:
            raise InvalidArg(f"{where}: {error}") from None
        if key.id in found:
            raise InvalidArg(f"{where}: its id stands there twice")
        found[key.id] = key
        if len(found) > MAX_KEYS:
            raise InvalidArg(f"there are more than {MAX_KEYS} keys")
    return found


def _lines(text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), 1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        where = f"line {number}"
        if any(word.startswith(PREFIX) for word in words):
            raise InvalidArg(f"{where}: a key itself stands there; the file holds hashes only. Replace that key")
        if len(words) < 3:
            raise InvalidArg(f"{where}: expected an id, a hash and scopes")
        entry = dict(zip(("id", "hash", "scopes"), words, strict=False))
        for word in words[3:]:
            name, _, value = word.partition("=")
            if name in entry:
                raise InvalidArg(f"{where}: a field stands there twice")
            entry[name] = value
        yield where, entry


def _json(text: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InvalidArg(f"the file is no JSON (line {getattr(error, 'lineno', 1)})") from None
    if set(value) != {"keys"} or not isinstance(value["keys"], list):
        raise InvalidArg('expected one member "keys", a list')
    for number, entry in enumerate(value["keys"]):
        if not isinstance(entry, dict):
            raise InvalidArg(f"keys[{number}]: expected an object")
        yield f"keys[{number}]", entry


def _key(entry: Mapping[str, Any]) -> Key:
    if not set(entry) <= _FIELDS:
        raise InvalidArg("a field is unknown; there are " + ", ".join(sorted(_FIELDS)))
    number = _match(_ID, entry, "id", "12 hexadecimal digits")[0]
    salt, digest = _match(_HASH, entry, "hash", "sha256$<salt>$<hash> in hexadecimal digits").groups()
    if len(salt) % 2:
        raise InvalidArg("hash: its salt has an odd number of digits")
    name = _match(_NAME, entry, "name", "letters, digits and _.@:+-, 64 at most")[0] if "name" in entry else ""
    expires = moment(entry["expires"]) if "expires" in entry else None
    return Key(number, scopes_of(entry.get("scopes")), bytes.fromhex(salt), bytes.fromhex(digest), name, expires,
               rate_of(entry.get("rate", 0)))  # fmt: skip


def _match(pattern: re.Pattern[str], entry: Mapping[str, Any], field: str, form: str) -> re.Match[str]:
    value = entry.get(field)
    found = pattern.fullmatch(value) if isinstance(value, str) else None
    if found is None:
        raise InvalidArg(f"{field}: expected {form}")
    return found


def scopes_of(text: object) -> tuple[str, ...]:
    """Return scopes from ``infer,admin`` or a list. Raises InvalidArg."""
    names = text.split(",") if isinstance(text, str) else text
    if not isinstance(names, list) or not names or not all(name in SCOPES for name in names):
        raise InvalidArg("scopes: expected a comma list of " + ", ".join(SCOPES))
    return tuple(scope for scope in SCOPES if scope in names)


def moment(text: object) -> float:
    """Return seconds since the epoch from a date or time of ISO 8601, UTC unless it says otherwise."""
    try:
        if not isinstance(text, str):
            raise TypeError
        when = datetime.fromisoformat(text.removesuffix("Z") + "+00:00" * text.endswith("Z"))
        return (when if when.tzinfo else when.replace(tzinfo=timezone.utc)).timestamp()
    except (TypeError, ValueError, OverflowError):
        raise InvalidArg("expires: expected a time such as 2027-01-31T00:00:00Z") from None


def rate_of(value: object) -> float:
    """Return requests a second, 0 for any number. Raises InvalidArg."""
    try:
        rate = float(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else -1.0
    except (ValueError, OverflowError):
        rate = -1.0
    if not 0 <= rate <= 1e9 or 0 < rate < 1e-4:
        raise InvalidArg("rate: expected requests a second, 0.0001 to 1e9, or 0 for any number")
    return rate


# ---- changing


def check(key: Key) -> None:
    """Raise InvalidArg for an entry that could not be read again."""
    _key(key.fields())


def load(path: Path) -> dict[str, Key]:
    """Return the entries of a file. Raises InvalidArg or Internal."""
    try:
        with path.open("rb") as file:
            return parse(file.read(MAX_FILE + 1))
    except (OSError, ValueError) as error:
        if isinstance(error, InvalidArg):
            raise
        raise Internal(f"cannot be read: {getattr(error, 'strerror', None) or error}") from None


def add(path: Path, key: Key) -> None:
    """Write an entry to a file, which is made if it is not there. Raises InvalidArg, AlreadyExists or Internal."""

    def change(keys: dict[str, Key]) -> None:
        if any(other.name == key.name for other in keys.values() if key.name):
            raise AlreadyExists(f"there is a key of the name '{key.name}'")
        if len(keys) >= MAX_KEYS:
            raise InvalidArg(f"there are {MAX_KEYS} keys, no more are taken")
        keys[key.id] = key

    _change(path, change)


def remove(path: Path, which: str) -> Key:
    """Take the entry of this id or name out of a file and return it. Raises NotFound, InvalidArg or Internal."""
    taken: list[Key] = []

    def change(keys: dict[str, Key]) -> None:
        taken.extend(keys.pop(key.id) for key in list(keys.values()) if which and which in (key.id, key.name))
        if not taken:
            raise NotFound("there is no key of this id or name")

    _change(path, change)
    return taken[0]


def _change(path: Path, change: Callable[[dict[str, Key]], None]) -> None:
    target = Path(os.path.realpath(path))
    try:
        folder = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise Internal(f"its directory cannot be opened: {error.strerror}") from None
    try:
        # Against others of this command; the server reads whichever file is whole.
        fcntl.flock(folder, fcntl.LOCK_EX)
        old = target.read_text() if target.exists() else HEADER
        before = load(target) if target.exists() else {}
        keys = dict(before)
        change(keys)
        _replace(target, _render(old, before, keys))
    except OSError as error:
        raise Internal(f"cannot be written: {error.strerror}") from None
    finally:
        os.close(folder)


def _render(old: str, before: Mapping[str, Key], keys: Mapping[str, Key]) -> str:
    """Return the file with the entries of ``keys``; comments and the form stay."""
    if old.lstrip().startswith("{"):
        return json.dumps({"keys": [key.fields() for key in keys.values()]}, indent=2) + "\n"
    gone = before.keys() - keys.keys()
    lines = [line for line in old.split("\n") if not (line.split() and line.split()[0] in gone)]
    while lines and not lines[-1].strip():
        lines.pop()
    for number in keys.keys() - before.keys():
        fields = keys[number].fields()
        first = [fields.pop("id"), fields.pop("hash"), fields.pop("scopes")]
        lines.append(" ".join([*first, *(f"{name}={value}" for name, value in fields.items())]))
    return "\n".join(lines or [HEADER.rstrip()]) + "\n"


def _replace(path: Path, text: str) -> None:
    fd, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(fd, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(fd)
            with contextlib.suppress(OSError):
                was = path.stat()
                os.fchmod(fd, was.st_mode & 0o777)
                os.fchown(fd, was.st_uid, was.st_gid)
        os.replace(name, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(name)
        raise
