"""A decoupled model from its repository: completed, loaded, shown, and refused where only one answer is possible.

What other backends do with such a config is in test_decoupled_by_config.py and test_backend_template.py.
"""

from __future__ import annotations

import json
from pathlib import Path

from tests.helpers import raw
from tests.helpers.server import ServerProcess

INFER = json.dumps({
    "inputs": [
        {"name": "IN", "datatype": "INT32", "shape": [1], "data": [4]},
        {"name": "DELAY", "datatype": "UINT32", "shape": [1], "data": [0]},
        {"name": "WAIT", "datatype": "UINT32", "shape": [1], "data": [0]},
    ]
}).encode()  # fmt: skip


def test_a_decoupled_model_loads_and_http_infer_refuses_it(tmp_path: Path) -> None:
    (tmp_path / "r" / "1").mkdir(parents=True)
    (tmp_path / "r" / "config.pbtxt").write_text('backend: "repeat"\n')
    with ServerProcess(tmp_path) as process:
        config = json.loads(raw.ask(process.http, raw.get("/v2/models/r/config")).body)
        assert config["model_transaction_policy"] == {"decoupled": True}
        assert [entry["name"] for entry in config["input"]] == ["IN", "DELAY", "WAIT"]
        reply = raw.ask(process.http, raw.post("/v2/models/r/infer", INFER))
        assert reply.status == 501
        text = "HTTP end point doesn't support models with decoupled transaction policy"
        assert json.loads(reply.body) == {"error": text}
