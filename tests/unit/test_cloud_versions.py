"""What is downloaded of a model in the cloud: its wanted versions; unregistering by path, and failed starts."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, os.path.dirname(__file__))
from test_cloud_source import MemoryStore, files
from test_repository_overrides import OVERRIDE
from test_repository_support import CONFIG, FakeBackend, FakeEngine, FakeRuntime, error_of, settle

from triton_fast import cli, startup
from triton_fast.errors import InvalidArg
from triton_fast.repository import ControlMode, LoadFailure, ModelRepositoryManager, Preparer
from triton_fast.repository.cloud import location_of
from triton_fast.repository.cloud.cache import Cache
from triton_fast.repository.cloud.source import CloudSource
from triton_fast.repository.workers import Workers

Manager = ModelRepositoryManager[FakeRuntime]
LAST_TWO = CONFIG + "version_policy { latest { num_versions: 2 } }\n"


@pytest.fixture
def store() -> MemoryStore:
    made = MemoryStore()
    for version in ("1", "2", "10"):
        made.put(f"m/{version}/model.fake", f"ok {version}")
        made.put(f"m/{version}/more/weights.bin", version)
    made.put("m/labels.txt", "cat")
    made.put("m/config.pbtxt", CONFIG)
    return made


@pytest.fixture
def source(store: MemoryStore, tmp_path: Path) -> Iterator[CloudSource]:
    downloads, cache = Workers(4, "download"), Cache(tmp_path / "cache", wait=lambda seconds: None)
    yield CloudSource(store, cache, downloads, clock=lambda: 0.0)
    downloads.close()
    cache.close()


@pytest.fixture
def manager(source: CloudSource) -> Iterator[Manager]:
    preparer = Preparer({"fake": FakeBackend()}.get, cpu_count=2)
    made: Manager = ModelRepositoryManager(
        [source], preparer, FakeEngine().start, mode=ControlMode.EXPLICIT, open_source=lambda path: source,
        location_of=location_of,
    )  # fmt: skip
    made.start()
    yield made
    made.shutdown(30)


def fetched(store: MemoryStore) -> set[str]:
    found = {key.removeprefix("repo/m/") for key in store.reads}
    store.reads.clear()
    return found


def of(*versions: str) -> set[str]:
    return {f"{version}/{name}" for version in versions for name in ("model.fake", "more/weights.bin")}


def test_only_what_the_policy_wants(store: MemoryStore, manager: Manager) -> None:
    manager.load("m")
    assert manager.versions("m") == [10]
    assert fetched(store) == {"config.pbtxt", "labels.txt", *of("10")}
    # Another policy fetches what it adds.
    store.put("m/config.pbtxt", LAST_TWO)
    manager.load("m")
    assert manager.versions("m") == [2, 10]
    assert fetched(store) == {"config.pbtxt", *of("2")}
    # And so does one that comes with a request.
    given = json.loads(OVERRIDE) | {"version_policy": {"specific": {"versions": [1]}}}
    manager.load("m", config_json=json.dumps(given))
    assert manager.versions("m") == [1]
    assert fetched(store) == of("1")
    settle(manager)


@pytest.mark.parametrize("more", [
    'model_repository_agents { agents [{ name: "checksum" parameters { key: "MD5:1/model.fake" value: "x" } }] }',
    'model_operations { op_library_filename: "1/libmine.so" }',
    'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "$$TRITON_MODEL_DIRECTORY/1/env" } }',
    'default_model_filename: "../2/model.fake"', 'cc_model_filenames { key: "9.0" value: "../2/model.fake" }',
    'output { name: "L" data_type: TYPE_FP32 dims: [ 1 ] label_filename: "1/labels.txt" }',
])  # fmt: skip
def test_all_where_any_file_may_be_needed(store: MemoryStore, source: CloudSource, more: str) -> None:
    store.put("m/config.pbtxt", CONFIG + more)
    preparer = Preparer({"fake": FakeBackend()}.get)
    directory = source.materialize("m", lambda path: preparer.wanted_versions("m", None, path))
    assert of("1", "2", "10") <= set(files(directory.path))


@pytest.mark.parametrize("more", [
    'default_model_filename: "more/weights.bin"', 'cc_model_filenames { key: "9.0" value: "model..fake" }',
    'output { name: "L" data_type: TYPE_FP32 dims: [ 1 ] label_filename: "labels.txt" }',
    'parameters { key: "MODE" value { string_value: ".." } }',
])  # fmt: skip
def test_names_that_lead_to_no_other_version(store: MemoryStore, source: CloudSource, more: str) -> None:
    store.put("m/config.pbtxt", CONFIG + more)
    preparer = Preparer({"fake": FakeBackend()}.get)
    directory = source.materialize("m", lambda path: preparer.wanted_versions("m", None, path))
    assert set(files(directory.path)) == {"config.pbtxt", "labels.txt", *of("10")}


def test_the_directory_has_the_wanted_versions_only(store: MemoryStore, source: CloudSource) -> None:
    seen: list[list[str]] = []

    def choose(path: Path) -> list[str]:
        seen.append(sorted(one.relative_to(path).as_posix() for one in path.rglob("*")))
        return ["2", "none"]

    directory = source.materialize("m", choose)
    # While it chooses, the versions are there and empty.
    assert seen == [["1", "10", "2", "config.pbtxt", "labels.txt"]]
    assert set(files(directory.path)) == {"config.pbtxt", "labels.txt", *of("2")}
    assert not (directory.path / "1").exists()


def test_a_broken_config_is_told_as_before(store: MemoryStore, manager: Manager) -> None:
    store.put("m/config.pbtxt", "max_batchsize: 1")
    with pytest.raises(Exception, match="max_batchsize"):
        manager.load("m")


@pytest.mark.parametrize("path", ["s3://bucket/repo", "s3://bucket/repo/", "s3://bucket//repo"])
def test_unregister_by_any_spelling(manager: Manager, path: str) -> None:
    manager.unregister_repository(path)
    assert manager.registered_repositories() == {}


@pytest.mark.parametrize("path", ["s3://bucket/other", "s3://", "s3://bucket/../repo", "bucket/repo"])
def test_unregister_what_is_not_there(manager: Manager, path: str) -> None:
    assert error_of(InvalidArg, manager.unregister_repository, path) == (
        f"failed to unregister '{path}', repository not found"
    )


def test_a_failed_start_tells_the_place(store: MemoryStore, source: CloudSource) -> None:
    """Of models in the cloud as of local ones: file, line and column; an ensemble finds its members' names."""
    step = '{ model_name: "m" model_version: -1 input_map { key: "I" value: "I" } output_map { key: "O" value: "O" } }'
    io = "".join(f'{side} [ {{ name: "{side[0].upper()}" data_type: TYPE_FP32 dims: [ 1 ] }} ]\n'
                 for side in ("input", "output"))  # fmt: skip
    store.put("e/config.pbtxt", f'platform: "ensemble"\n{io}ensemble_scheduling {{ step [ {step} ] }}\n')
    store.put("e/1/", b"")
    store.put("bad/config.pbtxt", "\nmax_batchsize: 4\n")
    store.put("bad/1/model.fake", b"ok")
    options = cli.defaults(model_repository=("s3://bucket/repo",))
    failures = [LoadFailure("bad", "why"), LoadFailure("e", "for another reason")]
    lines = startup.failure_lines(options, failures, (), lambda names: [source.fetch_all(names)])
    assert lines[0] == "failed to load 'bad': why"
    assert lines[1].startswith("    bad/config.pbtxt:2:1: error: ")
    assert lines[-1] == "failed to load 'e': for another reason"
    assert not any("m/" in key for key in store.reads)
