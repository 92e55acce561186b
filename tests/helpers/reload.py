"""Clients at a steady pace over HTTP and gRPC while models are reloaded, and the reloads.

Which file answered can be told from the answer: model ``m`` adds a small number, ``p``, in Python, a multiple of 1000,
and ``e`` passes its input through both. Knows the protocols' real clients; starts no server.
"""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tritonclient.grpc as grpcclient
from onnx import helper, numpy_helper

from tests.helpers.ensembles import Chain, ensembles

Address = tuple[str, int]
WAIT_S = 30.0
STEP = 1000
CLIENTS = (("http", "m"), ("http", "p"), ("http", "e"), ("grpc", "m"), ("grpc", "p"), ("grpc", "e"))
BODY = json.dumps(
    {"inputs": [{"name": "INPUT0", "datatype": "FP32", "shape": [1, 1], "data": [0.0]}]}
)  # fmt: skip
IO = """max_batch_size: 8
input [{ name: "INPUT0" data_type: TYPE_FP32 dims: [1] }]
output [{ name: "OUTPUT0" data_type: TYPE_FP32 dims: [1] }]
"""
PYTHON = """import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        given = (pb_utils.get_input_tensor_by_name(request, "INPUT0").as_numpy() for request in requests)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUTPUT0", x + np.float32({value}))]) for x in given]
"""


def plus(value: float) -> bytes:
    """An ONNX model: OUTPUT0 = INPUT0 + value."""
    weight = numpy_helper.from_array(np.array([value], np.float32), "w")
    ends = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, ["batch", 1]) for name in ("INPUT0", "OUTPUT0")]
    graph = helper.make_graph(
        [helper.make_node("Add", ["INPUT0", "w"], ["OUTPUT0"])], "g", ends[:1], ends[1:], [weight]
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


class Number:
    """What a model adds: ``loaded`` at least, since a load of that has been answered, and ``begun`` at most."""

    def __init__(self) -> None:
        self.loaded = self.begun = 1


class Site:
    """The repository, and what the models in it may answer."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.m, self.p = Number(), Number()
        for name in ("m", "p"):
            (root / name / "1").mkdir(parents=True)
        (root / "m" / "config.pbtxt").write_text(f'backend: "onnxruntime"\n{IO}')
        (root / "p" / "config.pbtxt").write_text(f'backend: "python"\n{IO}dynamic_batching {{ }}\n')
        self.write_m(plus(1))
        self.write_p(1)
        self.write_e(0)

    def write_m(self, content: bytes) -> None:
        (self.root / "m" / "1" / "model.onnx").write_bytes(content)

    def write_p(self, value: int) -> None:
        (self.root / "p" / "1" / "model.py").write_text(PYTHON.format(value=value * STEP))

    def write_e(self, number: int) -> None:
        extra = f'metric_tags {{ key: "edition" value: "{number}" }}'
        ensembles(self.root, Chain("e", ("m", "p"), dims="1", extra=extra))

    def least(self, model: str) -> tuple[int, int]:
        return (self.m.loaded if model != "p" else 0), (self.p.loaded if model != "m" else 0)

    def most(self, model: str) -> tuple[int, int]:
        return (self.m.begun if model != "p" else 0), (self.p.begun if model != "m" else 0)


class Control:
    """Loads models over HTTP."""

    def __init__(self, address: Address) -> None:
        self.connection = http.client.HTTPConnection(*address, timeout=WAIT_S)

    def __enter__(self) -> Control:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()

    def ask(self, method: str, path: str, body: Any = None) -> tuple[int, Any]:
        self.connection.request(method, path, None if body is None else json.dumps(body))
        answer = self.connection.getresponse()
        content = answer.read()
        return answer.status, json.loads(content) if content else None

    def load(self, model: str, **parameters: str) -> int:
        return self.ask("POST", f"/v2/repository/models/{model}/load", {"parameters": parameters})[0]

    def config(self, model: str) -> Any:
        return self.ask("GET", f"/v2/models/{model}/config")[1]


def reloads(site: Site, control: Control, count: int) -> Iterator[tuple[str, int]]:
    """Reload ``count`` times, with a load that must fail after every tenth; yield what was done and its status."""
    for k in range(count):
        kind = k % 5
        if kind in (0, 3):
            site.m.begun += 1
            site.write_m(plus(site.m.begun))
            yield "file", control.load("m")
            site.m.loaded = site.m.begun
        elif kind == 1:
            changed = {**control.config("m"), "dynamic_batching": {"max_queue_delay_microseconds": k}}
            yield "override", control.load("m", config=json.dumps(changed))
        elif kind == 2:
            site.p.begun += 1
            site.write_p(site.p.begun)
            yield "python", control.load("p")
            site.p.loaded = site.p.begun
        else:
            site.write_e(k)
            yield "ensemble", control.load("e")
        if k % 10 == 9:
            site.write_m(b"nonsense")
            yield "broken", control.load("m")
            site.write_m(plus(site.m.loaded))


@dataclass
class Seen:
    """What one client saw. ``times_ns``: of each answer, by the phase that it was sent in."""

    answers: int = 0
    wrong: list[str] = field(default_factory=list)
    times_ns: dict[str, list[int]] = field(default_factory=dict)
    values: set[float] = field(default_factory=set)


class Clients:
    """One thread for each of ``CLIENTS``, together ``rate`` requests a second as long as the server keeps up."""

    def __init__(self, site: Site, http_address: Address, grpc_address: Address, rate: float) -> None:
        self.phase = "calm"
        self.seen = {client: Seen() for client in CLIENTS}
        self._site = site
        self._http, self._grpc = http_address, grpc_address
        self._period_s = len(CLIENTS) / rate
        self._stop = threading.Event()
        self._answered = threading.Condition()

    @contextmanager
    def running(self) -> Iterator[Clients]:
        threads = [threading.Thread(target=self._run, args=(n, *client)) for n, client in enumerate(CLIENTS)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in threads:
                thread.join()

    @property
    def wrong(self) -> list[str]:
        return [text for seen in self.seen.values() for text in seen.wrong]

    def wait(self, more: int = 1) -> None:
        """Wait until every client has had that many more answers, or has seen something wrong."""
        goal = {client: seen.answers + more for client, seen in self.seen.items()}
        with self._answered:
            done = self._answered.wait_for(
                lambda: bool(self.wrong) or all(self.seen[client].answers >= n for client, n in goal.items()), WAIT_S
            )
        assert done, "the clients stand still"

    def percentile_ms(self, phase: str, share: float) -> float:
        """Return what ``share`` of a phase's answers took at most, over all clients."""
        times = sorted(t for seen in self.seen.values() for t in seen.times_ns.get(phase, []))
        return times[min(len(times) - 1, int(share * len(times)))] / 1e6 if times else float("nan")

    def _run(self, number: int, protocol: str, model: str) -> None:
        seen = self.seen[protocol, model]
        ask, close = self._http_client(model) if protocol == "http" else self._grpc_client(model)
        due = time.monotonic() + number * self._period_s / len(CLIENTS)
        try:
            while not self._stop.wait(max(0.0, due - time.monotonic())):
                due += self._period_s
                least, phase, begin = self._site.least(model), self.phase, time.perf_counter_ns()
                value = ask()
                took, most = time.perf_counter_ns() - begin, self._site.most(model)
                high, low = divmod(value, STEP)
                if not (least[0] <= low <= most[0] and least[1] <= high <= most[1] and value == int(value)):
                    seen.wrong.append(f"{protocol} {model}: {value}, expected {least} to {most}")
                seen.values.add(value)
                seen.times_ns.setdefault(phase, []).append(took)
                with self._answered:
                    seen.answers += 1
                    self._answered.notify_all()
        except Exception as error:
            with self._answered:
                seen.wrong.append(f"{protocol} {model}: {type(error).__name__}: {error}")
                self._answered.notify_all()
        finally:
            close()

    def _http_client(self, model: str) -> Any:
        connection = http.client.HTTPConnection(*self._http, timeout=WAIT_S)
        path = f"/v2/models/{model}/infer"

        def ask() -> float:
            connection.request("POST", path, BODY)
            answer = connection.getresponse()
            content = answer.read()
            if answer.status != 200:
                raise RuntimeError(f"{answer.status} {content.decode()}")
            return float(json.loads(content)["outputs"][0]["data"][0])

        return ask, connection.close

    def _grpc_client(self, model: str) -> Any:
        client = grpcclient.InferenceServerClient(f"{self._grpc[0]}:{self._grpc[1]}")
        given = grpcclient.InferInput("INPUT0", [1, 1], "FP32")
        given.set_data_from_numpy(np.zeros((1, 1), np.float32))
        return lambda: float(client.infer(model, [given]).as_numpy("OUTPUT0")[0, 0]), client.close
