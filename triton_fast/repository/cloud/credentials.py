"""Who the server is to a store: Triton's environment variables, its credential file, profiles of the AWS tools.

Source: spec/capi.md section 8, spec/security.md SEC-17. Secrets stay out of ``repr`` and of every message. Knows no
cloud library.
"""

from __future__ import annotations

import configparser
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triton_fast.config.errors import did_you_mean
from triton_fast.errors import InvalidArg
from triton_fast.observability import log
from triton_fast.repository.cloud.urls import kind_of, shown

FILE = "TRITON_CLOUD_CREDENTIAL_PATH"
_MAX_FILE = 1 << 20
_S3_FIELDS = ("key_id", "secret_key", "session_token", "region", "profile")
_AZURE_FIELDS = ("account_str", "account_key", "auth_type", "client_id")


@dataclass(frozen=True)
class S3Credential:
    """Keys first, then the profile."""

    key_id: str = field(default="", repr=False)
    secret_key: str = field(default="", repr=False)
    session_token: str = field(default="", repr=False)
    region: str = ""
    profile: str = ""


@dataclass(frozen=True)
class GcsCredential:
    """``path``: a service account's or a user's JSON file; empty for the machine's own account, or none."""

    path: str = ""


@dataclass(frozen=True)
class AzureCredential:
    """``auth_type``: managed_identity, default, or anything else for the key; without a key anonymous."""

    account: str = ""
    key: str = field(default="", repr=False)
    auth_type: str = ""
    client_id: str = ""


Credential = S3Credential | GcsCredential | AzureCredential


class Credentials:
    """All that the process was given, by the prefix of the paths it is for."""

    def __init__(self, environ: Mapping[str, str] | None = None) -> None:
        self._env = os.environ if environ is None else environ
        self._lock = threading.Lock()
        self._rows: list[tuple[str, Credential]] | None = None

    def find(self, path: str, *, fresh: bool = False) -> Credential:
        """Return the credential for a path: of the longest prefix in the file, or the environment's without a file.

        ``fresh`` reads the file again, as a path does that nothing fits.

        Raises
        ------
        InvalidArg
            Nothing fits, or the file can not be read.
        """
        if not self._env.get(FILE):
            return self._from_environment(kind_of(path))
        with self._lock:
            for again in (fresh, True):
                if self._rows is None or again:
                    self._rows = self._read_file()
                for prefix, credential in self._rows:
                    if _fits(credential, path) and any(form.startswith(prefix) for form in _forms(path)):
                        return credential
        raise InvalidArg(f"Cannot match credential for path  {shown(path)}")

    def _from_environment(self, kind: str) -> Credential:
        def given(name: str) -> str:
            return _clean(self._env.get(name, ""), name)

        if kind == "s3":
            return S3Credential(
                given("AWS_ACCESS_KEY_ID"), given("AWS_SECRET_ACCESS_KEY"), given("AWS_SESSION_TOKEN"),
                given("AWS_DEFAULT_REGION") or given("AWS_REGION"), given("AWS_PROFILE"),
            )  # fmt: skip
        if kind == "gs":
            return GcsCredential(self._env.get("GOOGLE_APPLICATION_CREDENTIALS", ""))
        return AzureCredential(
            given("AZURE_STORAGE_ACCOUNT"), given("AZURE_STORAGE_KEY"), given("AZURE_STORAGE_AUTH_TYPE"),
            given("AZURE_STORAGE_CLIENT_ID"),
        )  # fmt: skip

    def _read_file(self) -> list[tuple[str, Credential]]:
        text = _text(Path(self._env[FILE]), f"the file that {FILE} names")
        try:
            document = json.loads(text)
        except json.JSONDecodeError as error:
            raise InvalidArg(
                f"the file that {FILE} names is not JSON: {error.msg} at line {error.lineno} column {error.colno}"
            ) from None
        except RecursionError:
            raise InvalidArg(f"the file that {FILE} names is nested too deeply") from None
        rows: list[tuple[str, Credential]] = []
        for kind in ("gs", "s3", "as"):
            section = document.get(kind, {}) if isinstance(document, dict) else None
            if not isinstance(section, dict):
                raise InvalidArg(f'the file that {FILE} names must be {{"gs": {{...}}, "s3": {{...}}, "as": {{...}}}}')
            rows += [(prefix, _row(kind, prefix, value)) for prefix, value in section.items()]
        # Longest first; in Triton too an empty prefix fits everything of its kind.
        return sorted(rows, key=lambda row: -len(row[0]))


def _forms(path: str) -> tuple[str, ...]:
    """Return how a prefix may spell a path: with a slash at its end, and without the scheme that is the default."""
    return f"{path}/", f"{path}/".replace("s3://http://", "s3://", 1)


def _fits(credential: Credential, path: str) -> bool:
    kinds = {"s3": S3Credential, "gs": GcsCredential, "as": AzureCredential}
    return isinstance(credential, kinds[kind_of(path)])


def _row(kind: str, prefix: str, value: Any) -> Credential:
    if kind == "gs" and isinstance(value, str):
        return GcsCredential(value)
    if kind == "gs" or not isinstance(value, dict):
        what = "the path of a JSON file" if kind == "gs" else "an object"
        raise InvalidArg(f"the file that {FILE} names: the value of '{shown(prefix)}' must be {what}")
    fields = _S3_FIELDS if kind == "s3" else _AZURE_FIELDS
    for name in value.keys() - set(fields):
        # What is not known may be a secret that stands in the wrong place.
        hint = did_you_mean(name, fields) or f"one of {', '.join(fields)}"
        log.warning(f"the file that {FILE} names: a field of '{shown(prefix)}' means nothing; {hint}")
    texts = []
    for name in fields:
        text = value.get(name, "")
        if not isinstance(text, str):
            raise InvalidArg(f"the file that {FILE} names: '{name}' of '{shown(prefix)}' must be a string")
        texts.append(_clean(text, f"the file that {FILE} names: '{name}' of '{shown(prefix)}'"))
    return S3Credential(*texts) if kind == "s3" else AzureCredential(*texts)


def _clean(text: str, what: str) -> str:
    """Return a text without the line feed that files and secrets of clusters end with. Raises InvalidArg."""
    text = text.strip()
    if not text.isprintable():
        raise InvalidArg(f"{what} holds a control character")
    return text


def with_profile(credential: S3Credential, environ: Mapping[str, str]) -> S3Credential:
    """Return the credential with the keys and the region of its profile, as the AWS tools keep them.

    Without keys and without a profile the profile ``default`` is taken, where there is one.

    Raises
    ------
    InvalidArg
        The profile does not exist, or its keys do not lie in a file.
    """
    if credential.key_id and credential.secret_key:
        return credential
    if credential.key_id or credential.secret_key:
        log.warning("a key id for S3 without its secret key, or the other way round, is not used")
    name = credential.profile or "default"
    home = Path(environ.get("HOME", "~")).expanduser() / ".aws"
    keys = _profile(Path(environ.get("AWS_SHARED_CREDENTIALS_FILE") or home / "credentials"), name)
    settings = _profile(Path(environ.get("AWS_CONFIG_FILE") or home / "config"), name)
    if not keys and not settings:
        if credential.profile:
            raise InvalidArg(
                f"the AWS profile '{name}' does not exist: it is looked for in ~/.aws/credentials and config"
            )
        return credential
    found = {**settings, **keys}
    if credential.profile and not (found.get("aws_access_key_id") and found.get("aws_secret_access_key")):
        raise InvalidArg(
            f"the AWS profile '{name}' has no keys in a file; give them in the environment: "
            f'eval "$(aws configure export-credentials --profile {name} --format env)"'
        )
    return S3Credential(
        found.get("aws_access_key_id", ""), found.get("aws_secret_access_key", ""), found.get("aws_session_token", ""),
        credential.region or found.get("region", ""), credential.profile,
    )  # fmt: skip


def _profile(path: Path, name: str) -> dict[str, str]:
    parser = configparser.ConfigParser(interpolation=None, strict=False, default_section="\0")
    try:
        parser.read_string(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeError):
        return {}
    except configparser.Error:
        # Its text may quote the line, and so a key.
        raise InvalidArg(f"the AWS file '{path.name}' can not be parsed") from None
    section = next((row for row in (name, f"profile {name}") if parser.has_section(row)), None)
    return dict(parser.items(section)) if section else {}


def _text(path: Path, what: str) -> str:
    try:
        status = path.stat()
        if status.st_size > _MAX_FILE:
            raise InvalidArg(f"{what} is larger than {_MAX_FILE} bytes")
        if status.st_mode & 0o007:
            log.warning(f"{what} may be read by everybody: chmod 600 it")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InvalidArg(f"{what} can not be read: {error.strerror}") from None
    except UnicodeError:
        raise InvalidArg(f"{what} is not UTF-8 text") from None
