"""Hostile and broken models: each is refused with its reason, and the server serves the others.

Hundreds of mutated configurations and ONNX files lie in one repository beside good models; a server must come up on it.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from tests.helpers import onnx_models
from tests.helpers.raw import Client, ask, get, infer_json, post, values_of
from tests.helpers.server import Model, ServerProcess, repository

CONFIG = """name: "{name}"
backend: "identity"
max_batch_size: 8
input [
  {{ name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] }},
  {{ name: "INPUT1" data_type: TYPE_INT64 dims: [ 2, 3 ] }}
]
output [
  {{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [ -1 ] }},
  {{ name: "OUTPUT1" data_type: TYPE_INT64 dims: [ 2, 3 ] }}
]
instance_group [ {{ count: 1 kind: KIND_CPU }} ]
dynamic_batching {{
  preferred_batch_size: [ 4, 8 ]
  max_queue_delay_microseconds: 100
}}
version_policy {{ latest {{ num_versions: 1 }} }}
parameters {{ key: "execute_delay_ms" value {{ string_value: "0" }} }}
"""
NUMBERS = [
    "-1",
    "0",
    "2147483647",
    "2147483648",
    "9223372036854775807",
    "18446744073709551615",
    "1" + "0" * 30,
    "1.5",
    '"x"',
    "x",
]
ONNX_CONFIG = 'backend: "onnxruntime"\n'


def configs() -> dict[str, str]:
    """Name -> mutated config.pbtxt, the same in every run."""
    rng = random.Random(18)
    made: dict[str, str] = {}
    lines = CONFIG.splitlines(keepends=True)
    for i in range(len(lines)):
        made[f"without_line_{i}"] = "".join(lines[:i] + lines[i + 1 :])
        made[f"twice_line_{i}"] = "".join(lines[: i + 1] + lines[i:])
    for i in range(0, len(CONFIG), 23):
        made[f"cut_at_{i}"] = CONFIG[:i]
    for key in (
        "max_batch_size: 8",
        "count: 1",
        "num_versions: 1",
        "microseconds: 100",
        "[ 4, 8 ]",
        "[ -1 ]",
        "[ 2, 3 ]",
    ):
        for k, number in enumerate(NUMBERS):
            to = f"[ {number} ]" if "[" in key else f"{key.split(':')[0]}: {number}"
            made[f"number_{key.split(':')[0].strip('[ ]').replace(', ', '_')}_{k}"] = CONFIG.replace(key, to, 1)
    for i in range(40):
        text = CONFIG
        for _ in range(rng.randint(1, 4)):
            at = rng.randrange(len(text))
            text = (
                text[:at]
                + rng.choice(["{{", "}}", "[", "]", '"', ":", "\\", "\x00", "\x7f", "9", "a", "#", ""])
                + text[at + 1 :]
            )
        made[f"noise_{i}"] = text
    special = {
        "empty": "", "spaces": " \n" * 10, "nul": "\x00" * 100, "json": '{{"name": "x"}}',
        "binary": "\x01\x02\x7f" * 300,
        "nested": "parameters {{ " * 10000, "deep": "[" * 100000, "long_string": f'platform: "{"x" * 300000}"',
        "other_name": CONFIG.replace('"{name}"', '"another"'), "path_name": CONFIG.replace('"{name}"', '"../m"'),
        "no_backend": CONFIG.replace('backend: "identity"\n', ""),
        "unknown_backend": CONFIG.replace("identity", "absent"),
        "path_backend": CONFIG.replace('"identity"', '"../../identity"'),
        "python_backend": CONFIG.replace("identity", "os; true"),
        "gpu": CONFIG.replace("KIND_CPU", "KIND_GPU"), "unknown_kind": CONFIG.replace("KIND_CPU", "KIND_X"),
        "label_path": CONFIG.replace('name: "OUTPUT0"', 'name: "OUTPUT0" label_filename: "../../../../etc/passwd"'),
        "default_path": CONFIG + 'default_model_filename: "../../m/config.pbtxt"\n',
        "delay": CONFIG.replace('string_value: "0"', 'string_value: "9999999999999"'),
        "delay_text": CONFIG.replace('string_value: "0"', 'string_value: "-1"'),
        "same_names": CONFIG.replace("INPUT1", "INPUT0"), "no_name": CONFIG.replace('name: "INPUT0"', ""),
        "bad_type": CONFIG.replace("TYPE_INT64", "TYPE_INVALID"),
        "unknown_type": CONFIG.replace("TYPE_INT64", "TYPE_X"),
        "many_dims": CONFIG.replace("[ 2, 3 ]", "[ " + ", ".join(["1"] * 5000) + " ]"),
        "zero_dim": CONFIG.replace("[ 2, 3 ]", "[ 0 ]"),
        "overflow": CONFIG.replace("[ 2, 3 ]", "[ 4611686018427387904, 4 ]"),
        "unknown_field": CONFIG + "max_bach_size: 4\n", "control": CONFIG + "# \x1b[31m\x07\n",
        "versions": CONFIG.replace("latest {{ num_versions: 1 }}", "specific {{ versions: [ 7 ] }}"),
        "instances": CONFIG.replace("count: 1 ", "count: 1000000 "),
    }  # fmt: skip
    made.update({f"special_{key}": text for key, text in special.items()})
    return made


def onnx_files() -> dict[str, bytes]:
    """Name -> broken .onnx file."""
    rng = random.Random(81)
    good = onnx_models.mlp()
    made: dict[str, bytes] = {"empty": b"", "zeros": bytes(1000), "text": b"not a model" * 50, "ones": b"\xff" * 1000}
    for i in range(1, 24):
        made[f"cut_{i}"] = good[: len(good) * i // 24]
    for i in range(40):
        data = bytearray(good)
        for _ in range(rng.randint(1, 6)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        made[f"flipped_{i}"] = bytes(data)
    made["twice"] = good + good
    made["doubled_start"] = good[:100] + good
    made["length_lies"] = b"\x3a\xff\xff\xff\xff\x0f" + good
    made["groups"] = b"\x0b" * 100_000
    made.update(hostile_graphs())
    return made


def graph(nodes: list[Any], weights: list[Any] = [], opset: int = 17, dims: Any = ("n",)) -> bytes:  # noqa: B006
    io = [helper.make_tensor_value_info(name, TensorProto.FLOAT, list(dims)) for name in ("X", "Y")]
    model = helper.make_model(
        helper.make_graph(nodes, "g", io[:1], io[1:], weights),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    return bytes(model.SerializeToString())


def hostile_graphs() -> dict[str, bytes]:
    same = helper.make_node("Identity", ["X"], ["Y"])
    external = onnx.TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    for key, value in (("location", "../../../../../../etc/passwd"), ("offset", "0"), ("length", "16")):
        external.external_data.add(key=key, value=value)
    lying = onnx.TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[2**40], raw_data=struct.pack("4f", 1, 2, 3, 4)
    )
    negative = onnx.TensorProto(
        name="w", data_type=TensorProto.FLOAT, dims=[-4], raw_data=np.ones(4, np.float32).tobytes()
    )
    add = helper.make_node("Add", ["X", "w"], ["Y"])
    return {
        "unknown_op": graph([helper.make_node("NoSuchOp", ["X"], ["Y"])]),
        "unknown_domain": graph([helper.make_node("Identity", ["X"], ["Y"], domain="com.evil")]),
        "future_opset": graph([same], opset=9999),
        "cycle": graph([helper.make_node("Add", ["X", "b"], ["a"]), helper.make_node("Add", ["a", "X"], ["b"]), same]),
        "no_producer": graph([helper.make_node("Identity", ["absent"], ["Y"])]),
        "two_producers": graph([same, same]),
        "external_path": graph([add], [external]),
        "lying_weight": graph([add], [lying]),
        "negative_weight": graph([add], [negative]),
        "no_nodes": graph([]),
    }


CONFIGS = configs()
FILES = onnx_files()


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = repository(tmp_path_factory.mktemp("hostile"), Model("m"))
    for name, text in CONFIGS.items():
        (root / name / "1").mkdir(parents=True)
        body = text.replace("{name}", name).replace("{{", "{").replace("}}", "}")
        (root / name / "config.pbtxt").write_bytes(body.encode("latin-1"))
    for name, data in FILES.items():
        (root / f"onnx_{name}" / "1").mkdir(parents=True)
        (root / f"onnx_{name}" / "config.pbtxt").write_text(ONNX_CONFIG)
        (root / f"onnx_{name}" / "1" / "model.onnx").write_bytes(data)
    (root / "good_onnx" / "1").mkdir(parents=True)
    (root / "good_onnx" / "1" / "model.onnx").write_bytes(onnx_models.identity())
    (root / "no_version").mkdir()
    (root / "file_version").mkdir()
    (root / "file_version" / "1").write_text("no folder")
    (root / "a_file").write_text("no model")
    (root / "config_is_folder" / "config.pbtxt").mkdir(parents=True)
    (root / "link_out").symlink_to("/etc")
    (root / "dangling").symlink_to(root / "absent")
    (root / "loop").symlink_to(root / "loop")
    return root


@pytest.fixture(scope="module")
def server(hostile: Path) -> Iterator[ServerProcess]:
    with ServerProcess(
        hostile, "--exit-on-error=false", "--strict-readiness=false", "--exit-timeout-secs=20"
    ) as server:
        yield server


def index(server: ServerProcess) -> dict[str, dict[str, str]]:
    return {row["name"]: row for row in ask(server.http, post("/v2/repository/index")).json()}


def test_there_are_enough_of_them() -> None:
    assert len(CONFIGS) + len(FILES) > 280


def test_the_good_ones_serve(server: ServerProcess) -> None:
    assert values_of(ask(server.http, infer_json("m", [1, 2]))) == [1, 2]
    body = {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    answer = ask(server.http, post("/v2/models/good_onnx/infer", json.dumps(body).encode()))
    assert values_of(answer) == [1, 2, 3, 4]


def test_each_is_ready_or_says_why_not(server: ServerProcess) -> None:
    def explained(row: dict[str, str]) -> bool:
        return row["state"] == "READY" or (row["state"] == "UNAVAILABLE" and 0 < len(row.get("reason", "")) <= 4000)

    rows = index(server)
    names = [*CONFIGS, *(f"onnx_{file}" for file in FILES)]
    wrong = {name: rows.get(name) for name in names if name not in rows or not explained(rows[name])}
    assert not wrong
    refused = [name for name, row in rows.items() if row.get("state") == "UNAVAILABLE"]
    assert len(refused) > 150


def test_what_is_hopeless_is_refused(server: ServerProcess) -> None:
    rows = index(server)
    must_fail = [
        *(f"onnx_cut_{i}" for i in range(1, 20)), "onnx_empty", "onnx_zeros", "onnx_text", "onnx_ones",
        "onnx_unknown_op",
        "onnx_unknown_domain", "onnx_future_opset", "onnx_cycle", "onnx_no_producer", "onnx_external_path",
        "onnx_lying_weight",
        "onnx_length_lies", "special_unknown_backend", "special_path_backend", "special_python_backend",
        "special_label_path",
        "special_default_path", "special_other_name", "special_path_name", "special_unknown_type", "special_bad_type",
        "special_unknown_field", "special_delay", "special_delay_text", "special_same_names", "special_no_name",
        "special_nul",
        "special_overflow", "special_zero_dim", "special_nested", "special_deep", "special_instances",
    ]  # fmt: skip
    ready = [name for name in must_fail if rows[name]["state"] == "READY"]
    assert ready == []


def test_reasons_hold_no_control_characters_and_no_passwords(server: ServerProcess) -> None:
    for row in index(server).values():
        reason = row.get("reason", "")
        assert "root:x:" not in reason
        assert not any(ord(c) < 32 and c not in "\n\t" for c in reason), row
    assert "\x1b" not in server.log()
    assert "\x00" not in server.log()


def test_those_that_came_up_answer(server: ServerProcess) -> None:
    """Whatever was taken must be served: metadata, config, and a request that it may refuse but must answer."""
    with Client(server.http) as client:
        for name, row in index(server).items():
            if row.get("state") != "READY":
                assert client.ask(get(f"/v2/models/{name}")).status in {400, 404, 503}
                continue
            metadata = client.ask(get(f"/v2/models/{name}"))
            assert metadata.status == 200, (name, metadata)
            assert client.ask(get(f"/v2/models/{name}/config")).status == 200
            inputs = [
                {"name": t["name"], "datatype": t["datatype"], "shape": [max(d, 1) for d in t["shape"]],
                 "parameters": {"binary_data_size": 4}}
                for t in metadata.json()["inputs"]
            ]  # fmt: skip
            head = json.dumps({"inputs": inputs}).encode()
            request = post(f"/v2/models/{name}/infer", head + bytes(4), f"Inference-Header-Content-Length: {len(head)}")
            assert client.ask(request).status in {200, 400, 500}, name
    assert server.alive


def test_loading_them_over_http(hostile: Path) -> None:
    """In explicit mode each load is answered with its error, and the model that serves is not touched."""
    flags = ["--model-control-mode=explicit", "--load-model=m", "--exit-timeout-secs=20"]
    names = [*list(CONFIGS)[::12], *(f"onnx_{file}" for file in list(FILES)[::8]), "no_version", "file_version",
             "config_is_folder", "dangling", "loop", "a_file", "absent", "link_out"]  # fmt: skip
    with ServerProcess(hostile, *flags) as server, Client(server.http) as client:
        for name in names:
            answer = client.ask(post(f"/v2/repository/models/{name}/load"))
            if answer.status != 200:
                assert answer.status in {400, 404, 500}, (name, answer)
                assert name in answer.error
            assert client.ask(post(f"/v2/repository/models/{name}/unload")).status == 200
            assert values_of(client.ask(infer_json("m", [1]))) == [1]


@pytest.mark.parametrize("config", [
    "", "{", "[]", "null", "1", '"x"', "{}", '{"name": 1}', '{"unknown": 1}', '{"max_batch_size": 99999999999}',
    '{"backend": "absent"}',
    '{"name": "other"}', '{"input": {}}', '{"input": [1]}', '{"instance_group": [{"count": 1000000}]}',
    '{"a":' * 200 + "1" + "}" * 200,
    "\x00", "\ud800".encode("utf-8", "surrogatepass").decode("latin-1"), '{"max_batch_size": NaN}',
    '{"parameters": {"x": {"string_value": 5}}}',
])  # fmt: skip
def test_bad_config_overrides(explicit: ServerProcess, config: str) -> None:
    """An override that fails leaves the version that serves as it is."""
    with Client(explicit.http) as client:
        body = json.dumps({"parameters": {"config": config}}).encode()
        answer = client.ask(post("/v2/repository/models/m/load", body))
        assert answer.status in {200, 400, 500}, answer
        if answer.status == 200:
            assert config in {"", "{}"}
        else:
            assert answer.error
        assert values_of(client.ask(infer_json("m", [1]))) == [1]


@pytest.fixture(scope="module")
def explicit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    root = repository(tmp_path_factory.mktemp("explicit"), Model("m"))
    with ServerProcess(root, "--model-control-mode=explicit", "--load-model=m") as server:
        yield server
