"""The table of unary gRPC calls over a real repository: answers, statuses, Triton's texts, faults of clients."""

from __future__ import annotations

import asyncio
import gzip
import json
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format

from tests.helpers.grpc_calls import SERVICE, FakeCall, Front
from tests.helpers.server import Model, repository
from triton_fast import protos
from triton_fast.app import MAX_LOADS
from triton_fast.config import to_json
from triton_fast.dataplane import EXTENSIONS
from triton_fast.errors import Code, InvalidArg, NotFound, ServerError
from triton_fast.frontends.grpc import calls, health, service
from triton_fast.frontends.grpc.service import METHODS, Method
from triton_fast.frontends.work import Where
from triton_fast.shared_memory import DISABLED

NOT_FOUND, INVALID, UNIMPLEMENTED, INTERNAL, UNAVAILABLE = 5, 3, 12, 13, 14
NATIVE = {"ModelInfer", "ModelStreamInfer"}
UNKNOWN_MODEL = "Request for unknown model: 'x' is not found"
BAD_VERSION = (
    "failed to get model version from specified version string 'one' (details: stol), "
    "version should be an integral value > 0"
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = repository(
        tmp_path_factory.mktemp("models"), Model("m", dims=(-1, 2)), Model("flat", "BYTES", (3,), 0), Model("spare")
    )
    (root / "m" / "3").mkdir()
    with (root / "m" / "config.pbtxt").open("a") as config:
        config.write("version_policy { all { } }\n")
    return root


@pytest.fixture(scope="module")
def front(root: Path) -> Iterator[Front]:
    with Front(root, "--model-control-mode=explicit", "--load-model=m", "--load-model=flat", "--id=fast") as front:
        yield front


def answer(front: Front, name: str, request: Any = None, response: str = "") -> Any:
    """The response message of a call that must succeed."""
    call = front.verb(name, request if request is not None else getattr(protos, f"{name}Request")())
    assert call.outcome == (0, "")
    (data,) = call.sent
    return getattr(protos, response or f"{name}Response").FromString(data)


def refused(front: Front, name: str, request: Any) -> tuple[int | None, str]:
    call = front.verb(name, request)
    assert call.sent == []
    return call.outcome


# --- the table --------------------------------------------------------------------------------------------------------


def test_the_table_has_every_unary_call_with_its_messages(front: Front) -> None:
    described = protos.POOL.FindServiceByName(service.SERVICE)
    assert {f"{SERVICE}{method.name}" for method in described.methods if method.name not in NATIVE} == {
        path for path in METHODS if path != health.CHECK
    }
    for method in described.methods:
        if method.name not in NATIVE:
            row = METHODS[SERVICE + method.name]
            assert row.request.DESCRIPTOR.full_name == method.input_type.full_name
    assert front.app.calls.keys() > METHODS.keys()


def test_the_answer_of_each_call_is_the_message_of_its_descriptor(front: Front) -> None:
    described = protos.POOL.FindServiceByName(service.SERVICE)
    fields = {
        "ModelReady": {"name": "m"}, "ModelMetadata": {"name": "m"}, "ModelConfig": {"name": "m"},
        "RepositoryModelLoad": {"model_name": "m"}, "RepositoryModelUnload": {"model_name": "spare"},
    }  # fmt: skip
    answered = set()
    for method in described.methods:
        row = METHODS.get(SERVICE + method.name)
        if row is not None:
            try:
                response = row.handler(front.plane, row.request(**fields.get(method.name, {})))
            except ServerError as error:
                assert error.code in (Code.UNSUPPORTED, Code.UNAVAILABLE)
                continue
            assert response.DESCRIPTOR.full_name == method.output_type.full_name
            answered.add(method.name)
    assert len(answered) == 14


def test_categories_and_threads() -> None:
    by_category: dict[str, set[str]] = {}
    for path, method in METHODS.items():
        by_category.setdefault(method.category, set()).add(path.rpartition("/")[2])
    verbs = ("Status", "Register", "Unregister")
    memory = {f"{kind}SharedMemory{verb}" for kind in ("System", "Cuda") for verb in verbs}
    assert by_category == {
        "health": {"ServerLive", "ServerReady", "ModelReady", "Check"},
        "metadata": {"ServerMetadata", "ModelMetadata"},
        "model-config": {"ModelConfig"},
        "statistics": {"ModelStatistics"},
        "model-repository": {"RepositoryIndex", "RepositoryModelLoad", "RepositoryModelUnload"},
        "shared-memory": memory,
        "trace": {"TraceSetting"},
        "logging": {"LogSettings"},
    }
    loads = {path.rpartition("/")[2] for path, method in METHODS.items() if method.where is Where.LOAD}
    assert loads == {"RepositoryModelLoad", "RepositoryModelUnload"}


# --- server and models ------------------------------------------------------------------------------------------------


def test_server(front: Front) -> None:
    assert answer(front, "ServerLive").live
    assert answer(front, "ServerReady").ready
    metadata = answer(front, "ServerMetadata")
    assert (metadata.name, metadata.version, tuple(metadata.extensions)) == ("fast", "2.73.0", EXTENSIONS)


def test_a_server_that_is_not_ready_or_exits(root: Path) -> None:
    with Front(root) as front:
        front.plane.started = False
        assert not answer(front, "ServerReady").ready
        assert answer(front, "ServerLive").live
        front.plane.exiting = True
        for name in ("ServerLive", "ServerReady"):
            request = getattr(protos, f"{name}Request")()
            assert refused(front, name, request) == (UNAVAILABLE, "Server exiting")
        for name in ("ModelReady", "ModelMetadata", "ModelConfig"):
            request = getattr(protos, f"{name}Request")(name="m")
            assert refused(front, name, request) == (UNAVAILABLE, "Server exiting")


@pytest.mark.parametrize("name", ["ModelReady", "ModelMetadata", "ModelConfig"])
def test_models_that_are_not_there(front: Front, name: str) -> None:
    request = getattr(protos, f"{name}Request")
    assert refused(front, name, request(name="x")) == (NOT_FOUND, UNKNOWN_MODEL)
    assert refused(front, name, request(name="m", version="2")) == (
        NOT_FOUND, "Request for unknown model: 'm' version 2 is not found"
    )  # fmt: skip
    assert refused(front, name, request(name="m", version="one")) == (INVALID, BAD_VERSION)
    assert refused(front, name, request(name="m", version="-1"))[0] == INVALID
    assert refused(front, name, request())[0] == NOT_FOUND


def test_a_version_that_was_unloaded_is_unavailable(root: Path) -> None:
    with Front(root, "--model-control-mode=explicit", "--load-model=flat") as front:
        answer(front, "RepositoryModelUnload", protos.RepositoryModelUnloadRequest(model_name="flat"))
        ready = protos.ModelReadyRequest
        assert refused(front, "ModelReady", ready(name="flat", version="1")) == (
            UNAVAILABLE, "Request for unknown model: 'flat' version 1 is not at ready state"
        )  # fmt: skip
        assert refused(front, "ModelReady", ready(name="flat")) == (
            NOT_FOUND, "Request for unknown model: 'flat' has no available versions"
        )  # fmt: skip


def test_model_ready(front: Front) -> None:
    for version in ("", "1", "3", "0003"):
        assert answer(front, "ModelReady", protos.ModelReadyRequest(name="m", version=version)).ready


def test_model_metadata(front: Front) -> None:
    metadata = answer(front, "ModelMetadata", protos.ModelMetadataRequest(name="m"))
    assert json_format.MessageToDict(metadata) == {
        "name": "m",
        "versions": ["1", "3"],
        "platform": "identity",
        "inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": ["-1", "-1", "2"]}],
        "outputs": [{"name": "OUTPUT0", "datatype": "FP32", "shape": ["-1", "-1", "2"]}],
    }
    metadata = answer(front, "ModelMetadata", protos.ModelMetadataRequest(name="m", version="1"))
    assert list(metadata.versions) == ["1"]
    metadata = answer(front, "ModelMetadata", protos.ModelMetadataRequest(name="flat"))
    assert (metadata.inputs[0].datatype, list(metadata.inputs[0].shape)) == ("BYTES", [3])


def test_model_config_is_the_completed_message(front: Front) -> None:
    config = answer(front, "ModelConfig", protos.ModelConfigRequest(name="m", version="3")).config
    assert config == front.plane.model_config("m", 3)
    assert (config.name, config.backend, config.max_batch_size) == ("m", "identity", 8)
    assert config.instance_group[0].count >= 1
    # What a client changes in its copy changes nothing here.
    config.name = "other"
    assert to_json(front.plane.model_config("m", 3))["name"] == "m"


def test_statistics(front: Front) -> None:
    def stats(**fields: str) -> list[Any]:
        return list(answer(front, "ModelStatistics", protos.ModelStatisticsRequest(**fields)).model_stats)

    assert [(s.name, s.version) for s in stats()] == [("flat", "1"), ("m", "1"), ("m", "3")]
    assert [(s.name, s.version) for s in stats(name="m")] == [("m", "1"), ("m", "3")]
    assert [(s.name, s.version) for s in stats(name="m", version="3")] == [("m", "3")]
    (flat,) = stats(name="flat")
    assert flat.HasField("inference_stats")
    assert (flat.inference_count, flat.inference_stats.success.count) == (0, 0)
    bad = [
        ({"name": "x"}, "requested model 'x' is not available"),
        ({"name": "m", "version": "2"}, "requested model version is not available for model 'm'"),
        ({"version": "one"}, BAD_VERSION),
    ]
    for fields, text in bad:
        assert refused(front, "ModelStatistics", protos.ModelStatisticsRequest(**fields)) == (INVALID, text)


def test_statistics_of_work(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every number that the verb gives reaches the message, batches too."""
    duration = {"count": 3, "ns": 4}
    given = {
        "name": "m", "version": "1", "last_inference": 5, "inference_count": 6, "execution_count": 2**63,
        "inference_stats": {"success": duration, "cache_miss": duration}, "response_stats": {}, "memory_usage": [],
        "batch_stats": [{"batch_size": 2, "compute_input": duration}, {"batch_size": 7, "compute_output": duration}],
    }  # fmt: skip
    monkeypatch.setattr(front.plane, "model_statistics", lambda name, version: {"model_stats": [given]})
    (found,) = answer(front, "ModelStatistics").model_stats
    assert (found.last_inference, found.inference_count, found.execution_count) == (5, 6, 2**63)
    assert (found.inference_stats.success.ns, found.inference_stats.cache_miss.count) == (4, 3)
    assert [(b.batch_size, b.compute_input.count, b.compute_output.ns) for b in found.batch_stats] == [
        (2, 3, 0), (7, 0, 4),
    ]  # fmt: skip


# --- repository -------------------------------------------------------------------------------------------------------


@pytest.fixture
def loader(root: Path) -> Iterator[Front]:
    with Front(root, "--model-control-mode=explicit", "--load-model=flat") as front:
        yield front


def rows(front: Front, **fields: bool) -> list[tuple[str, str, str, str]]:
    index = answer(front, "RepositoryIndex", protos.RepositoryIndexRequest(**fields))
    return [(m.name, m.version, m.state, m.reason) for m in index.models]


def load(front: Front, name: str, **parameters: Any) -> tuple[int | None, str]:
    request = protos.RepositoryModelLoadRequest(model_name=name)
    for key, value in parameters.items():
        kind = {bool: "bool_param", int: "int64_param", str: "string_param", bytes: "bytes_param"}[type(value)]
        setattr(request.parameters[key], kind, value)
    return front.verb("RepositoryModelLoad", request).outcome


def test_index(loader: Front) -> None:
    assert rows(loader) == [("flat", "1", "READY", ""), ("m", "", "", ""), ("spare", "", "", "")]
    assert rows(loader, ready=True) == [("flat", "1", "READY", "")]
    assert refused(loader, "RepositoryIndex", protos.RepositoryIndexRequest(repository_name="r")) == (
        UNIMPLEMENTED, "'repository_name' specification is not supported"
    )  # fmt: skip


def test_load_and_unload(loader: Front) -> None:
    assert load(loader, "spare") == (0, "")
    assert rows(loader, ready=True) == [("flat", "1", "READY", ""), ("spare", "1", "READY", "")]
    request = protos.RepositoryModelUnloadRequest(model_name="spare")
    request.parameters["unload_dependents"].bool_param = True
    request.parameters["else"].string_param = "ignored"
    answer(loader, "RepositoryModelUnload", request)
    assert rows(loader, ready=True) == [("flat", "1", "READY", "")]
    answer(loader, "RepositoryModelUnload", protos.RepositoryModelUnloadRequest(model_name="never"))
    assert load(loader, "never")[0] == INTERNAL
    assert load(loader, "never")[1].startswith("failed to load 'never', failed to poll from model repository")
    assert load(loader, "") == (INVALID, "Model name cannot be empty. Please enter a valid name to deploy.")
    assert load(loader, "../m")[0] == INVALID


def test_load_with_a_config(loader: Front) -> None:
    config = to_json(loader.plane.model_config("flat", -1)) | {"max_batch_size": 5, "input": [], "output": []}
    for side in ("input", "output"):
        config[side] = [{"name": f"{side.upper()}0", "data_type": "TYPE_STRING", "dims": [3]}]
    assert load(loader, "flat", config=json.dumps(config)) == (0, "")
    assert loader.plane.model_config("flat", -1).max_batch_size == 5
    assert load(loader, "flat", config="{") [0] == INVALID


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        ({"config": b"{}"}, "invalid value type for load parameter 'config', expected string_param."),
        ({"config": True}, "invalid value type for load parameter 'config', expected string_param."),
        ({"file:1/a": "x"}, "invalid value type for load parameter 'file:1/a', expected bytes_param."),
        ({"file:1/a": 4}, "invalid value type for load parameter 'file:1/a', expected bytes_param."),
        ({"files": b"x"}, "unrecognized load parameter 'files'."),
        ({"": "x"}, "unrecognized load parameter ''."),
    ],
)
def test_load_parameters_of_the_wrong_kind(loader: Front, parameters: dict[str, Any], text: str) -> None:
    assert load(loader, "spare", **parameters) == (INVALID, text)
    assert rows(loader, ready=True) == [("flat", "1", "READY", "")]


def test_a_parameter_without_a_value(loader: Front) -> None:
    request = protos.RepositoryModelLoadRequest(model_name="spare")
    request.parameters["config"].SetInParent()
    assert refused(loader, "RepositoryModelLoad", request) == (
        INVALID, "invalid value type for load parameter 'config', expected string_param."
    )  # fmt: skip
    unload = protos.RepositoryModelUnloadRequest(model_name="flat")
    for kind, value in (("int64_param", 1), ("string_param", "true"), ("bytes_param", b"")):
        setattr(unload.parameters["unload_dependents"], kind, value)
        assert refused(loader, "RepositoryModelUnload", unload) == (
            INVALID, "invalid value type for 'unload_dependents' parameter, expected bool_param."
        )  # fmt: skip


def test_files_of_a_load_come_as_they_are(root: Path, tmp_path: Path) -> None:
    flags = ("--model-control-mode=explicit", "--allow-code-upload=true")
    config = {"backend": "identity", "max_batch_size": 2}
    for side in ("input", "output"):
        config[side] = [{"name": f"{side.upper()}0", "data_type": "TYPE_INT8", "dims": [1]}]
    with Front(root, *flags) as front:
        uploaded = {"config": json.dumps(config), "file:1/data": b"\0\xff raw"}
        assert load(front, "spare", **uploaded) == (0, "")
        assert front.plane.model_config("spare", -1).input[0].data_type == 6
    with Front(root, flags[0]) as front:
        assert load(front, "spare", **uploaded) == (
            UNIMPLEMENTED,
            "Model file override is disabled. Start the server with '--allow-code-upload=true' to enable.",
        )


@pytest.mark.parametrize("name", ["RepositoryModelLoad", "RepositoryModelUnload"])
def test_loads_where_they_are_not_allowed(root: Path, loader: Front, name: str) -> None:
    request = getattr(protos, f"{name}Request")
    assert refused(loader, name, request(model_name="m", repository_name="r")) == (
        UNIMPLEMENTED, "'repository_name' specification is not supported"
    )  # fmt: skip
    with Front(root) as front:
        assert refused(front, name, request(model_name="m")) == (
            UNAVAILABLE, "explicit model load / unload is not allowed if polling is enabled"
        )  # fmt: skip


# --- what is off ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["System", "Cuda"])
def test_shared_memory(front: Front, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    status = getattr(protos, f"{kind}SharedMemoryStatusRequest")
    assert not answer(front, f"{kind}SharedMemoryStatus").regions
    assert refused(front, f"{kind}SharedMemoryStatus", status(name="r")) == (
        NOT_FOUND, f"Unable to find {kind.lower()} shared memory region: 'r'"
    )  # fmt: skip
    for verb in ("Register", "Unregister"):
        request = getattr(protos, f"{kind}SharedMemory{verb}Request")(name="r")
        assert refused(front, f"{kind}SharedMemory{verb}", request) == (UNIMPLEMENTED, DISABLED)
    row = {"name": "r", "byte_size": 64, **({"key": "/k", "offset": 8} if kind == "System" else {"device_id": 1})}
    monkeypatch.setattr(front.plane.shared_memory, "status", lambda of, name: [row] if of == kind.lower() else [])
    regions = answer(front, f"{kind}SharedMemoryStatus").regions
    assert {name: json_format.MessageToDict(r) for name, r in regions.items()}["r"].keys() >= {"name", "byteSize"}
    assert regions["r"].byte_size == 64


# --- calls that are not as they should be -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    ["", "/", "/x", "/inference.GRPCInferenceService/", SERVICE + "serverlive", SERVICE + "ServerLive/", SERVICE[1:]],
)
def test_unknown_calls(front: Front, path: str) -> None:
    call = FakeCall(path)
    assert front.app.start(call) is None
    assert (call.outcome, call.sent) == ((UNIMPLEMENTED, ""), [])


BROKEN = [
    b"\xff", b"\x0a", b"\x0a\x05a", b"\x0a\xff\xff\xff\xff\xff\xff\xff\xff\xff\x01", b"\x0a\x02\xc3\x28", b"\x0b" * 200,
]  # fmt: skip


@pytest.mark.parametrize("name", ["ModelReady", "ModelStatistics", "RepositoryIndex", "RepositoryModelLoad"])
def test_broken_messages(front: Front, name: str) -> None:
    for message in BROKEN:
        call = front.ask(SERVICE + name, message)
        assert (call.outcome, call.sent) == ((INTERNAL, "Unable to parse request"), [])


def test_a_call_without_a_message_and_one_with_two(front: Front) -> None:
    for name in ("ServerLive", "RepositoryIndex"):
        assert front.ask(SERVICE + name).outcome == (INTERNAL, "Unable to parse request")
        call = front.ask(SERVICE + name, b"", b"")
        assert (call.outcome, call.sent) == ((INTERNAL, calls.TOO_MANY), [])


def test_nothing_is_done_before_the_client_has_ended_its_side(front: Front) -> None:
    call = FakeCall(SERVICE + "ServerLive")
    handler = front.app.start(call)
    assert handler is not None
    handler.message(b"")
    assert (call.sent, call.status) == ([], None)
    handler.end()
    assert (len(call.sent), call.status) == (1, 0)
    # Late events of a call that is over.
    handler.message(b"")
    handler.end()
    handler.cancel()
    assert (len(call.sent), call.status) == (1, 0)


def test_a_cancelled_call_is_answered_by_nobody(front: Front) -> None:
    call = FakeCall(SERVICE + "ServerLive")
    handler = front.app.start(call)
    assert handler is not None
    handler.message(b"")
    handler.cancel()
    handler.end()
    assert (call.sent, call.status) == ([], None)


def test_large_messages_are_for_loads_only(front: Front) -> None:
    request = protos.ModelReadyRequest(name="m" * calls.MAX_MESSAGE).SerializeToString()
    assert front.ask(SERVICE + "ModelReady", request).outcome == (
        8, f"Received message larger than max ({len(request)} vs. {calls.MAX_MESSAGE})"
    )  # fmt: skip
    assert load(front, "x", **{"file:1/a": "x" * (2 * calls.MAX_MESSAGE)})[0] == INVALID


def test_what_should_not_happen_is_logged_and_told_to_nobody(front: Front, monkeypatch: pytest.MonkeyPatch) -> None:
    lines: list[str] = []
    monkeypatch.setattr(service.log, "error", lines.append)

    def fails(*_: object) -> Any:
        raise ZeroDivisionError("secret")

    for name in ("ServerLive", "RepositoryIndex"):
        path = SERVICE + name
        row = METHODS[path]._replace(handler=fails)
        monkeypatch.setitem(front.app.calls, path, ("health", lambda call, row=row: _unary(front, row, call)))
        assert front.ask(path, b"").outcome == (INTERNAL, "internal error, see the server log")
    assert lines == [f"{SERVICE}{name} failed: ZeroDivisionError: secret" for name in ("ServerLive", "RepositoryIndex")]


def _unary(front: Front, row: Method, call: FakeCall) -> Any:
    from triton_fast.frontends.grpc.server import Unary

    return Unary(front.app, row, call)


def test_work_that_cannot_be_handed_over(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with Front(root) as front:
        failures: list[BaseException] = []
        monkeypatch.setattr(front.app, "failed", failures.append)
        front.server.work.shutdown()
        call = front.ask(SERVICE + "RepositoryIndex", b"")
        assert call.outcome == (INTERNAL, "internal error, see the server log")
        assert [type(error) for error in failures] == [RuntimeError]


def test_a_load_that_waits_is_dropped_with_its_call(loader: Front) -> None:
    """All load threads are busy; a client that leaves meanwhile has loaded nothing, others are answered."""
    release = threading.Event()
    busy = [loader.server.loads.submit(release.wait, 30) for _ in range(MAX_LOADS)]

    async def run() -> None:
        given_up, other = FakeCall(SERVICE + "RepositoryModelLoad"), FakeCall(SERVICE + "RepositoryModelLoad")
        handlers = []
        for call, name in ((given_up, "spare"), (other, "m")):
            handler = loader.app.start(call)
            assert handler is not None
            handler.message(protos.RepositoryModelLoadRequest(model_name=name).SerializeToString())
            handler.end()
            handlers.append(handler)
        # The index needs no load thread; when it is answered, both loads are queued.
        index = FakeCall(SERVICE + "RepositoryIndex")
        handler = loader.app.start(index)
        assert handler is not None
        handler.message(b"")
        handler.end()
        await index.until(lambda: index.status is not None)
        handlers[0].cancel()
        turn = asyncio.Event()
        asyncio.get_running_loop().call_soon(turn.set)
        await turn.wait()
        release.set()
        await other.until(lambda: other.status is not None)
        assert other.outcome == (0, "")
        assert (given_up.sent, given_up.status) == ([], None)

    try:
        asyncio.run(run())
    finally:
        release.set()
    assert all(job.result() for job in busy)
    assert [name for name, *_ in rows(loader, ready=True)] == ["flat", "m", "m"]


# --- what inference asks for ------------------------------------------------------------------------------------------


def test_resolve(front: Front) -> None:
    assert front.app.resolve("m", "1") is front.plane.native_model("m", 1)
    assert front.app.resolve("m", "") is front.plane.native_model("m", 3)
    with pytest.raises(NotFound, match="unknown model: 'x' is not found"):
        front.app.resolve("x", "")
    with pytest.raises(InvalidArg, match="should be an integral value > 0"):
        front.app.resolve("m", "1.0")


def test_errors_of_the_engine(front: Front) -> None:
    statuses = {0: 2, 1: 13, 2: 5, 3: 3, 4: 14, 5: 12, 6: 6, 7: 1, 99: 2, -1: 2}
    assert {code: front.app.error(code, "t") for code in statuses} == {code: (s, "t") for code, s in statuses.items()}


def test_compression(front: Front) -> None:
    data = b"abc" * 1000
    assert front.app.inflate(gzip.compress(data), 1, 3000) == data
    assert front.app.inflate(zlib.compress(data), 2, 3000) == data
    for encoding, wbits in ((1, 31), (2, 15)):
        sizes = [len(front.app.deflate(data, encoding, level)) for level in (1, 9)]
        assert sizes[1] <= sizes[0] < len(data)
        assert zlib.decompress(front.app.deflate(data, encoding, 9), wbits) == data
    with pytest.raises(InvalidArg, match=r"value of 2999 bytes\. Use --grpc-max-inflated-size to increase the limit\."):
        front.app.inflate(gzip.compress(data), 1, 2999)


def test_texts_that_utf8_cannot_hold_are_sent_as_they_can(front: Front) -> None:
    call = FakeCall("/x")
    calls.CallHandler(call).finish(INVALID, "file \udcff")
    assert call.outcome == (INVALID, "file ?")
