"""The trace settings over HTTP and gRPC, beside the reference where there is one (TRITON_REFERENCE)."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2, service_pb2_grpc

from tests.conformance import reference
from tests.conformance.trace_cases import GRPC, HTTP, Case
from tests.helpers import raw
from tests.helpers.server import Model, ServerProcess, repository

FLAGS = ("--trace-config=level=TIMESTAMPS", "--trace-config=rate=100")
# What a parser of ours and the reference's say about text that is no JSON is not compared.


def http(address: tuple[str, int], case: Case) -> tuple[int, Any]:
    path = f"/v2/models/{case.model}/trace/setting" if case.model else "/v2/trace/setting"
    answer = raw.ask(address, raw.get(path) if case.body is None else raw.post(path, case.body.encode()))
    return answer.status, json.loads(answer.body)


def over_grpc(stub: Any, case: Case) -> tuple[int, Any]:
    request = service_pb2.TraceSettingRequest(model_name=case.model)
    for name, values in case.body.items():
        request.settings[name].value.extend(values)
    try:
        answer = stub.TraceSetting(request, timeout=20)
    except grpc.RpcError as error:
        return error.code().value[0], error.details()
    return 200, {name: list(one.value) for name, one in answer.settings.items()}


def asked(http_address: tuple[str, int], grpc_address: tuple[str, int]) -> list[tuple[int, Any]]:
    """Return the answers to all cases, in their order."""
    with grpc.insecure_channel(f"{grpc_address[0]}:{grpc_address[1]}") as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        return [http(http_address, case) for case in HTTP] + [over_grpc(stub, case) for case in GRPC]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("trace-settings")
    repository(path / "models", Model("one"), Model("two"))
    return path


@pytest.fixture(scope="module")
def answers(folder: Path) -> Iterator[list[tuple[int, Any]]]:
    with ServerProcess(folder / "models", *FLAGS, f"--trace-config=triton,file={folder}/traces") as server:
        yield asked(server.http, server.grpc)
    assert not (folder / "x").exists() and not (folder.parent / "x").exists()


CASES = [(f"{i:02}-{'http' if i < len(HTTP) else 'grpc'}", case) for i, case in enumerate(HTTP + GRPC)]


@pytest.mark.parametrize("index", range(len(CASES)), ids=[name for name, _ in CASES])
def test_each(answers: list[tuple[int, Any]], folder: Path, index: int) -> None:
    case, (status, answer) = CASES[index][1], answers[index]
    assert status == case.status, (case, answer)
    if case.error:
        assert (answer if index >= len(HTTP) else answer["error"]) == case.error
        return
    if case.model == "none":
        assert answer == {}
        return
    assert {name: answer[name] for name, _ in case.now} == dict(case.now)
    file = f"{folder}/traces"
    assert answer["trace_file"] == (file if index < len(HTTP) else [file])
    assert set(answer) == {"trace_level", "trace_rate", "trace_count", "log_frequency", "trace_file", "trace_mode"}


@pytest.mark.skipif(reference.VARIABLE not in os.environ, reason="no reference server")
def test_as_the_reference(answers: list[tuple[int, Any]], folder: Path) -> None:
    root = reference.python_models(folder / "models", folder / "python", ("one", "two"))
    flags = (*FLAGS, f"--trace-config=triton,file={folder}/traces", "--model-control-mode=explicit", "--load-model=*")
    with reference.Reference(root, folder / "log", *(part for flag in flags for part in flag.split("=", 1))) as other:
        theirs = asked(other.http, other.grpc)
    every = zip(CASES, answers, theirs, strict=True)
    differ = [name for (name, case), mine, its in every if mine != its and not case.differs]
    assert not differ, [(CASES[i][1], answers[i], theirs[i]) for i, (name, _) in enumerate(CASES) if name in differ]
    # A difference that has gone is to be struck from the table; where the state differs, later answers may agree.
    known = [i for i, (_, case) in enumerate(CASES) if case.differs]
    assert all(answers[i] != theirs[i] for i in known)


def test_without_a_file_nothing_can_be_turned_on(tmp_path: Path) -> None:
    with ServerProcess(repository(tmp_path / "models", Model("one"))) as server:
        for case, text in (
            (Case('{"trace_level":["TIMESTAMPS"]}'), "trace file name is not given"),
            (Case('{"trace_rate":"0"}'), None), (Case('{"trace_count":"0"}'), None),
            (Case('{"trace_level":["TENSORS"]}', model="one"), "sample rate must be non-zero"),
        ):  # fmt: skip
            status, answer = http(server.http, case)
            if text is None:
                assert (status, answer["trace_level"]) == (200, ["OFF"])
            else:
                assert (status, answer["error"]) == (400, f"Attempting to set invalid trace setting :{text}")


def test_a_models_settings_outlive_its_versions(tmp_path: Path) -> None:
    root = repository(tmp_path / "models", Model("one"))
    flags = (*FLAGS, f"--trace-config=triton,file={tmp_path}/traces", "--model-control-mode=explicit", "--load-model=*")
    with ServerProcess(root, *flags) as server, grpc.insecure_channel(":".join(map(str, server.grpc))) as channel:
        stub = service_pb2_grpc.GRPCInferenceServiceStub(channel)
        assert http(server.http, Case('{"trace_rate":"7","trace_count":"9"}', model="one"))[0] == 200
        assert raw.ask(server.http, raw.post("/v2/repository/models/one/unload", b"{}")).status == 200
        gone = "Request for unknown model : one"
        assert http(server.http, Case(None, model="one")) == (400, {"error": gone})
        assert over_grpc(stub, Case({}, model="one")) == (3, gone)
        assert raw.ask(server.http, raw.post("/v2/repository/models/one/load", b"{}")).status == 200
        _, answer = http(server.http, Case(None, model="one"))
        assert (answer["trace_rate"], answer["trace_count"]) == ("7", "9")
