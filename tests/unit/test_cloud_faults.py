"""What the library's exceptions mean: each says what to do, none repeats what the store wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_fast.errors import Code
from triton_fast.repository.cloud.credentials import Credentials
from triton_fast.repository.cloud.faults import Kind, StoreError, fault, is_told
from triton_fast.repository.cloud.store import ObStore
from triton_fast.repository.cloud.urls import parse

SECRET = "MARKER-OF-A-SECRET"  # noqa: S105


class PermissionDeniedError(Exception):
    pass


class InvalidPathError(Exception):
    pass


class PreconditionError(Exception):
    pass


class PanicException(BaseException):
    """As the library's: not an ``Exception``."""


def answer(status: int, body: str = "", url: str = "http://127.0.0.1:1/b?x") -> str:
    return (
        f"Generic S3 error: Error performing GET {url} in 3ms - Server returned non-2xx status code: {status}: {body}"
    )


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (Exception(answer(404, f"<Code>NoSuchBucket</Code><B>{SECRET}</B>")), Kind.ABSENT,
         "the bucket or container does not exist (NoSuchBucket, 404): check its name and the account"),
        (Exception(answer(404, "<Code>ContainerNotFound</Code>")), Kind.ABSENT, "does not exist"),
        (PermissionDeniedError(answer(403, f"<Code>AccessDenied</Code>{SECRET}")), Kind.DENIED,
         "access denied (AccessDenied, 403): the credentials must allow s3:ListBucket"),
        (Exception(answer(403, f"<Code>SignatureDoesNotMatch</Code><StringToSign>{SECRET}</StringToSign>")),
         Kind.DENIED, "the key or token is wrong"),
        (Exception(answer(403, "<Code>InvalidAccessKeyId</Code>")), Kind.DENIED, "set AWS_ACCESS_KEY_ID"),
        (Exception(answer(400, "<Code>ExpiredToken</Code>")), Kind.EXPIRED, "the credentials have expired"),
        (Exception(answer(403, "<Code>AuthenticationFailed</Code> signature expired at")), Kind.EXPIRED, "expired"),
        (Exception(answer(301, "<Code>PermanentRedirect</Code><Region>eu-west-1</Region>")), Kind.REGION,
         "set AWS_DEFAULT_REGION=eu-west-1"),
        (Exception(answer(400, "<Code>AuthorizationHeaderMalformed</Code>region 'us-east-1' is wrong; expecting "
                               "'ap-south-1'")), Kind.REGION, "set AWS_DEFAULT_REGION=ap-south-1"),
        (Exception("Error performing GET http://nowhere:9/b in 1ms - HTTP error: error sending request"), Kind.NETWORK,
         "nowhere:9 can not be reached"),
        (Exception("Error performing GET https://h/b in 1ms - HTTP error: error sending request: invalid peer "
                   "certificate"), Kind.NETWORK, "its certificate is not trusted"),
        (Exception(answer(503, "<Code>SlowDown</Code>")), Kind.BUSY, "(SlowDown, 503); tried several times"),
        (Exception(answer(429)), Kind.BUSY, "(429)"),
        (PreconditionError("precondition"), Kind.CHANGED, "changed while it was downloaded"),
        (FileNotFoundError(answer(404, "<Code>NoSuchKey</Code>")), Kind.CHANGED, "no such object"),
        (InvalidPathError('invalid path: Error parsing Path "m/../x": illegal'), Kind.KEY,
         "an object whose key can not be a path: 'm/../x'; remove or rename that object"),
        (Exception("Error performing PUT http://169.254.169.254/latest/api/token in 1ms - HTTP error: x"),
         Kind.METADATA, "there are no credentials, and this machine has no role"),
        (Exception(f"Invalid Access Key: Invalid symbol 42 in {SECRET}"), Kind.DENIED, "credentials can not be used"),
        (Exception(f"something else {SECRET}"), Kind.OTHER, "the store gave no proper answer"),
        (PanicException(f"InvalidHeaderValue {SECRET}"), Kind.OTHER, "characters that do not belong in the address"),
    ],
)  # fmt: skip
def test_faults(error: BaseException, kind: Kind, text: str) -> None:
    found = fault(error, "s3", "s3://b/models", is_anonymous=False)
    assert found.kind is kind
    assert text in str(found)
    assert str(found).startswith("model repository 's3://b/models': ")
    assert SECRET not in str(found)
    assert found.code is Code.INTERNAL


def test_without_credentials_it_says_so() -> None:
    text = str(fault(PermissionDeniedError(answer(403)), "gs", "gs://b", is_anonymous=True))
    assert "no credentials were given: set GOOGLE_APPLICATION_CREDENTIALS" in text


def test_what_is_the_librarys_to_tell() -> None:
    assert [is_told(error) for error in (OSError(), PanicException(), KeyboardInterrupt(), GeneratorExit())] == [
        True, True, False, False,
    ]  # fmt: skip


def test_a_panic_of_the_library_is_an_error_of_the_store(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    store = ObStore(parse("s3://http://127.0.0.1:9/b"), Credentials({"HOME": str(tmp_path)}), {"HOME": str(tmp_path)})

    def panic(_: object) -> None:
        raise PanicException

    with pytest.raises(StoreError, match="no request can be made"):
        store._ask(panic)


def test_a_credential_file_that_is_being_written_changes_nothing(tmp_path: Path) -> None:
    pytest.importorskip("obstore")
    file = tmp_path / "c.json"
    file.write_text('{"s3": {"": {"key_id": "a", "secret_key": "b"}}}')
    env = {"HOME": str(tmp_path), "TRITON_CLOUD_CREDENTIAL_PATH": str(file)}
    store = ObStore(parse("s3://http://127.0.0.1:9/b"), Credentials(env), env)
    file.write_text('{"s3": {')

    def refuse(_: object) -> None:
        raise PermissionDeniedError(answer(403, "<Code>InvalidAccessKeyId</Code>"))

    with pytest.raises(StoreError, match="the key or token is wrong"):
        store._ask(refuse)
