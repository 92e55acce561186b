"""Python models with a sequence batcher, and dialogues with them, for this server and the reference alike.

A model answers each request with what it was told: its place in the batch and every control. A dialogue is a list of
requests, some of which are only waited for later.
"""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from tests.helpers import raw
from tests.helpers.grpc_channel import Channel, infer_request
from tests.helpers.python_models import model_of

CODE = '''
import json


class TritonPythonModel:
    def initialize(self, args):
        config = json.loads(args["model_config"])
        self.shape = (1, 1) if config["max_batch_size"] else (1,)
        sequences = config["sequence_batching"]
        self.controls = [control["name"] for control in sequences.get("control_input", [])]
        self.passes = 3 if sequences.get("iterative_sequence") else 1
        self.seen = {}

    def told(self, request, index, n):
        found = {"place": [index, n], "flags": request.flags(), "id": request.correlation_id()}
        for name in self.controls:
            data = pb_utils.get_input_tensor_by_name(request, name).as_numpy()
            values = [one.decode() if isinstance(one, bytes) else one for one in data.reshape(-1).tolist()]
            found[name] = [str(data.dtype), list(data.shape), values]
        return found

    def execute(self, requests):
        told = [self.told(request, k, len(requests)) for k, request in enumerate(requests)]
        ready = [one["READY"][2] for one in told if "READY" in one]
        answers = []
        for request, one in zip(requests, told):
            if pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy().reshape(-1)[0] == 13:
                answers.append(pb_utils.InferenceResponse([], pb_utils.TritonError("unlucky")))
                continue
            before = self.seen.setdefault(str(one["id"]), [])
            before.append({**one, "ready": ready})
            if len(before) < self.passes:
                request.set_release_flags(pb_utils.TRITONSERVER_REQUEST_RELEASE_RESCHEDULE)
                answers.append(None)
                continue
            text = json.dumps(self.seen.pop(str(one["id"]))).encode()
            tensor = np.array([text], object).reshape(self.shape)
            answers.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", tensor)]))
        return answers
'''
VALUES = {
    "int32": "int32_false_true: [ 0, 1 ]", "fp32": "fp32_false_true: [ -1, 2.5 ]",
    "bool": "bool_false_true: [ false, true ]", "turned": "int32_false_true: [ 7, -3 ]",
}  # fmt: skip
LONG_US = 60_000_000
SHORT_US = 400_000
TRIES = 1000


class Served(NamedTuple):
    """A model: its strategy, its batch size, how long a sequence may be idle, its controls."""

    strategy: str = "direct { }"
    batch: int = 4
    idle_us: int = LONG_US
    values: str = "int32"
    corrid: str = "UINT64"
    more: str = ""
    extra: str = ""

    def config(self) -> str:
        kinds = [f"CONTROL_SEQUENCE_{kind} {VALUES[self.values]}" for kind in ("START", "END", "READY")]
        if self.corrid:
            kinds.append(f"CONTROL_SEQUENCE_CORRID data_type: TYPE_{self.corrid}")
        controls = ", ".join(
            f'{{ name: "{kind.split()[0].rpartition("_")[2]}" control [ {{ kind: {kind} }} ] }}' for kind in kinds
        )
        return (
            f'backend: "python" max_batch_size: {self.batch}\n'
            'input [ { name: "INPUT0" data_type: TYPE_FP32 dims: [ -1 ] } ]\n'
            'output [ { name: "OUTPUT0" data_type: TYPE_STRING dims: [ 1 ] } ]\n'
            f"sequence_batching {{ {self.strategy} max_sequence_idle_microseconds: {self.idle_us} {self.more}\n"
            f"  control_input [ {controls} ] }}\n{self.extra}\n"
        )


ONE = "oldest { max_candidate_sequences: 1 }"
MODELS = {
    "direct_int32": Served(),
    "direct_fp32": Served(values="fp32", corrid="INT64"),
    "direct_bool": Served(values="bool", corrid="UINT32"),
    "direct_turned": Served(values="turned", corrid="INT32"),
    "direct_flat": Served(batch=0),
    "oldest_int32": Served("oldest { max_candidate_sequences: 8 }", corrid="INT32"),
    "oldest_fp32": Served("oldest { max_candidate_sequences: 8 }", values="fp32"),
    "oldest_bool": Served(
        "oldest { max_candidate_sequences: 8 preserve_ordering: true }", values="bool", corrid="INT64"
    ),
    "oldest_flat": Served("oldest { max_candidate_sequences: 8 }", batch=0, corrid=""),
    "neither": Served("", corrid="UINT32"),
    "no_candidates": Served("oldest { max_candidate_sequences: 0 }"),
    "one": Served(ONE),
    "one_short": Served(ONE, idle_us=SHORT_US),
    "iterative": Served(ONE, more="iterative_sequence: true"),
    # One place: which of several is free soon after an answer, the reference does not tell.
    "iterative_direct": Served(batch=1, more="iterative_sequence: true"),
}
# The reference takes text ids for wrong tensors: these are for this server alone.
OWN_MODELS = {
    "direct_string": Served(values="bool", corrid="STRING"),
    "oldest_string": Served("oldest { max_candidate_sequences: 8 }", batch=0, corrid="STRING"),
}
IN_PROCESS = 'parameters { key: "EXECUTION_MODE" value { string_value: "in_process" } }\n'


def write(root: Path, models: Mapping[str, Served]) -> Path:
    for name, served in models.items():
        model_of(root, name, CODE, served.config())
    return root


class Step(NamedTuple):
    """One request. ``later``: its answer is waited for at the end, and the next step comes once it is on its way."""

    id: int | str = 0
    start: bool = False
    end: bool = False
    value: float = 1.0
    rows: int = 1
    timeout: int = 0
    later: bool = False

    def parameters(self) -> dict[str, Any]:
        made: dict[str, Any] = {"sequence_id": self.id} if self.id != 0 else {}
        if self.start:
            made["sequence_start"] = True
        if self.end:
            made["sequence_end"] = True
        if self.timeout:
            made["timeout"] = self.timeout
        return made


def S(id: int | str = 0, **more: Any) -> Step:
    return Step(id, start=True, **more)


def E(id: int | str = 0, **more: Any) -> Step:
    return Step(id, end=True, **more)


SE = (Step(9, start=True, end=True),)
# name -> model, steps
DIALOGUES: dict[str, tuple[str, Sequence[Step]]] = {
    "no id": ("direct_int32", [Step(), Step(rows=2), Step(start=True), Step("")]),
    "two rows": ("direct_int32", [S(3, rows=2), Step(3, rows=2)]),
    "unknown": ("oldest_int32", [Step(3), E(3), Step("abc"), Step((1 << 63) - 1)]),
    "whole": ("direct_int32", [S(3), Step(3), Step("3"), E(3), Step(3), *SE]),
    "restart": ("oldest_int32", [S(3), Step(3), S(3), E(3), E(3)]),
    "text": ("oldest_flat", [S("abc"), Step("abc"), Step("ABC"), E("abc"), Step("abc")]),
    "long text": ("oldest_flat", [S("é" * 65), S("x" * 129), S("x" * 128), E("x" * 128)]),
    "an error": ("oldest_int32", [S(3, value=13), Step(3), Step(3, value=13), E(3, value=13), Step(3)]),
    "places": ("direct_int32", [S(1), S(2), S(3), Step(2), Step(1), Step(3), E(2), Step(3), S(4), S(5), Step(4),
                                *(E(k) for k in (1, 3, 4, 5))]),
    "oldest first": ("oldest_int32", [S(1), S(2), S(3), Step(2), E(1), E(2), E(3)]),
    "backlog": ("one", [S(1), S(2, later=True), S(3, later=True), E(1), E(2), E(3)]),
    "backlog of a batch": ("direct_flat", [S(1), S(2, later=True), E(1), E(2)]),
    "backlog timeout": ("one", [S(1), S(2, timeout=50_000), Step(2), E(1), *SE]),
    "idle": ("one_short", [S(1), S(2), Step(1)]),
    "iterative": ("iterative", [Step(), Step(12), Step("ab"), Step()]),
    "iterative in a place": ("iterative_direct", [Step(), Step()]),
    "no candidates": ("no_candidates", [S(1), S(2), E(1), E(2)]),
    "large number": ("oldest_int32", [S((1 << 32) + 1), E((1 << 32) + 1)]),
    **{f"controls of {name}": (name, [S(1), S(2), Step(1), E(2), E(1), *SE]) for name in MODELS
       if name.split("_")[0] in ("direct", "oldest", "neither") and name != "direct_flat"},
    "controls of direct_flat": ("direct_flat", [S(1), Step(1), E(1), *SE]),
}  # fmt: skip
OWN_DIALOGUES: dict[str, tuple[str, Sequence[Step]]] = {
    "text ids": ("direct_string", [S("abc"), S(77), Step("abc"), E(77), E("abc")]),
    "text ids, flat": ("oldest_string", [S("é"), E("é"), *SE]),
    "text for a number": ("direct_int32", [S("abc"), *SE]),
    "iterative with an end": ("iterative", [Step(12, start=True, end=True), Step(12), S(13), E(13)]),
}


def over_http(address: tuple[str, int], model: str, step: Step, flat: bool) -> list[Any]:
    shape = [1] if flat else [step.rows, 1]
    body = json.dumps(raw.infer_object([step.value] * step.rows, shape, parameters=step.parameters())).encode()
    answer = raw.ask(address, raw.post(f"/v2/models/{model}/infer", body))
    if answer.status != 200:
        return [answer.status, answer.error]
    return [200, json.loads(answer.json()["outputs"][0]["data"][0])]


def over_grpc(channel: Channel, model: str, step: Step, flat: bool) -> list[Any]:
    shape = [1] if flat else [step.rows, 1]
    reply = channel.infer(infer_request(model, [step.value] * step.rows, "FP32", shape, parameters=step.parameters()))
    if reply.status:
        return [reply.status, reply.text]
    data = reply.message.raw_output_contents[0]
    return [0, json.loads(data[4 : 4 + struct.unpack("<I", data[:4])[0]])]


class Later(threading.Thread):
    def __init__(self, ask: Any) -> None:
        super().__init__(daemon=True)
        self.ask, self.answer = ask, []
        self.start()

    def run(self) -> None:
        self.answer = self.ask()


def talk(ask: Any, pending: Any, model: str, steps: Sequence[Step]) -> list[Any]:
    """Have a dialogue; ``ask(model, step, flat)``, ``pending(model)``: requests that wait there."""
    flat = {**MODELS, **OWN_MODELS}[model].batch == 0
    answers: list[Any] = []
    waiting = 0
    for step in steps:
        if not step.later:
            answers.append(ask(model, step, flat))
            continue
        waiting += 1
        answers.append(Later(lambda step=step: ask(model, step, flat)))  # type: ignore[misc]
        pause = threading.Event()
        for _ in range(TRIES):
            if pending(model) >= waiting:
                break
            pause.wait(0.01)
        else:
            raise TimeoutError(f"{model}: {waiting} requests do not wait")
    for k, answer in enumerate(answers):
        if isinstance(answer, Later):
            answer.join()
            answers[k] = answer.answer
    return answers


def pending_of(metrics: tuple[str, int], model: str) -> int:
    """Requests that wait, by the metric of both servers."""
    text = raw.ask(metrics, raw.get("/metrics")).body.decode()
    for line in text.splitlines():
        if line.startswith("nv_inference_pending_request_count{") and f'model="{model}"' in line:
            return int(float(line.rpartition(" ")[2]))
    return 0
