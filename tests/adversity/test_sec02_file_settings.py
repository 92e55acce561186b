"""SEC-02: no file location is set over the network: not of the log and the traces, nor by the config of a load.

Source: spec/http.md 8 and 9, spec/grpc.md 7.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import raw
from tests.helpers.grpc_channel import Channel
from tests.helpers.server import Model, ServerProcess, repository
from triton_fast import protos

LOG = "log file location can not be updated through network protocol"
TRACE = "trace file location can not be updated through network protocol"
UNIMPLEMENTED = 12
INVALID_ARGUMENT = 3


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("settings")


@pytest.fixture(scope="module")
def served(place: Path) -> Iterator[ServerProcess]:
    root = repository(place / "models", Model("m"))
    flags = (f"--trace-config=triton,file={place / 'trace.json'}", "--trace-config=level=TIMESTAMPS")
    with ServerProcess(root, *flags) as server:
        yield server


def targets(place: Path) -> list[Any]:
    return [str(place / "written"), "../written", "/proc/self/mem", "", "a\0b", "x" * 5000, 1, None, ["x"], {"a": 1}]


def untouched(place: Path) -> bool:
    return not (place / "written").exists() and {p.name for p in place.iterdir()} <= {
        "models",
        "trace.json",
        "trace.json.0",
    }


def test_log_file_over_http(served: ServerProcess, place: Path) -> None:
    before = raw.ask(served.http, raw.get("/v2/logging")).json()
    for target in targets(place):
        for more in ({},) if target is None else ({}, {"log_info": False, "log_verbose_level": 3}):
            body = json.dumps({**more, "log_file": target}).encode()
            answer = raw.ask(served.http, raw.post("/v2/logging", body))
            # null asks for nothing; whether it is refused is left open, that it changes nothing is checked below.
            assert target is None or (answer.status, answer.error) == (501, LOG), target
    # All or nothing: what stood beside the file is not taken either.
    assert raw.ask(served.http, raw.get("/v2/logging")).json() == before
    assert untouched(place)


@pytest.mark.parametrize("path", ["/v2/trace/setting", "/v2/models/m/trace/setting"])
def test_trace_file_over_http(served: ServerProcess, place: Path, path: str) -> None:
    before = raw.ask(served.http, raw.get(path)).json()
    for target in targets(place):
        for more in ({},) if target is None else ({}, {"trace_rate": "7"}):
            answer = raw.ask(served.http, raw.post(path, json.dumps({**more, "trace_file": target}).encode()))
            assert target is None or (answer.status, answer.error) == (501, TRACE), target
    assert raw.ask(served.http, raw.get(path)).json() == before
    assert untouched(place)


def test_log_file_over_grpc(served: ServerProcess, place: Path) -> None:
    with Channel(served.grpc) as channel:
        before = channel.ask("LogSettings").message
        for target in targets(place):
            request = protos.LogSettingsRequest()
            request.settings["log_file"].string_param = str(target)
            assert channel.ask("LogSettings", request).outcome == (UNIMPLEMENTED, LOG)
            request.settings["log_info"].bool_param = False
            assert channel.ask("LogSettings", request).outcome == (UNIMPLEMENTED, LOG)
        assert channel.ask("LogSettings").message == before
    assert untouched(place)


@pytest.mark.parametrize("model", ["", "m"])
def test_trace_file_over_grpc(served: ServerProcess, place: Path, model: str) -> None:
    with Channel(served.grpc) as channel:
        before = channel.ask("TraceSetting", protos.TraceSettingRequest(model_name=model)).message
        for target in targets(place):
            for values in ([str(target)], [], [str(target), "x"]):
                request = protos.TraceSettingRequest(model_name=model)
                request.settings["trace_file"].value.extend(values)
                assert channel.ask("TraceSetting", request).outcome == (UNIMPLEMENTED, TRACE)
        assert channel.ask("TraceSetting", protos.TraceSettingRequest(model_name=model)).message == before
    assert untouched(place)


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_config_of_a_load(place: Path, protocol: str) -> None:
    """The interpreter of a Python model's workers; every other such place: unit/test_backend_paths.py."""
    root = repository(place / f"loaded-{protocol}", Model("m"))
    folder = root / "p" / "1"
    folder.mkdir(parents=True)
    (folder / "model.py").write_text("class TritonPythonModel:\n    def execute(self, requests):\n        return []\n")
    tensor = [{"name": "X", "data_type": "TYPE_FP32", "dims": [1]}]
    given = {"backend": "python", "input": tensor, "output": tensor,
             "parameters": {"EXECUTION_ENV_PATH": {"string_value": str(place)}}}  # fmt: skip
    with ServerProcess(root, "--model-control-mode=explicit", "--load-model=m") as server:
        if protocol == "http":
            body = json.dumps({"parameters": {"config": json.dumps(given)}}).encode()
            answer = raw.ask(server.http, raw.post("/v2/repository/models/p/load", body))
            status, text = answer.status, answer.error
        else:
            request = protos.RepositoryModelLoadRequest(model_name="p")
            request.parameters["config"].string_param = json.dumps(given)
            with Channel(server.grpc) as channel:
                status, text = channel.ask("RepositoryModelLoad", request).outcome
        assert (status, protocol) in ((400, "http"), (INVALID_ARGUMENT, "grpc"))
        assert text.startswith("Invalid config override: parameter 'EXECUTION_ENV_PATH' of model 'p' may not be")
        assert "--allow-code-upload=true" in text
