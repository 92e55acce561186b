"""Warm-up and rate limiter: the same models in this server and in the reference; loads, texts, what models are asked.

Needs TRITON_REFERENCE (see reference.py). A warm-up that ends with an error is not among them: the reference crashes or
hangs after most of those (test_warmup_samples.py has the texts that it answered at times).
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from tests.conformance import reference
from tests.helpers import raw
from tests.helpers.python_models import model_of
from tests.helpers.server import ServerProcess

NOTES = """
import json, os

class TritonPythonModel:
    def initialize(self, args):
        parameters = json.loads(args["model_config"])["parameters"]
        self.decoupled = "decoupled" in parameters
        folder = os.environ["LIMITS_NOTES"]
        self.file = open(os.path.join(folder, args["model_instance_name"]), "a", buffering=1)

    def execute(self, requests):
        for request in requests:
            seen = {}
            for tensor in request.inputs():
                array = tensor.as_numpy()
                values = [v.decode() if isinstance(v, bytes) else v for v in array.ravel().tolist()]
                seen[tensor.name()] = [str(array.dtype), list(array.shape), values]
            rest = [request.flags(), request.correlation_id(), request.request_id(), request.timeout()]
            self.file.write(json.dumps([len(requests), seen, rest, sorted(request.requested_output_names())]) + "\\n")
        made = [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.ones((1, 1), np.int32))]) for _ in requests]
        if not self.decoupled:
            return made
        for request, response in zip(requests, made):
            sender = request.get_response_sender()
            sender.send(response)
            sender.send(response)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
        return None
"""
ONE = "instance_group [{ count: 1 kind: KIND_CPU }]\n"
TWO = "instance_group [{ count: 2 kind: KIND_CPU }]\n"
PASSIVE = ONE + "instance_group [{ count: 1 kind: KIND_CPU passive: true }]\n"
DECOUPLED = """parameters { key: "decoupled" value { string_value: "yes" } }
model_transaction_policy { decoupled: true }
"""


def base(kind: str = "INT32", batch: int = 4) -> str:
    return (
        f'backend: "python" max_batch_size: {batch}\ninput [{{ name: "IN" data_type: TYPE_{kind} dims: [2] }}]\n'
        'output [{ name: "OUT" data_type: TYPE_INT32 dims: [1] }]\n'
    )


def warm(source: str, *, rows: int = 1, more: str = "", kind: str = "INT32", dims: str = "2", name: str = "IN") -> str:
    value = f"value {{ data_type: TYPE_{kind} dims: [{dims}] {source} }}"
    return f'model_warmup [{{ name: "w" batch_size: {rows} {more} inputs {{ key: "{name}" {value} }} }}]\n'


ZERO = "zero_data: true"
FILE = 'input_data_file: "d"'
STRINGS = struct.pack("<I", 3) + b"abc" + struct.pack("<I", 0)
# name -> (config, content of warmup/d)
WARMUP: dict[str, tuple[str, bytes]] = {
    "zero": (base() + ONE + warm(ZERO, rows=2), b""),
    "count": (base() + TWO + warm(ZERO, rows=2, more="count: 2"), b""),
    "never": (base() + ONE + warm(ZERO, rows=0), b""),
    "several": (base() + ONE + warm(ZERO) + warm(ZERO, rows=4), b""),
    "file": (base() + ONE + warm(FILE, rows=2), bytes(range(16))),
    "strings": (base("STRING") + ONE + warm(ZERO, rows=2, kind="STRING"), b""),
    "random_strings": (base("STRING") + ONE + warm("random_data: true", kind="STRING"), b""),
    "file_of_strings": (base("STRING") + ONE + warm(FILE, kind="STRING"), STRINGS),
    "bad_strings": (base("STRING") + ONE + warm(FILE, kind="STRING"), b"abcdefghij"),
    "unbatched": (base(batch=0) + ONE + warm(ZERO), b""),
    "no_inputs": (base() + ONE + 'model_warmup [{ name: "w" batch_size: 1 }]\n', b""),
    "wrong_type": (base() + ONE + warm(ZERO, kind="FP32"), b""),
    "wrong_shape": (base() + ONE + warm(ZERO, dims="3"), b""),
    "decoupled": (base() + ONE + DECOUPLED + warm(ZERO, rows=2), b""),
    "passive": (base() + PASSIVE + warm(ZERO), b""),
}


def needs(resources: str) -> str:
    return base() + f"instance_group [{{ count: 2 kind: KIND_CPU rate_limiter {{ resources [ {resources} ] }} }}]\n"


LIMITED = {
    "device": needs('{ name: "R" count: 2 }'),
    "global": needs('{ name: "R" global: true count: 1 }'),
    "other": needs('{ name: "Q" count: 4 }'),
    "twice": needs('{ name: "R" count: 1 }, { name: "R" count: 3 }'),
    "both": needs('{ name: "R" count: 1 }, { name: "R" global: true count: 3 }'),
    "nothing": needs('{ name: "R" count: 0 }'),
    "nameless": needs("{ count: 2 }"),
}
# Flags, and the loads and unloads in their order.
ORDERS: dict[str, tuple[tuple[str, ...], str]] = {
    "maximum": ((), "device global other twice both nothing nameless -device -twice -nothing global"),
    "explicit": (
        ("--rate-limit-resource=R:2", "--rate-limit-resource=Q:4"),
        "device twice other global -device global",
    ),
    "of_a_device": (("--rate-limit-resource=R:9:1",), "device global other"),
    "smaller_of_two": (("--rate-limit-resource=R:9", "--rate-limit-resource=R:1"), "device global"),
    "larger_of_device_and_all": (("--rate-limit-resource=R:1", "--rate-limit-resource=R:2:0"), "device global other"),
}


class Side(NamedTuple):
    http: tuple[str, int]
    notes: Path

    def load(self, name: str, verb: str = "load") -> tuple[int, str]:
        answer = raw.ask(self.http, raw.post(f"/v2/repository/models/{name}/{verb}"))
        return answer.status, answer.json()["error"] if answer.status != 200 else ""

    def counted(self, name: str) -> tuple[int, int, int] | None:
        answer = raw.ask(self.http, raw.get(f"/v2/models/{name}/stats"))
        if answer.status != 200:
            return None
        found = answer.json()["model_stats"][0]
        return found["inference_count"], found["execution_count"], found["inference_stats"]["success"]["count"]

    def seen(self, name: str) -> dict[str, Any]:
        found = sorted(self.notes.glob(f"{name}_*"))
        return {file.name: [json.loads(line) for line in file.read_text().splitlines()] for file in found}


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if reference.VARIABLE not in os.environ:
        pytest.skip(f"{reference.VARIABLE} is not set: the path of the reference server")
    folder = tmp_path_factory.mktemp("limits")
    for name, (config, data) in WARMUP.items():
        model = model_of(folder, name, NOTES, config)
        (model / "warmup").mkdir()
        (model / "warmup" / "d").write_bytes(data)
    for name, config in LIMITED.items():
        model_of(folder, name, NOTES, config)
    return folder


@pytest.fixture(scope="module")
def pair(root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Side, Side]]:
    notes = [tmp_path_factory.mktemp(name) for name in ("ours", "theirs")]
    os.environ["LIMITS_NOTES"] = str(notes[1])
    try:
        with (
            ServerProcess(root, "--model-control-mode=explicit", env={"LIMITS_NOTES": str(notes[0])}) as process,
            reference.Reference(root, root.parent / "log", "--model-control-mode=explicit") as other,
        ):
            yield Side(process.http, notes[0]), Side(other.http, notes[1])
    finally:
        del os.environ["LIMITS_NOTES"]


@pytest.mark.parametrize("name", WARMUP)
def test_same_warm_up(pair: tuple[Side, Side], root: Path, name: str) -> None:
    ours, theirs = (side.load(name) for side in pair)
    assert ours == (theirs[0], theirs[1].replace(f"{root}/", ""))
    assert pair[0].counted(name) == pair[1].counted(name)
    assert pair[0].seen(name) == pair[1].seen(name)


@pytest.mark.parametrize("order", ORDERS)
def test_same_resources(root: Path, order: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LIMITS_NOTES", str(tmp_path))
    flags, steps = ORDERS[order]
    flags = ("--model-control-mode=explicit", "--rate-limit=execution_count", *flags)
    with ServerProcess(root, *flags) as process, reference.Reference(root, tmp_path / "log", *flags) as other:
        for step in steps.split():
            name, verb = step.lstrip("-"), "unload" if step.startswith("-") else "load"
            ours, theirs = (Side(http, tmp_path).load(name, verb) for http in (process.http, other.http))
            assert ours == theirs, step
