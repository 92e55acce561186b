"""Cloud paths and credentials: every form of the spec, the longest prefix, and secrets that stay out of sight."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from triton_fast.errors import InvalidArg
from triton_fast.observability import log
from triton_fast.repository.cloud.credentials import (
    AzureCredential,
    Credentials,
    GcsCredential,
    S3Credential,
    with_profile,
)  # fmt: skip
from triton_fast.repository.cloud.urls import CloudUrl, kind_of, parse, shown

SECRET = "sEcReT/MaRkEr"  # noqa: S105


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("s3://bucket", CloudUrl("s3", "bucket", "")),
        ("s3://bucket/", CloudUrl("s3", "bucket", "")),
        ("s3://bucket//a///b/", CloudUrl("s3", "bucket", "a/b")),
        ("s3://host:9000/bucket/a", CloudUrl("s3", "bucket", "a", "http://host:9000")),
        ("s3://http://127.0.0.1:9000/bucket/a/b", CloudUrl("s3", "bucket", "a/b", "http://127.0.0.1:9000")),
        ("s3://https://s3.example.org/bucket", CloudUrl("s3", "bucket", "", "https://s3.example.org")),
        ("s3://https://s3.example.org:443/bucket/a", CloudUrl("s3", "bucket", "a", "https://s3.example.org:443")),
        ("s3://http://[::1]:9000/bucket", CloudUrl("s3", "bucket", "", "http://[::1]:9000")),
        ("gs://bucket/a", CloudUrl("gs", "bucket", "a")),
        ("gs://http://127.0.0.1:9000/bucket/a", CloudUrl("gs", "bucket", "a", "http://127.0.0.1:9000")),
        ("as://acc.blob.core.windows.net/box/a/b",
         CloudUrl("as", "box", "a/b", "https://acc.blob.core.windows.net", "acc")),
        ("as://acc.blob.core.windows.net/box", CloudUrl("as", "box", "", "https://acc.blob.core.windows.net", "acc")),
        ("as://acc.blob.core.windows.net/box/a?snapshot=1",
         CloudUrl("as", "box", "a", "https://acc.blob.core.windows.net", "acc")),
        ("as://acc/box/a", CloudUrl("as", "box", "a", "https://acc.blob.core.windows.net", "acc")),
        ("as://http://127.0.0.1:10000/acc/box/a", CloudUrl("as", "box", "a", "http://127.0.0.1:10000/acc", "acc")),
    ],
)  # fmt: skip
def test_forms(path: str, expected: CloudUrl) -> None:
    assert parse(path) == expected
    # What is shown means the same.
    assert parse(expected.location) == expected


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("s3://", "names no bucket"),
        ("s3:///", "names no bucket"),
        ("gs://", "names no bucket"),
        ("s3://host:9000", "names no bucket"),
        ("as://acc.blob.core.windows.net", "names no container"),
        ("as://http://127.0.0.1:1/acc", "names no container"),
        ("s3://http://host:99999/bucket", "is no address of a host"),
        ("s3://host:0/bucket", "is no address of a host"),
        ("s3://http://[1]:80/bucket", "is no address of a host"),
        ("gs://http://host:70000/bucket", "is no address of a host"),
        ("as://http://host:70000/acc/box", "is no address of a host"),
        ("s3://../x", "can not be the name"),
        ("s3://bucket/../x", "mean nothing in a store"),
        ("gs://bucket/a/./b", "mean nothing in a store"),
        ("s3://bucket/a\\b", "too long or has characters"),
        ("s3://bucket/a\nb", "too long or has characters"),
        ("s3://bucket/" + "x" * 2000, "too long or has characters"),
        ("s3://buc ket/a", "can not be the name"),
        ("as://a:b/box", "is no host"),
        (f"s3://key:{SECRET[:6]}@bucket/a", "credentials do not belong"),
        (f"s3://http://key:{SECRET[:6]}@host:9000/bucket/a", "credentials do not belong"),
    ],
)
def test_bad_paths(path: str, why: str) -> None:
    with pytest.raises(InvalidArg, match=why) as caught:
        parse(path)
    assert "sEcReT" not in str(caught.value)


@pytest.mark.parametrize("path", ["/models", "models", "s3:/bucket", "S3://bucket", "file:///x", "https://x/y", ""])
def test_local_paths(path: str) -> None:
    assert kind_of(path) == ""
    assert shown(path) == path


def test_shown_hides_what_may_be_secret() -> None:
    assert shown(f"as://acc/box/a?sig={SECRET}") == "as://acc/box/a"
    assert shown(f"s3://http://user:{SECRET[:6]}@host:1/bucket") == "s3://http://host:1/bucket"


# ---- credentials


def write(path: Path, document: object) -> dict[str, str]:
    path.write_text(document if isinstance(document, str) else json.dumps(document))
    path.chmod(0o600)
    return {"TRITON_CLOUD_CREDENTIAL_PATH": str(path)}


def test_environment() -> None:
    env = {
        "AWS_ACCESS_KEY_ID": "id", "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": SECRET,
        "AWS_DEFAULT_REGION": "eu-west-1", "AWS_PROFILE": "p", "GOOGLE_APPLICATION_CREDENTIALS": "x.json",
        "AZURE_STORAGE_ACCOUNT": "acc", "AZURE_STORAGE_KEY": SECRET, "AZURE_STORAGE_AUTH_TYPE": "default",
        "AZURE_STORAGE_CLIENT_ID": "c",
    }  # fmt: skip
    found = Credentials(env)
    assert found.find("s3://b/x") == S3Credential("id", SECRET, SECRET, "eu-west-1", "p")
    assert found.find("gs://b/x") == GcsCredential("x.json")
    assert found.find("as://b/x") == AzureCredential("acc", SECRET, "default", "c")
    assert SECRET not in repr([found.find(path) for path in ("s3://b", "gs://b", "as://b")])


def test_longest_prefix_wins(tmp_path: Path) -> None:
    env = write(
        tmp_path / "c.json",
        {
            "s3": {"s3://b": {"key_id": "short", "secret_key": "x"}, "s3://b/deep": {"key_id": "long", "region": "r"}},
            "gs": {"": "all.json", "gs://b": "b.json"},
            "as": {"as://acc": {"account_str": "acc", "account_key": "k", "auth_type": "t", "client_id": "c"}},
        },
    )
    found = Credentials({**env, "AWS_ACCESS_KEY_ID": "not asked"})
    assert found.find("s3://b/x") == S3Credential("short", "x")
    assert found.find("s3://b/deep/x") == S3Credential("long", region="r")
    assert found.find("gs://b/x") == GcsCredential("b.json")
    assert found.find("s3://b/deep") == S3Credential("long", region="r")
    assert found.find("gs://other") == GcsCredential("all.json")
    assert found.find("as://acc/box") == AzureCredential("acc", "k", "t", "c")


@pytest.mark.parametrize("prefix", ["s3://b/", "s3://b", "s3://host:9000/b/", "s3://http://host:9000/b"])
def test_spellings_of_a_prefix(tmp_path: Path, prefix: str) -> None:
    found = Credentials(write(tmp_path / "c.json", {"s3": {prefix: {"key_id": "1"}}}))
    path = "s3://host:9000/b" if "host" in prefix else "s3://b"
    assert found.find(parse(path).location) == S3Credential("1")


def test_no_match_has_tritons_text_and_reads_the_file_again(tmp_path: Path) -> None:
    path = tmp_path / "c.json"
    found = Credentials(write(path, {"s3": {"s3://a": {"key_id": "1"}}}))
    assert found.find("s3://a") == S3Credential("1")
    with pytest.raises(InvalidArg) as caught:
        found.find("s3://b/x")
    assert str(caught.value) == "Cannot match credential for path  s3://b/x"
    write(path, {"s3": {"s3://a": {"key_id": "2"}, "s3://b": {"key_id": "3"}}})
    # Read once, and read again only when nothing fits or somebody asks.
    assert found.find("s3://a") == S3Credential("1")
    assert found.find("s3://b/x") == S3Credential("3")
    assert found.find("s3://a") == S3Credential("2")
    write(path, {"s3": {"s3://a": {"key_id": "4"}}})
    assert found.find("s3://a", fresh=True) == S3Credential("4")


@pytest.mark.parametrize(
    ("document", "why"),
    [
        (f'{{"s3": {{"s3://b": {SECRET}', "is not JSON: Expecting value at line 1 column 19"),
        ([], "must be"),
        ({"s3": [SECRET]}, "must be"),
        ({"s3": {"s3://b": SECRET}}, "must be an object"),
        ({"gs": {"gs://b": {"key": SECRET}}}, "must be the path of a JSON file"),
        ("[" * 100_000, "nested too deeply|is not JSON"),
        ("x" * (1 << 21), "larger than"),
    ],
)
def test_bad_files(tmp_path: Path, document: object, why: str) -> None:
    with pytest.raises(InvalidArg, match=why) as caught:
        Credentials(write(tmp_path / "c.json", document)).find("s3://b")
    assert SECRET not in str(caught.value)


def test_line_feeds_of_mounted_secrets_are_no_part_of_them(tmp_path: Path) -> None:
    env = {
        "AWS_ACCESS_KEY_ID": "id\n", "AWS_SECRET_ACCESS_KEY": f"{SECRET}\r\n", "AWS_DEFAULT_REGION": "eu-west-1\n",
        "AZURE_STORAGE_ACCOUNT": "acc\n", "AZURE_STORAGE_KEY": f"{SECRET}\n",
    }  # fmt: skip
    assert Credentials(env).find("s3://b") == S3Credential("id", SECRET, region="eu-west-1")
    assert Credentials(env).find("as://b") == AzureCredential("acc", SECRET)
    document = "\ufeff" + json.dumps({"s3": {"": {"key_id": "id\n", "secret_key": f"{SECRET}\n"}}})
    assert Credentials(write(tmp_path / "c.json", document)).find("s3://b") == S3Credential("id", SECRET)
    with pytest.raises(InvalidArg, match=r"^AWS_SESSION_TOKEN holds a control character$"):
        Credentials({"AWS_SESSION_TOKEN": f"a\n{SECRET}"}).find("s3://b")


def test_fields_that_mean_nothing_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "warning", lines.append)
    env = write(tmp_path / "c.json", {"s3": {"s3://b": {"keyid": "id", SECRET: "x"}}})
    assert Credentials(env).find("s3://b") == S3Credential()
    said = "\n".join(lines)
    assert "did you mean 'key_id'?" in said and SECRET not in said
    env = write(tmp_path / "c.json", {"s3": {"s3://b": {"key_id": 5}}})
    with pytest.raises(InvalidArg, match="'key_id' of 's3://b' must be a string"):
        Credentials(env).find("s3://b")


def test_half_of_a_pair_of_keys_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(log, "warning", lines.append)
    assert with_profile(S3Credential("id"), {"HOME": str(tmp_path)}) == S3Credential("id")
    assert "without its secret key" in "\n".join(lines)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InvalidArg, match="TRITON_CLOUD_CREDENTIAL_PATH names can not be read: No such file"):
        Credentials({"TRITON_CLOUD_CREDENTIAL_PATH": str(tmp_path / "none")}).find("s3://b")


def test_profiles(tmp_path: Path) -> None:
    folder = tmp_path / ".aws"
    folder.mkdir()
    (folder / "credentials").write_text(
        f"[default]\naws_access_key_id = d\naws_secret_access_key = {SECRET}\n"
        f"[team]\naws_access_key_id = t\naws_secret_access_key = %{SECRET}\naws_session_token = s\n"
    )
    (folder / "config").write_text("[profile team]\nregion = eu-north-1\n[profile sso]\nsso_session = x\n")
    env = {"HOME": str(tmp_path)}
    assert with_profile(S3Credential(), env) == S3Credential("d", SECRET)
    assert with_profile(S3Credential(profile="team"), env) == S3Credential("t", f"%{SECRET}", "s", "eu-north-1", "team")
    assert with_profile(S3Credential(region="r", profile="team"), env).region == "r"
    # Keys of their own come first.
    assert with_profile(S3Credential("k", "s", profile="team"), env) == S3Credential("k", "s", profile="team")
    with pytest.raises(InvalidArg, match="'none' does not exist"):
        with_profile(S3Credential(profile="none"), env)
    with pytest.raises(InvalidArg, match="export-credentials --profile sso"):
        with_profile(S3Credential(profile="sso"), env)
    (folder / "credentials").write_text(f"[team]\n{SECRET}")
    with pytest.raises(InvalidArg, match="can not be parsed") as caught:
        with_profile(S3Credential(profile="team"), env)
    assert SECRET not in str(caught.value)
    assert with_profile(S3Credential(), {"HOME": str(tmp_path / "nowhere")}) == S3Credential()
