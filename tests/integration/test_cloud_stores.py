"""Repositories in the emulators of three stores: loads, polls by ETag, broken downloads, credentials, hostile keys."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.cutting_proxy import CuttingProxy
from tests.helpers.emulators import ACCOUNT, ACCOUNT_KEY, PAGE, S3, Azure, Emulator, Gcs, free_port, needs_npm
from tests.helpers.server import Model, repository
from triton_fast.errors import Internal, InvalidArg, ServerError
from triton_fast.repository.cloud import OpenedSources
from triton_fast.repository.cloud.cache import Cache
from triton_fast.repository.cloud.credentials import Credentials
from triton_fast.repository.cloud.faults import Kind, StoreError
from triton_fast.repository.cloud.source import CloudSource
from triton_fast.repository.cloud.store import ObStore
from triton_fast.repository.cloud.urls import parse
from triton_fast.repository.workers import Workers

KINDS = ["s3", "gs", pytest.param("azure", marks=needs_npm)]
LARGE = 6 << 20


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3]:
    with S3(tmp_path_factory.mktemp("s3")) as made:
        assert isinstance(made, S3)
        yield made


@pytest.fixture(scope="module")
def gs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Emulator]:
    with Gcs(tmp_path_factory.mktemp("gs")) as made:
        yield made


@pytest.fixture(scope="module")
def azure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Azure]:
    with Azure(tmp_path_factory.mktemp("azure")) as made:
        assert isinstance(made, Azure)
        yield made


@pytest.fixture
def emulator(request: pytest.FixtureRequest) -> Emulator:
    found: Emulator = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def bucket(request: pytest.FixtureRequest) -> str:
    """A name of each test's own."""
    return f"t{abs(hash(request.node.nodeid)):x}"


@contextmanager
def opened(url: str, folder: Path, env: Mapping[str, str]) -> Iterator[CloudSource]:
    sources = OpenedSources([url], 0, {"HOME": str(folder / "home"), "XDG_CACHE_HOME": str(folder / "cache"), **env})
    try:
        assert isinstance(sources.sources[0], CloudSource)
        yield sources.sources[0]
    finally:
        sources.close()


@contextmanager
def patient(url: str, folder: Path, env: Mapping[str, str]) -> Iterator[CloudSource]:
    """A source that waits for nothing and whose library repeats nothing."""
    env = {"HOME": str(folder / "home"), **env}
    store = ObStore(parse(url), Credentials(env), env, wait=lambda seconds: None, retries=0)
    cache = Cache(folder / "cache", wait=lambda seconds: None)
    downloads = Workers(4, "download")
    yield CloudSource(store, cache, downloads)
    downloads.close()
    cache.close()


def files(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


def fill(emulator: Emulator, bucket: str, folder: Path) -> Path:
    root = repository(folder / "repo", Model("a"), Model("b c"))
    (root / "a" / "1" / "model.bin").write_bytes(random.Random(1).randbytes(300_000))
    (root / "a" / "labels").mkdir()
    (root / "a" / "labels" / "\u00e9 %2e+x.txt").write_text("cat")
    emulator.make_bucket(bucket)
    emulator.put_tree(bucket, root, "some/where/")
    emulator.put(bucket, "some/where/readme.txt", b"hi")
    emulator.put(bucket, "some/where-else/c/config.pbtxt", b"")
    return root


# ---- all three


@pytest.mark.parametrize("emulator", KINDS, indirect=True)
def test_a_repository_is_what_was_stored(emulator: Emulator, bucket: str, tmp_path: Path) -> None:
    root = fill(emulator, bucket, tmp_path)
    with opened(emulator.url(bucket, "some/where/"), tmp_path, emulator.env) as source:
        assert source.list_models() == ["a", "b c"]
        assert source.list_others() == ["readme.txt"]
        for name in source.list_models():
            directory = source.materialize(name)
            assert files(directory.path) == files(root / name)
            assert (directory.path / "1").is_dir()
            assert set(source.fingerprint(name).versions) == {"1"}
            directory.release()


@pytest.mark.parametrize("emulator", KINDS, indirect=True)
def test_the_fingerprint_follows_the_objects(emulator: Emulator, bucket: str, tmp_path: Path) -> None:
    fill(emulator, bucket, tmp_path)
    with opened(emulator.url(bucket, "some/where"), tmp_path, emulator.env) as source:
        first = source.fingerprint("a")
        assert source.fingerprint("a") == first
        # As long as before: only the ETag tells.
        emulator.put(bucket, "some/where/a/1/model.bin", random.Random(2).randbytes(300_000))
        second = source.fingerprint("a")
        assert (second.config, second.common) == (first.config, first.common)
        assert second.versions != first.versions
        directory = source.materialize("a")
        assert (directory.path / "1" / "model.bin").read_bytes() == random.Random(2).randbytes(300_000)
        directory.release()
        emulator.put(bucket, "some/where/a/2/model.bin", b"x")
        assert set(source.fingerprint("a").versions) == {"1", "2"}
        emulator.delete(bucket, "some/where/a/2/model.bin")
        assert source.fingerprint("a") == second


# The emulator of Google's answers 500 there.
@pytest.mark.parametrize("emulator", ["s3", pytest.param("azure", marks=needs_npm)], indirect=True)
def test_a_bucket_that_does_not_exist(emulator: Emulator, tmp_path: Path) -> None:
    with pytest.raises(Internal, match="no-such-bucket': the bucket or container does not exist"):  # noqa: SIM117
        with opened(emulator.url("no-such-bucket"), tmp_path, emulator.env):
            pass


@pytest.mark.parametrize("emulator", KINDS, indirect=True)
def test_an_empty_place_has_no_models(emulator: Emulator, bucket: str, tmp_path: Path) -> None:
    emulator.make_bucket(bucket)
    with opened(emulator.url(bucket, "nothing/here"), tmp_path, emulator.env) as source:
        assert source.list_models() == []


# ---- downloads that break off


@pytest.fixture
def proxy(s3: S3) -> Iterator[CuttingProxy]:
    with CuttingProxy(s3.port) as made:
        yield made


def test_a_broken_download_is_resumed(s3: S3, proxy: CuttingProxy, bucket: str, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(LARGE)
    s3.make_bucket(bucket)
    s3.put(bucket, "m/1/model.bin", data)
    proxy.cuts = [LARGE // 3, LARGE // 3]
    with opened(f"s3://{proxy.endpoint}/{bucket}", tmp_path, s3.env) as source:
        directory = source.materialize("m")
        assert (directory.path / "1" / "model.bin").read_bytes() == data
    asked = proxy.gets("model.bin")
    assert proxy.cuts == []
    assert "range" not in asked[0]
    starts = [int(headers["range"].removeprefix("bytes=").partition("-")[0]) for headers in asked[1:]]
    assert starts == sorted(starts) and starts[0] > 0 and starts[-1] > LARGE // 3
    # Two halves of different objects can not meet.
    assert len({headers["if-match"] for headers in asked}) == 1


def test_an_object_replaced_during_a_broken_download(s3: S3, proxy: CuttingProxy, bucket: str, tmp_path: Path) -> None:
    old, new = (random.Random(seed).randbytes(LARGE) for seed in (4, 5))
    s3.make_bucket(bucket)
    s3.put(bucket, "m/1/model.bin", old)
    proxy.cuts = [LARGE // 2]
    proxy.after_cut = lambda: s3.put(bucket, "m/1/model.bin", new)
    with opened(f"s3://{proxy.endpoint}/{bucket}", tmp_path, s3.env) as source:
        directory = source.materialize("m")
        assert (directory.path / "1" / "model.bin").read_bytes() == new


def test_a_second_server_resumes_what_the_first_could_not(
    s3: S3, proxy: CuttingProxy, bucket: str, tmp_path: Path
) -> None:
    data = random.Random(6).randbytes(LARGE)
    s3.make_bucket(bucket)
    s3.put(bucket, "m/1/model.bin", data)
    proxy.cuts = [LARGE // 2]
    url = f"s3://{proxy.endpoint}/{bucket}"

    def refuse(path: str) -> int:
        return 403 if path.endswith("model.bin") and not proxy.cuts else 0

    proxy.refuse = refuse
    with patient(url, tmp_path, s3.env) as source, pytest.raises(StoreError, match="access denied"):
        source.materialize("m")
    proxy.refuse = lambda path: 0
    with patient(url, tmp_path, s3.env) as source:
        assert (source.materialize("m").path / "1" / "model.bin").read_bytes() == data
    assert int(proxy.gets("model.bin")[-1]["range"].removeprefix("bytes=").partition("-")[0]) > 0


def test_a_listing_whose_second_page_fails_is_none(s3: S3, proxy: CuttingProxy, bucket: str, tmp_path: Path) -> None:
    s3.make_bucket(bucket)
    for i in range(3 * PAGE):
        s3.put(bucket, f"m{i:04}/1/x", b"")
    with patient(f"s3://{proxy.endpoint}/{bucket}", tmp_path, s3.env) as source:
        assert len(source.list_models()) == 3 * PAGE
        proxy.refuse = lambda path: 500 if "continuation-token" in path else 0
        with pytest.raises(StoreError, match="could not answer") as caught:
            source.list_models()
        assert caught.value.kind is Kind.BUSY
        proxy.refuse = lambda path: 0
        assert len(source.list_models()) == 3 * PAGE


def test_a_store_that_is_busy_is_asked_again(s3: S3, proxy: CuttingProxy, bucket: str, tmp_path: Path) -> None:
    fill(s3, bucket, tmp_path)
    left = [3]

    def refuse(path: str) -> int:
        left[0] -= 1
        return 503 if left[0] >= 0 else 0

    proxy.refuse = refuse
    with patient(f"s3://{proxy.endpoint}/{bucket}/some/where", tmp_path, s3.env) as source:
        assert source.list_models() == ["a", "b c"]
    assert len(proxy.seen) == 4


def test_a_host_that_is_not_there(tmp_path: Path) -> None:
    with patient(f"s3://http://127.0.0.1:{free_port()}/bucket", tmp_path, {}) as source:  # noqa: SIM117
        with pytest.raises(StoreError, match=r"127\.0\.0\.1:\d+ can not be reached or broke off: check the address"):
            source.list_models()


# ---- hostile keys, really stored


@pytest.mark.parametrize("key", ["../../../escaped", "1//x", "1/./x", "1/a\tb", "1/back\\slash", "1", "n" * 300])
def test_hostile_keys_spoil_their_model(s3: S3, bucket: str, tmp_path: Path, key: str) -> None:
    fill(s3, bucket, tmp_path)
    s3.put(bucket, f"some/where/evil/{key}", b"x")
    s3.put(bucket, "some/where/evil/1/x", b"x")
    with opened(s3.url(bucket, "some/where"), tmp_path, s3.env) as source:
        assert source.list_models() == ["a", "b c", "evil"]
        with pytest.raises(StoreError, match="remove or rename that object"):
            source.materialize("evil")
        with pytest.raises(StoreError, match="remove or rename that object"):
            source.fingerprint("evil")
        source.materialize("a").release()
        assert sorted(p.name for p in tmp_path.iterdir()) == ["cache", "repo"]


def test_a_model_whose_name_can_not_be_a_directory(s3: S3, bucket: str, tmp_path: Path) -> None:
    s3.make_bucket(bucket)
    s3.put(bucket, "repo/../x/config.pbtxt", b"")
    with pytest.raises(StoreError, match="an object whose key can not be a path"):  # noqa: SIM117
        with opened(s3.url(bucket, "repo"), tmp_path, s3.env):
            pass


# ---- credentials


def test_anonymous_access(s3: S3, proxy: CuttingProxy, bucket: str, tmp_path: Path) -> None:
    fill(s3, bucket, tmp_path)
    with opened(f"s3://{proxy.endpoint}/{bucket}/some/where", tmp_path, {}) as source:
        assert source.list_models() == ["a", "b c"]
    assert not any("authorization" in headers for _, headers in proxy.seen)


def test_keys_of_a_profile_sign_requests(s3: S3, proxy: CuttingProxy, bucket: str, tmp_path: Path) -> None:
    fill(s3, bucket, tmp_path)
    (tmp_path / "credentials").write_text("[team]\naws_access_key_id = TEAMKEY\naws_secret_access_key = x\n")
    env = {"AWS_PROFILE": "team", "AWS_SHARED_CREDENTIALS_FILE": str(tmp_path / "credentials")}
    with opened(f"s3://{proxy.endpoint}/{bucket}/some/where", tmp_path, env) as source:
        assert source.list_models() == ["a", "b c"]
    assert all("Credential=TEAMKEY/" in headers["authorization"] for _, headers in proxy.seen)


def test_the_longest_prefix_signs(s3: S3, proxy: CuttingProxy, bucket: str, tmp_path: Path) -> None:
    fill(s3, bucket, tmp_path)
    place = f"s3://{proxy.endpoint}/{bucket}"
    path = tmp_path / "credentials.json"
    path.write_text(json.dumps({"s3": {
        "s3://": {"key_id": "EVERYWHERE", "secret_key": "x"},
        f"{place}/some": {"key_id": "LONG", "secret_key": "x", "session_token": "TOKEN", "region": "eu-west-3"},
        f"{place}/some/where-else": {"key_id": "OTHER", "secret_key": "x"},
    }}))  # fmt: skip
    path.chmod(0o600)
    with opened(f"{place}/some/where", tmp_path, {"TRITON_CLOUD_CREDENTIAL_PATH": str(path)}):
        pass
    headers = proxy.seen[-1][1]
    assert "Credential=LONG/" in headers["authorization"] and "/eu-west-3/s3/" in headers["authorization"]
    assert headers["x-amz-security-token"] == "TOKEN"
    with pytest.raises(InvalidArg) as caught:  # noqa: SIM117
        with opened("gs://bucket/x", tmp_path, {"TRITON_CLOUD_CREDENTIAL_PATH": str(path)}):
            pass
    assert str(caught.value) == "Cannot match credential for path  gs://bucket/x"


@needs_npm
def test_azure_checks_keys_and_takes_a_new_one_without_restart(azure: Azure, bucket: str, tmp_path: Path) -> None:
    fill(azure, bucket, tmp_path)
    url = azure.url(bucket, "some/where")
    path = tmp_path / "credentials.json"

    def write(key: str) -> None:
        path.write_text(json.dumps({"as": {"as://": {"account_str": ACCOUNT, "account_key": key}}}))
        path.chmod(0o600)

    env = {"TRITON_CLOUD_CREDENTIAL_PATH": str(path)}
    write("d3Jvbmcga2V5")
    with pytest.raises(StoreError, match="access denied") as caught, opened(url, tmp_path, env):
        pass
    assert "d3Jvbmcga2V5" not in str(caught.value)
    write("not base64: sEcReT")
    with pytest.raises(ServerError, match="the credentials can not be used: set AZURE_STORAGE_ACCOUNT") as caught:  # noqa: SIM117
        with opened(url, tmp_path, env):
            pass
    assert "sEcReT" not in str(caught.value)
    write(ACCOUNT_KEY)
    with opened(url, tmp_path, env) as source:
        assert source.list_models() == ["a", "b c"]
    write("d3Jvbmcga2V5")
    with patient(url, tmp_path, env) as source:
        write(ACCOUNT_KEY)
        assert source.list_models() == ["a", "b c"]


@needs_npm
def test_azure_without_a_key(azure: Azure, bucket: str, tmp_path: Path) -> None:
    fill(azure, bucket, tmp_path)
    with pytest.raises(StoreError, match="no credentials were given: set AZURE_STORAGE_ACCOUNT"):  # noqa: SIM117
        with opened(azure.url(bucket, "some/where"), tmp_path, {}):
            pass
    azure.make_bucket(f"{bucket}-public", public=True)
    azure.put(f"{bucket}-public", "m/config.pbtxt", b"x")
    with opened(azure.url(f"{bucket}-public"), tmp_path, {}) as source:
        assert source.list_models() == ["m"]
