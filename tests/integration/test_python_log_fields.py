"""Lines of Python models say which model, version and instance they are of, and which request where it is known."""

from __future__ import annotations

import json
from pathlib import Path

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
