"""Python models in the server's own process: the same model.py, no worker, inputs without a copy."""

from __future__ import annotations

import json
import struct
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.models import LONG_S, counters_at_base  # noqa: F401
from tests.helpers.server import LocalServer, until
from triton_fast._native.core import memory
from triton_fast._native.sched.inprocess import InferCall, StreamCall
from triton_fast.errors import Internal, ServerError
from triton_fast.types import DataType

MODE = 'parameters { key: "EXECUTION_MODE" value { string_value: "in_process" } }\n'
IMPORTS = "import numpy as np\nimport triton_python_backend_utils as pb_utils\n"
TEXT = (
    'input [{ name: "CASE" data_type: TYPE_STRING dims: [1] }]\n'
    'output [{ name: "OUT" data_type: TYPE_STRING dims: [-1] }]\n'
)
INT = (
    'input [{ name: "IN" data_type: TYPE_INT32 dims: [-1] }]\n'
    'output [{ name: "OUT" data_type: TYPE_INT32 dims: [-1] }]\n'
)

# Answers CASE with what the method of that name says.
CASES = (
    IMPORTS
    + """
import json

def failure(function, *arguments, **named):
    try:
        function(*arguments, **named)
    except Exception as error:
        return f"{type(error).__name__}: {error}"

def tensor(name, values, kind=np.int32):
    return pb_utils.Tensor(name, np.array(values, kind))

def asked(model, tensors, **more):
    return pb_utils.InferenceRequest(model_name=model, inputs=tensors, requested_output_names=["OUT"], **more)

def told(response):
    if response.has_error():
        return {"error": response.error().message(), "code": int(response.error().code())}
    return [one.as_numpy().tolist() for one in response.output_tensors()]

class Base:
    def execute(self, requests):
        return [self.answer(request) for request in requests]

    def answer(self, request):
        self.request = request
        name = pb_utils.get_input_tensor_by_name(request, "CASE").as_numpy()[0].decode()
        text = json.dumps(getattr(self, name)())
        self.request = None
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([text], dtype=object))])
"""
)


def add(root: Path, name: str, code: str, config: str = TEXT, *, mode: str = MODE, **files: str) -> None:
    """Write a model that runs in the server's process; ``files``: more modules beside model.py."""
    version = root / name / "1"
    version.mkdir(parents=True)
    (root / name / "config.pbtxt").write_text(f'backend: "python"\n{mode}{config}')
    (version / "model.py").write_text(code)
    for file, text in files.items():
        (version / f"{file}.py").write_text(text)


def strings(*items: bytes) -> bytes:
    return b"".join(struct.pack("<I", len(item)) + item for item in items)


def cut(data: bytes) -> list[bytes]:
    items, at = [], 0
    while at < len(data):
        (n,) = struct.unpack_from("<I", data, at)
        items.append(data[at + 4 : at + 4 + n])
        at += 4 + n
    return items


def native(server: LocalServer, model: str) -> Any:
    return server.server.plane.native_model(model, -1)


def ints(server: LocalServer, model: str, *values: int, **options: Any) -> list[int]:
    data = struct.pack(f"<{len(values)}i", *values)
    made = InferCall(native(server, model), [("IN", DataType.INT32, (len(values),), data)], **options)
    _, _, out = made.wait(LONG_S)["OUT"]
    return list(struct.unpack(f"<{len(out) // 4}i", out))


def case(server: LocalServer, model: str, name: str, **options: Any) -> Any:
    call = InferCall(native(server, model), [("CASE", DataType.STRING, (1,), strings(name.encode()))], **options)
    return json.loads(cut(call.wait(LONG_S)["OUT"][2])[0])


def stream(server: LocalServer, model: str, value: int) -> list[Any]:
    """Return the first number of each response, its error's text, or None where there is no output."""
    call = StreamCall(native(server, model), [("IN", DataType.INT32, (1,), struct.pack("<i", value))])
    found: list[Any] = []
    while True:
        try:
            taken = call.take(LONG_S)
        except ServerError as error:
            found.append(str(error))
            continue
        if taken is None:
            return found
        found.append(struct.unpack("<i", taken[0]["OUT"][2])[0] if taken[0] else None)


def post(server: LocalServer, path: str, body: dict[str, Any] | None = None) -> tuple[int, Any]:
    url = f"http://{server.http[0]}:{server.http[1]}/v2/{path}"
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(url, data), timeout=LONG_S) as answer:
            text = answer.read()
            return answer.status, json.loads(text) if text else None
    except urllib.error.HTTPError as error:
        with error:
            text = error.read()
            return error.code, json.loads(text) if text else None


def metrics(server: LocalServer) -> str:
    with urllib.request.urlopen(f"http://{server.metrics[0]}:{server.metrics[1]}/metrics", timeout=LONG_S) as answer:
        return str(answer.read().decode())


ADD_SUB = (
    IMPORTS
    + """
class TritonPythonModel:
    def execute(self, requests):
        found = []
        for request in requests:
            a, b = (pb_utils.get_input_tensor_by_name(request, name).as_numpy() for name in ("INPUT0", "INPUT1"))
            found.append(pb_utils.InferenceResponse([
                pb_utils.Tensor("OUTPUT0", a + b), pb_utils.Tensor("OUTPUT1", a - b)]))
        return found
"""
)
ADD_SUB_CONFIG = "max_batch_size: 8\ndynamic_batching { }\n" + "".join(
    f'{side} [{{ name: "{side.upper()}{i}" data_type: TYPE_FP32 dims: [-1] }}]\n'
    for side in ("input", "output") for i in range(2)
)  # fmt: skip
SQUARES = (
    IMPORTS
    + """
import threading

class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            n = int(pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[0])
            threading.Thread(target=self.answer, args=(n, request.get_response_sender())).start()

    def answer(self, n, sender):
        pb_utils.Logger.log_info(f"squares of {n}")
        if n < 0:
            sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError("negative")))
        for i in range(n):
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([i * i], np.int32))]))
        if n != 7:  # of 7 the sender goes away without its final flag
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""
)
DECOUPLED = INT + "model_transaction_policy { decoupled: true }\n"
COROUTINE = (
    IMPORTS
    + """
import asyncio

class TritonPythonModel:
    async def execute(self, requests):
        return await asyncio.gather(*map(self.answer, requests))

    async def answer(self, request):
        value = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        await asyncio.sleep(0)
        if value[0] < 0:
            raise SystemExit("out") if value[0] == -2 else ValueError("is negative")
        return pb_utils.InferenceResponse([pb_utils.Tensor("OUT", value + 1)])
"""
)
TENSORS = (
    CASES
    + """
import gc

class TritonPythonModel(Base):
    kept = None

    def facts(self):
        request = self.request
        return [request.request_id(), request.correlation_id(), request.flags(), json.loads(request.parameters()),
                sorted(request.requested_output_names()), request.is_cancelled(), request.timeout()]

    def place(self):
        return [__file__.endswith("model.py"), pb_utils.get_model_dir() == __file__.rsplit("/", 1)[0]]
"""
)
MEMORY = (
    IMPORTS
    + """
class TritonPythonModel:
    kept = None

    def execute(self, requests):
        found = []
        for request in requests:
            array, again = (pb_utils.get_input_tensor_by_name(request, "IN") for _ in range(2))
            owner = array._owner
            array = array.as_numpy()
            # The view's memory is the request's block, and both views are one memory.
            seen = [int(np.shares_memory(array, np.frombuffer(owner, np.int32))), int(array.flags.owndata)]
            before = self.kept
            if before is not None:
                seen += before.tolist()[:4]
            self.kept = array
            found.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array(seen, np.int32))]))
        return found
"""
)
HELD = (
    IMPORTS
    + """
class TritonPythonModel:
    def execute(self, requests):
        found = []
        for request in requests:
            self.view = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()[1:]
            found.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", self.view)]))
        return found
"""
)
BF16 = (
    IMPORTS
    + """
class TritonPythonModel:
    def execute(self, requests):
        found = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "IN")
            found.append(pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("OUT", tensor.to_dlpack())]))
        return found
"""
)
ERRORS = (
    CASES
    + """
class TritonPythonModel(Base):
    def execute(self, requests):
        name = pb_utils.get_input_tensor_by_name(requests[0], "CASE").as_numpy()[0].decode()
        return getattr(self, name)(requests)

    def raises(self, requests):
        raise ValueError("broken")

    def exits(self, requests):
        raise SystemExit(3)

    def interrupts(self, requests):
        raise KeyboardInterrupt

    def no_list(self, requests):
        return 7

    def too_few(self, requests):
        return []

    def wrong(self, requests):
        return ["x"]

    def none(self, requests):
        return None

    def code(self, requests):
        error = pb_utils.TritonError("not here", pb_utils.TritonError.NOT_FOUND)
        return [pb_utils.InferenceResponse(error=error) for _ in requests]

    def sender(self, requests):
        sender = requests[0].get_response_sender()
        out = pb_utils.Tensor("OUT", np.array(['"sent"'], dtype=object))
        sender.send(pb_utils.InferenceResponse([out], parameters={"k": 5, "b": True}), flags=1)
"""
)
BLS = (
    CASES
    + """
import threading

class TritonPythonModel(Base):
    def sync(self):
        return told(asked("coroutine", [tensor("IN", [4, 5])]).exec())

    def forward(self):
        return told(asked("errors", self.request.inputs() and [tensor("CASE", ["code"], object)]).exec())

    def unknown(self):
        return told(asked("nobody", [tensor("IN", [1])]).exec())

    def wrong(self):
        return told(asked("coroutine", [tensor("X", [1])]).exec())

    def not_decoupled(self):
        return told(asked("squares", [tensor("IN", [2])]).exec())

    def stream(self):
        return [told(one) for one in asked("squares", [tensor("IN", [3])]).exec(decoupled=True)]

    def stream_error(self):
        return [told(one) for one in asked("squares", [tensor("IN", [-1])]).exec(decoupled=True)]

    def parameters(self):
        return json.loads(asked("errors", [tensor("CASE", ["sender"], object)]).exec().parameters())

    def itself(self):
        return told(asked("bls", [tensor("CASE", ["sync"], object)]).exec())

    def chain(self):
        return told(asked("chain", [tensor("IN", [1])]).exec())

    def thread(self):
        found = []
        thread = threading.Thread(target=lambda: found.append(self.sync()))
        thread.start()
        thread.join()
        return found[0]
"""
)
CHAIN = (
    IMPORTS
    + """
class TritonPythonModel:
    def execute(self, requests):
        case = pb_utils.Tensor("CASE", np.array(["sync"], dtype=object))
        found = []
        for _ in requests:
            call = pb_utils.InferenceRequest(model_name="bls", inputs=[case], requested_output_names=["OUT"])
            found.append(pb_utils.InferenceResponse(error=call.exec().error()))
        return found
"""
)
BLS_ASYNC = (
    CASES
    + """
import asyncio

class TritonPythonModel:
    async def execute(self, requests):
        found = []
        for request in requests:
            calls = [asked("coroutine", [tensor("IN", [i])]).async_exec() for i in range(20)]
            calls.append(asked("squares", [tensor("IN", [3])]).async_exec(decoupled=True))
            *plain, stream = await asyncio.gather(*calls)
            text = json.dumps([[told(one)[0][0] for one in plain], [told(one) for one in stream]])
            found.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([text], dtype=object))]))
        return found
"""
)
METRICS = (
    CASES
    + """
class TritonPythonModel(Base):
    def initialize(self, args):
        family = pb_utils.MetricFamily("in_process_seen", "seen", pb_utils.MetricFamily.COUNTER)
        self.family, self.seen = family, family.Metric({"model": args["model_name"]})

    def count(self):
        self.seen.increment(2)
        return self.seen.value()

    def refused(self):
        return [failure(self.family.Metric, {"a": 1}), failure(self.family.Metric, {1: "a"})]

    def gone(self):
        family = pb_utils.MetricFamily("in_process_gone", "gone", pb_utils.MetricFamily.GAUGE)
        metric = family.Metric({"a": "b"})
        del family
        return failure(metric.value)

    def control(self):
        return [pb_utils.is_model_ready("coroutine"), failure(pb_utils.load_model, "nobody")]
"""
)
LIFE = (
    CASES
    + """
class TritonPythonModel(Base):
    def initialize(self, args):
        self.place = args["model_repository"] + "/ended"
        self.name = args["model_instance_name"]

    def name(self):
        return self.name

    def is_ready(self):
        import os
        return not os.path.exists(self.place + ".not_ready")

    def finalize(self):
        with open(self.place, "a") as file:
            file.write(self.name + "\\n")
"""
)
COMPLETED = (
    IMPORTS
    + """
class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_max_batch_size(0)
        config.add_input({"name": "IN", "data_type": "TYPE_INT32", "dims": [-1]})
        config.add_output({"name": "OUT", "data_type": "TYPE_INT32", "dims": [-1]})
        return config

    def execute(self, requests):
        import helper
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([helper.VALUE], np.int32))])
                for _ in requests]
"""
)


@pytest.fixture(autouse=True)
def no_modules_left() -> Iterator[None]:
    yield
    assert not [name for name in sys.modules if name.startswith("_python_model_")]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[LocalServer]:
    add(tmp_path, "add_sub", ADD_SUB, ADD_SUB_CONFIG)
    add(tmp_path, "squares", SQUARES, DECOUPLED)
    add(tmp_path, "coroutine", COROUTINE, INT)
    add(tmp_path, "tensors", TENSORS)
    add(tmp_path, "memory", MEMORY, INT)
    add(tmp_path, "held", HELD, INT)
    add(tmp_path, "bf16", BF16, INT.replace("INT32", "BF16"))
    add(tmp_path, "errors", ERRORS)
    add(tmp_path, "bls", BLS)
    add(tmp_path, "chain", CHAIN, INT)
    add(tmp_path, "bls_async", BLS_ASYNC)
    add(tmp_path, "metrics", METRICS)
    add(tmp_path, "life", LIFE, TEXT + "instance_group [{ count: 2 kind: KIND_CPU }]\n")
    for name, value in (("one", 1), ("two", 2)):
        add(tmp_path, name, COMPLETED, "", helper="from inner import VALUE\n", inner=f"VALUE = {value}\n")
    add(tmp_path, "own_env", COMPLETED, 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "x.tar.gz" } }\n')
    add(tmp_path, "broken", IMPORTS + "raise SystemExit('not today')\n", INT)
    explicit = [f"--load-model={path.name}" for path in tmp_path.iterdir() if path.name not in ("own_env", "broken")]
    with LocalServer(tmp_path, "--model-control-mode=explicit", *explicit) as server:
        yield server


def json_body(**tensors: tuple[str, Sequence[int], list[Any]]) -> dict[str, Any]:
    return {"inputs": [
        {"name": name, "datatype": kind, "shape": list(shape), "data": data}
        for name, (kind, shape, data) in tensors.items()
    ]}  # fmt: skip


def test_tensors(server: LocalServer) -> None:
    body = json_body(INPUT0=("FP32", (1, 2), [3, 4]), INPUT1=("FP32", (1, 2), [1, 9]))
    status, answer = post(server, "models/add_sub/infer", body)
    assert status == 200
    assert {one["name"]: one["data"] for one in answer["outputs"]} == {"OUTPUT0": [4, 13], "OUTPUT1": [2, -5]}
    call = InferCall(native(server, "bf16"), [("IN", DataType.BF16, (3,), b"\x01\x40\x02\x41\x03\x42")])
    assert call.wait(LONG_S)["OUT"] == (DataType.BF16, (3,), b"\x01\x40\x02\x41\x03\x42")
    options: dict[str, Any] = {"id": "an id", "correlation": "text", "flags": 1, "params": [("a", 1), ("s", "x")]}
    assert case(server, "tensors", "facts", **options) == ["an id", "text", 1, {"a": 1, "s": "x"}, ["OUT"], False, 0]
    assert case(server, "tensors", "place") == [True, True]


def test_inputs_are_the_requests_memory(server: LocalServer) -> None:
    first = list(range(1000))
    assert ints(server, "memory", *first) == [1, 0]
    # The first request is over and its memory would have been used again; the model's view still has it.
    for _ in range(3):
        assert ints(server, "coroutine", *range(1000, 2000)) == list(range(1001, 2001))
    assert ints(server, "memory", *range(500, 1500)) == [1, 0, 0, 1, 2, 3]


def test_a_large_output_that_is_an_input_is_not_copied(server: LocalServer) -> None:
    before = memory.stats()["live_bytes"]
    values = list(range(100_000))
    assert ints(server, "held", *values) == values[1:]
    # The model keeps the view that it answered with. Nothing else is left of the request and of the response.
    held = memory.stats()["live_bytes"] - before
    assert 400_000 <= held < 800_000


def test_over_http_the_view_is_of_the_body(server: LocalServer) -> None:
    body = json_body(IN=("INT32", (1000,), list(range(1000))))
    for _ in range(2):
        status, answer = post(server, "models/memory/infer", body)
        assert status == 200
    assert answer["outputs"][0]["data"] == [1, 0, 0, 1, 2, 3]


def test_decoupled(server: LocalServer) -> None:
    assert stream(server, "squares", 3) == [0, 1, 4, None]
    assert stream(server, "squares", 0) == [None]
    assert stream(server, "squares", -1) == ["negative", None]
    assert stream(server, "squares", 7) == [0, 1, 4, 9, 16, 25, 36, None]


def test_coroutines(server: LocalServer) -> None:
    assert ints(server, "coroutine", 1, 2) == [2, 3]
    with pytest.raises(Internal, match="message: ValueError: is negative"):
        ints(server, "coroutine", -1)
    with pytest.raises(Internal, match="message: SystemExit: out"):
        ints(server, "coroutine", -2)
    assert ints(server, "coroutine", 5) == [6]


@pytest.mark.parametrize(("name", "text"), [
    ("raises", "Failed to process the request(s) for model 'errors_0', message: ValueError: broken"),
    ("exits", "Failed to process the request(s) for model 'errors_0', message: SystemExit: 3"),
    ("interrupts", "message: KeyboardInterrupt: <EMPTY MESSAGE>"),
    ("no_list", "Expected a list in the execute return, found type '<class 'int'>'."),
    ("too_few", "InferenceRequest(s) size is:1, and InferenceResponse(s) size is:0"),
    ("wrong", "Expected an 'InferenceResponse' object in the execute function return list, found type '<class 'str'>'"),
    ("none", "The request was neither answered in the execute return nor by its response sender."),
    ("code", "not here"),
])  # fmt: skip
def test_errors(server: LocalServer, name: str, text: str) -> None:
    with pytest.raises(ServerError) as raised:
        case(server, "errors", name)
    assert text in str(raised.value)
    assert "triton_fast" not in str(raised.value), "where the server is installed is not for clients"
    status, _ = post(server, "models/errors/infer", json_body(CASE=("BYTES", (1,), [name])))
    assert status == (404 if name == "code" else 500)
    assert case(server, "errors", "sender") == "sent"


def test_response_parameters(server: LocalServer) -> None:
    status, answer = post(server, "models/errors/infer", json_body(CASE=("BYTES", (1,), ["sender"])))
    assert (status, answer["parameters"]) == (200, {"k": 5, "b": True})


def test_bls(server: LocalServer) -> None:
    assert case(server, "bls", "sync") == [[5, 6]]
    assert case(server, "bls", "thread") == [[5, 6]]
    assert case(server, "bls", "stream") == [[[0]], [[1]], [[4]], []]
    assert case(server, "bls", "stream_error") == [{"error": "negative", "code": 1}, []]
    assert case(server, "bls", "forward") == {"error": "not here", "code": 2}
    assert case(server, "bls", "parameters") == {"k": 5, "b": True}
    assert case(server, "bls_async", "") == [list(range(1, 21)), [[[0]], [[1]], [[4]], []]]
    told = case(server, "bls", "unknown")
    assert told["error"] == (
        "Model nobody - Error when running inference: Failed for execute the inference request. Model 'nobody' is not "
        "ready."
    )
    assert "unexpected inference input 'X'" in case(server, "bls", "wrong")["error"]
    assert "Please use 'decoupled=True' argument" in case(server, "bls", "not_decoupled")["error"]


def test_calls_that_wait_for_each_other_are_broken(server: LocalServer) -> None:
    assert "Deadlock: model 'bls' waits for itself" in case(server, "bls", "itself")["error"]
    assert "waits for itself: bls -> chain -> bls" in case(server, "bls", "chain")["error"]
    assert case(server, "bls", "sync") == [[5, 6]]


@pytest.mark.parametrize(("bls", "chain"), [(MODE, ""), ("", MODE)])
def test_deadlocks_with_workers(tmp_path: Path, bls: str, chain: str) -> None:
    add(tmp_path, "coroutine", COROUTINE, INT, mode=chain)
    add(tmp_path, "bls", BLS, mode=bls)
    add(tmp_path, "chain", CHAIN, INT, mode=chain)
    with LocalServer(tmp_path) as server:
        assert case(server, "bls", "sync") == [[5, 6]]
        assert "waits for itself: bls -> chain -> bls" in case(server, "bls", "chain")["error"]
        assert case(server, "bls", "sync") == [[5, 6]]


def test_metrics_and_control(server: LocalServer) -> None:
    assert case(server, "metrics", "count") == 2
    assert 'in_process_seen{model="metrics"} 2' in metrics(server)
    value, key = case(server, "metrics", "refused")
    assert "non-string" in value
    assert "Failed to process the request for model 'metrics_0', message: Invalid" in key
    assert "has been deleted" in case(server, "metrics", "gone")
    assert "in_process_gone" not in metrics(server)
    is_ready, text = case(server, "metrics", "control")
    assert is_ready
    assert text.startswith("TritonModelException: Failed to load model: Failed to process the request for model 'metr")
    assert text.count("Failed to process") == 1
    assert post(server, "repository/models/metrics/unload", {})[0] == 200
    assert until(lambda: "in_process_seen" not in metrics(server))


def test_each_model_has_modules_of_its_own(server: LocalServer) -> None:
    assert [ints(server, name, 0) for name in ("one", "two", "one")] == [[1], [2], [1]]


def test_a_reload_reads_the_files_again(server: LocalServer, tmp_path: Path) -> None:
    (tmp_path / "one" / "1" / "inner.py").write_text("VALUE = 12345\n")
    assert post(server, "repository/models/one/load", {})[0] == 200
    assert ints(server, "one", 0) == [12345]


def test_ready_and_finalize(server: LocalServer, tmp_path: Path) -> None:
    assert post(server, "models/life/ready")[0] == 200
    (tmp_path / "life" / "ended.not_ready").touch()
    assert until(lambda: post(server, "models/life/ready")[0] == 400)
    assert post(server, "repository/models/life/unload", {})[0] == 200
    ended = tmp_path / "life" / "ended"
    assert until(lambda: ended.exists() and len(ended.read_text().splitlines()) == 2)
    assert sorted(ended.read_text().splitlines()) == ["life_0_0", "life_0_1"]


def test_what_can_not_be_loaded(server: LocalServer) -> None:
    status, answer = post(server, "repository/models/own_env/load", {})
    assert status == 400
    assert "EXECUTION_ENV_PATH can not be used with EXECUTION_MODE 'in_process'" in answer["error"]
    status, answer = post(server, "repository/models/broken/load", {})
    assert status == 400
    assert "SystemExit: not today" in answer["error"]
