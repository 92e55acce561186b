"""Lines of Python models say which model, version and instance they are of, and which request where it is known."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.helpers import python_models, raw
from tests.helpers.server import ServerProcess

CODE = """
class TritonPythonModel:
    def initialize(self, args):
        pb_utils.Logger.log_info("begins")

    def execute(self, requests):
        print("printed\\x1b[2J")
        pb_utils.Logger.log_warn("logged")
        return [pb_utils.InferenceResponse([pb_utils.Tensor(
            "OUTPUT0", pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy())]) for request in requests]
"""
CONFIG = """
backend: "python"
max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [-1] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [-1] }]
instance_group [{ count: 1 kind: KIND_CPU }]
"""
ABOUT = {"model": "talks", "version": 1, "instance": "talks_0_0"}


def test_fields(tmp_path: Path) -> None:
    python_models.model_of(tmp_path, "talks", CODE, CONFIG)
    with ServerProcess(tmp_path, "--log-format=json") as process:

        def line(message: str) -> dict[str, object]:
            found = json.loads(process.wait_for_log(f'"message":"{message}'))
            return {key: found[key] for key in ("model", "version", "instance", "id") if key in found}

        assert line("begins") == ABOUT
        assert line("loading: talks:1") == {"model": "talks", "version": 1}
        assert line("successfully loaded 'talks'") == {"model": "talks"}
        assert raw.ask(process.http, raw.infer_json("talks", [1], id="r\n1")).status == 200
        assert line("logged") == {**ABOUT, "id": "r\n1"}
        assert line("printed") == ABOUT
        assert "\x1b" not in process.log()


IN_PROCESS = 'parameters { key: "EXECUTION_MODE" value { string_value: "in_process" } }\n'
BATCHES = "dynamic_batching { preferred_batch_size: [3] max_queue_delay_microseconds: 60000000 }\n"
COROUTINE = CODE.replace("def execute", "async def execute")
TRACED = ("--trace-config=mode=opentelemetry", "--trace-config=opentelemetry,url=http://127.0.0.1:1/v1/traces",
          "--trace-config=level=TIMESTAMPS", "--trace-config=rate=0")  # fmt: skip


@pytest.mark.parametrize("config", [CONFIG, CONFIG + IN_PROCESS], ids=["process", "in process"])
@pytest.mark.parametrize("code", [CODE, COROUTINE], ids=["function", "coroutine"])
def test_requests_of_a_line(tmp_path: Path, config: str, code: str) -> None:
    """One request with its trace; of a batch all ids, a request without one left out."""
    code = code.replace('        print("printed\\x1b[2J")\n', "")
    python_models.model_of(tmp_path, "talks", code, config)
    python_models.model_of(tmp_path, "together", code.replace('"logged"', '"batched"'), config + BATCHES)
    with ServerProcess(tmp_path, "--log-format=json", *TRACED) as process:
        trace = "0af7651916cd43dd8448eb211c80319c"
        context = f"traceparent: 00-{trace}-b7ad6b7169203331-01"
        assert raw.ask(process.http, raw.infer_json("talks", [1], context, id="one")).status == 200
        found = json.loads(process.wait_for_log('"message":"logged"'))
        assert (found["id"], found["trace"], found["instance"]) == ("one", trace, "talks_0_0")
        with ThreadPoolExecutor(3) as threads:
            for name in ("a", "b", ""):
                more = {"id": name} if name else {}
                threads.submit(raw.ask, process.http, raw.infer_json("together", [1], **more))
            found = json.loads(process.wait_for_log('"message":"batched"'))
        assert sorted(found["ids"].split(", ")) == ["a", "b"]
        assert not {"id", "trace"} & set(found)


@pytest.mark.parametrize("config", [CONFIG, CONFIG + IN_PROCESS], ids=["process", "in process"])
def test_traced_to_a_file(tmp_path: Path, config: str) -> None:
    """A trace that goes to a file has no id of the kind that collectors know; lines of its request do without."""
    python_models.model_of(tmp_path / "models", "talks", CODE, config)
    flags = (f"--trace-config=triton,file={tmp_path}/trace", "--trace-config=level=TIMESTAMPS", "--trace-config=rate=1")
    with ServerProcess(tmp_path / "models", "--log-format=json", *flags) as process:
        for name in ("one", "two"):
            assert raw.ask(process.http, raw.infer_json("talks", [1], id=name)).status == 200
            found = json.loads(process.wait_for_log(f'"message":"logged".*"{name}"'))
            assert (found["id"], found["instance"]) == (name, "talks_0_0")
            assert "trace" not in found
