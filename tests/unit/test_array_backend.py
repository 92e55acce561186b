"""Backends over arrays: datatypes, batches, auto-complete, checks; errors of a request, of a batch, of others' code."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

from tests.helpers.models import LONG_S, counters_at_base
from tests.helpers.onnx_repository import NUMPY, wire_strings
from triton_fast._native.arrays import pyarrays
from triton_fast._native.sched.inprocess import InferCall
from triton_fast.backends import array_values
from triton_fast.backends.arrays import ArrayBackend, Batch, Model, Signature, Tensor
from triton_fast.errors import Internal, InvalidArg, ServerError, Unavailable, Unsupported
from triton_fast.repository.prepare import Preparer
from triton_fast.scheduling.runtime import ModelRuntime
from triton_fast.types import TYPES, DataType

__all__ = ["counters_at_base"]

KINDS = {**NUMPY, DataType.BF16: ml_dtypes.bfloat16}
IO = """input { name: "IN" data_type: TYPE_FP32 dims: 2 } output { name: "OUT" data_type: TYPE_FP32 dims: 2 }
"""
DYNAMIC = "max_batch_size: 8 dynamic_batching { }" + IO
XY = Signature([Tensor("IN", "FP32", (-1, 2))], [Tensor("OUT", "FP32", (-1, 2))])


class Given(ArrayBackend):
    """Serves a function; ``signature`` is what ``describe`` says."""

    name = "given"

    def __init__(self, run: Any, signature: Any = None, filename: str = "") -> None:
        self.run, self.signature, self.default_filename = run, signature, filename
        self.models: list[Model] = []

    def describe(self, model: Model) -> Signature | None:
        if isinstance(self.signature, BaseException):
            raise self.signature
        return self.signature

    def open(self, model: Model) -> Any:
        self.models.append(model)
        if isinstance(self.run, BaseException):
            raise self.run
        return self.run


def double(batch: Batch) -> dict[str, Any]:
    return {"OUT": batch.inputs["IN"] * 2}


@contextlib.contextmanager
def serving(
    root: Path, backend: ArrayBackend, text: str = DYNAMIC, files: Mapping[str, str] | None = None, *,
    settings: Mapping[str, str] | None = None, gpus: Sequence[int] = (),
) -> Iterator[ModelRuntime]:  # fmt: skip
    folder = root / "m"
    (folder / "1").mkdir(parents=True)
    for name, content in (files or {}).items():
        (folder / "1" / name).write_text(content)
    (folder / "config.pbtxt").write_text(f'backend: "given"\n{text}')
    preparer = Preparer(lambda _: backend, settings=lambda _: settings or {}, gpus=gpus)
    made = preparer.version("m", 1, folder, folder / "1", preparer.read("m", folder))
    runtime = ModelRuntime.start(*made)
    try:
        yield runtime
    finally:
        assert runtime.stop(LONG_S)
        pyarrays.drop()


def refused(root: Path, backend: ArrayBackend, *args: Any, **named: Any) -> str:
    with pytest.raises(ServerError) as raised, serving(root, backend, *args, **named):
        pass
    assert str(root) not in str(raised.value)
    return str(raised.value)


def packed(array: np.ndarray[Any, Any]) -> bytes:
    return wire_strings(list(array.flat)) if array.dtype == object else array.tobytes()


def ask(runtime: ModelRuntime, **arrays: np.ndarray[Any, Any]) -> InferCall:
    types = {np.dtype(kind): dtype for dtype, kind in KINDS.items()}
    types[np.dtype(object)] = DataType.STRING
    inputs = [(name, types[array.dtype], array.shape, packed(array)) for name, array in arrays.items()]
    return InferCall(runtime.native, inputs)


def values(call: InferCall, name: str = "OUT") -> np.ndarray[Any, Any]:
    dtype, shape, data = call.wait(LONG_S)[name]
    return np.frombuffer(data, KINDS[DataType(dtype)]).reshape(shape)


def rows(n: int, start: float = 0) -> np.ndarray[Any, Any]:
    return np.arange(start, start + 2 * n, dtype=np.float32).reshape(n, 2)


class Held:
    """Runs a function when the gate lets it; notes the rows of every call."""

    def __init__(self, run: Callable[[Batch], Any] = double) -> None:
        self.run = run
        self.rows: list[tuple[int, ...]] = []
        self.entered = threading.Semaphore(0)
        self.gate = threading.Semaphore(0)

    def __call__(self, batch: Batch) -> Any:
        self.rows.append(batch.rows)
        self.entered.release()
        assert self.gate.acquire(timeout=LONG_S)
        return self.run(batch)

    def together(self, runtime: ModelRuntime, arrays: Sequence[np.ndarray[Any, Any]]) -> list[InferCall]:
        """Have a first request hold the instance, so that these share the next call."""
        first = ask(runtime, IN=rows(1))
        assert self.entered.acquire(timeout=LONG_S)
        calls = [ask(runtime, IN=array) for array in arrays]
        self.gate.release(100)
        first.wait(LONG_S)
        return calls


# --- tensors ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batched", [True, False])
@pytest.mark.parametrize("dtype", [*KINDS, DataType.STRING], ids=lambda one: TYPES[one].config)
def test_every_datatype_there_and_back(tmp_path: Path, dtype: DataType, batched: bool) -> None:
    def same(batch: Batch) -> dict[str, Any]:
        seen.append(batch.inputs["IN"])
        return {"OUT": batch.inputs["IN"]}

    seen: list[Any] = []
    kind = TYPES[dtype].config
    text = f'max_batch_size: {8 if batched else 0} input {{ name: "IN" data_type: {kind} dims: [ -1, 2 ] }}'
    text += f'output {{ name: "OUT" data_type: {kind} dims: [ -1, 2 ] }}'
    array = np.arange(12).reshape((2, 3, 2) if batched else (6, 2))
    given = array.astype(KINDS.get(dtype, object))
    if dtype == DataType.STRING:
        given = np.array([b"x" * n for n in array.flat], object).reshape(array.shape)
    with serving(tmp_path, Given(same), text) as runtime:
        found, shape, data = ask(runtime, IN=given).wait(LONG_S)["OUT"]
        assert (found, shape, data) == (dtype, given.shape, packed(given))
        assert seen[0].dtype == given.dtype
        assert (seen[0] == given).all()
        assert dtype in (DataType.STRING, DataType.BOOL) or not seen[0].flags.writeable
        seen.clear()


def test_empty_arrays(tmp_path: Path) -> None:
    text = (
        'input { name: "IN" data_type: TYPE_FP32 dims: [ -1, 2 ] } input { name: "S" data_type: TYPE_STRING dims: -1 }'
    )
    text += 'output { name: "OUT" data_type: TYPE_FP32 dims: [ -1, 2 ] }'
    text += 'output { name: "T" data_type: TYPE_STRING dims: -1 }'
    backend = Given(lambda batch: {"OUT": batch.inputs["IN"], "T": batch.inputs["S"]})
    with serving(tmp_path, backend, text) as runtime:
        answer = ask(runtime, IN=np.empty((0, 2), np.float32), S=np.empty(0, object)).wait(LONG_S)
        assert answer["OUT"] == (DataType.FP32, (0, 2), b"")
        assert answer["T"] == (DataType.STRING, (0,), b"")


def test_a_byte_that_is_no_bool_is_true(tmp_path: Path) -> None:
    text = 'input { name: "IN" data_type: TYPE_BOOL dims: 3 } output { name: "OUT" data_type: TYPE_INT64 dims: 1 }'
    with serving(tmp_path, Given(lambda batch: {"OUT": [int(batch.inputs["IN"].sum())]}), text) as runtime:
        call = InferCall(runtime.native, [("IN", DataType.BOOL, (3,), b"\x00\x02\xff")])
        assert values(call).tolist() == [2]


@pytest.mark.parametrize(
    ("made", "kind", "expected"),
    [
        ([1, 2], "FP32", [1.0, 2.0]),
        ((True, False), "BOOL", [True, False]),
        (np.array([1, 2], ">f4"), "FP32", [1.0, 2.0]),
        (np.arange(6, dtype=np.int32)[::3], "INT32", [0, 3]),
        (np.array(["a", "é"]), "STRING", [b"a", "é".encode()]),
        (["a", b"\xff"], "STRING", [b"a", b"\xff"]),
        (np.array([b"a", b"bc"]), "STRING", [b"a", b"bc"]),
    ],
)
def test_what_a_function_may_return(tmp_path: Path, made: Any, kind: str, expected: list[Any]) -> None:
    text = (
        f'input {{ name: "IN" data_type: TYPE_FP32 dims: 2 }} output {{ name: "OUT" data_type: TYPE_{kind} dims: 2 }}'
    )
    with serving(tmp_path, Given(lambda batch: {"OUT": made}), text) as runtime:
        dtype, _, data = ask(runtime, IN=rows(1)[0]).wait(LONG_S)["OUT"]
        array = np.array(expected, object if kind == "STRING" else KINDS[DataType(dtype)])
        assert data == packed(array)


@pytest.mark.parametrize(
    ("made", "text"),
    [
        ([1.5], "it returned list, not a mapping of output names to arrays"),
        (None, "it returned NoneType"),
        ({}, "it returned no output 'OUT'"),
        ({"OUT": rows(1), "MORE": 1}, "it returned 'MORE', the outputs are OUT"),
        ({"OUT": None}, "output 'OUT' is NoneType, not an array"),
        ({"OUT": rows(1).astype(np.float64)}, "output 'OUT' is float64, the model configuration says TYPE_FP32"),
        ({"OUT": [["a", "b"]]}, "output 'OUT' is <U1, the model configuration says TYPE_FP32 (float32)"),
        ({"OUT": [[1.0], [1.0, 2.0]]}, "output 'OUT' is list that makes no array"),
        ({"OUT": rows(1)[0]}, "output 'OUT' has shape [2], the model configuration says [-1, 2]"),
        ({"OUT": np.zeros((1, 3), np.float32)}, "output 'OUT' has shape [1, 3], the model configuration says [-1, 2]"),
        ({"OUT": np.float32(1)}, "output 'OUT' has shape [], the model configuration says [-1, 2]"),
        ({"OUT": rows(2)}, "failed to split the output tensor 'OUT' in responses: expected batch size of 1 in model "
                           "output, got 2"),
        ({"OUT": object()}, "output 'OUT' has shape []"),
    ],
)  # fmt: skip
def test_what_a_function_must_not_return(tmp_path: Path, made: Any, text: str) -> None:
    answers = [made]
    backend = Given(lambda batch: answers.pop() if answers else double(batch))
    with serving(tmp_path, backend) as runtime:
        with pytest.raises(Internal) as raised:
            ask(runtime, IN=rows(1)).wait(LONG_S)
        assert text in str(raised.value)
        # That batch alone.
        assert (values(ask(runtime, IN=rows(1))) == rows(1) * 2).all()


def test_strings_must_be_bytes_or_str(tmp_path: Path) -> None:
    text = 'input { name: "IN" data_type: TYPE_FP32 dims: 2 } output { name: "OUT" data_type: TYPE_STRING dims: 2 }'
    answers: list[Any] = [rows(1)[0], [b"a", 7]]
    with serving(tmp_path, Given(lambda batch: {"OUT": answers.pop()}), text) as runtime:
        with pytest.raises(Internal, match="output 'OUT' has an element that is int, not bytes or str"):
            ask(runtime, IN=rows(1)[0]).wait(LONG_S)
        with pytest.raises(Internal, match=r"'OUT' is float32, the model configuration says TYPE_STRING"):
            ask(runtime, IN=rows(1)[0]).wait(LONG_S)


@pytest.mark.parametrize("lends", [False, True])
def test_a_large_output_is_the_server_s_own_unless_it_is_lent(tmp_path: Path, lends: bool) -> None:
    reused = np.zeros((1, 20_000), np.float32)

    def fill(batch: Batch) -> dict[str, Any]:
        reused[:] = batch.inputs["IN"][0, 0]
        return {"OUT": reused if not lends else reused.copy()}

    text = 'max_batch_size: 1 input { name: "IN" data_type: TYPE_FP32 dims: 2 }'
    text += 'output { name: "OUT" data_type: TYPE_FP32 dims: -1 }'
    backend = Given(fill)
    backend.lends_outputs = lends
    with serving(tmp_path, backend, text) as runtime:
        calls = [ask(runtime, IN=np.full((1, 2), n, np.float32)) for n in range(5)]
        for call in calls:
            call.wait(LONG_S)
        for n, call in enumerate(calls):
            assert (values(call) == n).all()
        del call
        calls.clear()


def test_an_optional_input_is_there_or_not(tmp_path: Path) -> None:
    def add(batch: Batch) -> dict[str, Any]:
        return {"OUT": batch.inputs["IN"] + batch.inputs.get("BIAS", np.float32(100))}

    signature = Signature([*XY.inputs, Tensor("BIAS", "FP32", (-1, 2), optional=True)], XY.outputs)
    with serving(tmp_path, Given(add, signature), "") as runtime:
        assert [(one.name, one.optional) for one in runtime.config.input] == [("IN", False), ("BIAS", True)]
        assert (values(ask(runtime, IN=rows(1))) == rows(1) + 100).all()
        assert (values(ask(runtime, IN=rows(1), BIAS=rows(1))) == rows(1) * 2).all()
        with pytest.raises(InvalidArg):
            ask(runtime, BIAS=rows(1)).wait(LONG_S)


def test_only_what_is_wanted_need_be_made(tmp_path: Path) -> None:
    def some(batch: Batch) -> dict[str, Any]:
        asked.append(batch.wanted)
        return {name: batch.inputs["IN"] for name in batch.wanted}

    asked: list[frozenset[str]] = []
    text = DYNAMIC + 'output { name: "DEAR" data_type: TYPE_FP32 dims: 2 }'
    with serving(tmp_path, Given(some), text) as runtime:
        call = InferCall(runtime.native, [("IN", DataType.FP32, (1, 2), rows(1).tobytes())], outputs=["OUT"])
        assert set(call.wait(LONG_S)) == {"OUT"}
        assert set(ask(runtime, IN=rows(1)).wait(LONG_S)) == {"OUT", "DEAR"}
    assert asked == [{"OUT"}, {"OUT", "DEAR"}]


# --- batches and their errors -----------------------------------------------------------------------------------------


def test_requests_share_a_call(tmp_path: Path) -> None:
    held = Held()
    with serving(tmp_path, Given(held)) as runtime:
        given = [rows(n, 10 * n) for n in (1, 3, 2)]
        for call, array in zip(held.together(runtime, given), given, strict=True):
            assert (values(call) == array * 2).all()
    assert held.rows == [(1,), (1, 3, 2)]


def test_without_a_batch_dimension_each_request_is_a_call(tmp_path: Path) -> None:
    shapes = []

    def note(batch: Batch) -> dict[str, Any]:
        shapes.append((batch.inputs["IN"].shape, batch.rows, batch.slices()))
        return double(batch)

    with serving(tmp_path, Given(note), "max_batch_size: 0 " + IO) as runtime:
        for _ in range(2):
            assert (values(ask(runtime, IN=rows(1)[0])) == rows(1)[0] * 2).all()
    assert shapes == [((2,), (1,), [slice(0, 1)])] * 2


def test_one_request_of_a_batch_fails(tmp_path: Path) -> None:
    def positive(batch: Batch) -> dict[str, Any]:
        for n, part in enumerate(batch.slices()):
            if (batch.inputs["IN"][part] < 0).any():
                batch.fail(n, "negative" if n == 1 else Unavailable("later"))
        return double(batch)

    held = Held(positive)
    with serving(tmp_path, Given(held)) as runtime:
        good, bad, busy, last = held.together(runtime, [rows(2), -rows(1, 1), -rows(1, 1), rows(1)])
        assert (values(good) == rows(2) * 2).all()
        with pytest.raises(InvalidArg, match=r"^negative$"):
            bad.wait(LONG_S)
        with pytest.raises(Unavailable, match=r"^later$"):
            busy.wait(LONG_S)
        assert (values(last) == rows(1) * 2).all()


def test_a_request_that_is_not_there_can_not_fail(tmp_path: Path) -> None:
    def odd(batch: Batch) -> dict[str, Any]:
        batch.fail(len(batch.rows), "who?")
        return double(batch)

    with serving(tmp_path, Given(odd)) as runtime, pytest.raises(Internal, match="no request 1 in a batch of 1"):
        ask(runtime, IN=rows(1)).wait(LONG_S)


class Mute(Exception):
    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (lambda: ValueError("bad\nvalue"), Internal, r"^backend 'given' failed: ValueError: bad value \(test_array"),
        (lambda: InvalidArg("say it so"), InvalidArg, "^say it so$"),
        (lambda: SystemExit(3), Internal, "backend 'given' failed: SystemExit: 3"),
        (KeyboardInterrupt, Internal, "backend 'given' failed: KeyboardInterrupt"),
        (MemoryError, Internal, "backend 'given' failed: MemoryError"),
        (Mute, Internal, "backend 'given' failed: Mute"),
    ],
)  # fmt: skip
def test_an_exception_fails_the_batch_and_no_more(
    tmp_path: Path, error: Callable[[], BaseException], kind: type[ServerError], text: str
) -> None:
    def fail(batch: Batch) -> dict[str, Any]:
        if (batch.inputs["IN"] < 0).any():
            raise error()
        return double(batch)

    held = Held(fail)
    with serving(tmp_path, Given(held)) as runtime:
        for call in held.together(runtime, [rows(2), -rows(1, 1)]):
            with pytest.raises(kind, match=text):
                call.wait(LONG_S)
        assert (values(ask(runtime, IN=rows(1))) == rows(1) * 2).all()


# --- loading ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "settings", "batch", "dynamic"),
    [
        ("", {}, 4, True),
        ("", {"default-max-batch-size": "16"}, 16, True),
        ("", {"default-max-batch-size": "1"}, 1, False),
        ("max_batch_size: 3", {"default-max-batch-size": "16"}, 3, True),
        ("max_batch_size: 0", {}, 0, False),
        ("max_batch_size: 2 sequence_batching { }", {}, 2, False),
    ],
)
def test_a_config_is_completed(tmp_path: Path, text: str, settings: dict[str, str], batch: int, dynamic: bool) -> None:
    with serving(tmp_path, Given(double, XY), text, settings=settings) as runtime:
        config = runtime.config
        assert config.max_batch_size == batch
        assert config.HasField("dynamic_batching") is dynamic
        for one, name in ((config.input[0], "IN"), (config.output[0], "OUT")):
            assert (one.name, one.data_type, list(one.dims)) == (name, DataType.FP32, [2] if batch else [-1, 2])


@pytest.mark.parametrize("text", ["x", "\u00b2", "9" * 30])
def test_a_default_batch_size_that_is_no_number(tmp_path: Path, text: str) -> None:
    refused = pytest.raises(InvalidArg, match=f"^default-max-batch-size must be a whole number, got '{text}'$")
    with refused, serving(tmp_path, Given(double, XY), "", settings={"default-max-batch-size": text}):
        pass


def test_what_was_given_is_kept(tmp_path: Path) -> None:
    text = 'max_batch_size: 4 input { name: "IN" data_type: TYPE_FP32 dims: 2 }'
    with serving(tmp_path, Given(double, XY), text) as runtime:
        assert [one.name for one in runtime.config.output] == ["OUT"]
        assert list(runtime.config.input[0].dims) == [2]


@pytest.mark.parametrize(
    ("signature", "text", "said"),
    [
        (None, "", "model 'm' does not tell its tensors: write input and output into config.pbtxt"),
        (XY, DYNAMIC.replace("IN", "INN"), "unexpected inference input 'INN', allowed inputs are: IN"),
        (XY, DYNAMIC.replace("FP32", "INT8"), "expects datatype TYPE_INT8 for input 'IN', model provides TYPE_FP32"),
        (XY, DYNAMIC.replace("dims: 2", "dims: 3"), "the model expects 2 dimensions (shape [-1,2])"),
        (Signature([Tensor("IN", "FP32", (2,))], XY.outputs), "max_batch_size: 4", "model does not support batching"),
        (Signature([Tensor("IN", "FLOAT", (2,))], XY.outputs), "", "tensor 'IN' has no datatype 'FLOAT'"),
        (Signature([Tensor("IN", "INT8", (-1, 2), True)], XY.outputs), DYNAMIC,
         "optional input 'IN' is FP32 in the configuration, model provides INT8"),
        (XY, DYNAMIC.replace("dims: 2 }", "dims: 2 optional: true }", 1), "input 'IN' is not optional for the model"),
        ((1, 2, 3), "", "backend 'given' failed: TypeError"),
        (lambda: SystemExit(1), "", "unable to load model 'm', backend 'given' failed: SystemExit: 1"),
        (lambda: Unavailable("no licence"), "", "no licence"),
        (None, 'input { name: "IN" data_type: TYPE_FP32 dims: -1 allow_ragged_batch: true }'
               'output { name: "OUT" data_type: TYPE_FP32 dims: 1 } max_batch_size: 2', "takes no ragged input 'IN'"),
        (None, DYNAMIC + 'batch_input { kind: BATCH_ELEMENT_COUNT target_name: "N" data_type: TYPE_FP32 '
                         'source_input: "IN" }', "makes no batch_input"),
        (None, "max_batch_size: 0 model_transaction_policy { decoupled: true }" + IO,
         "is decoupled, which this version does not serve with backend 'given'"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit(tmp_path: Path, signature: Any, text: str, said: str) -> None:
    made = signature() if callable(signature) else signature
    assert said in refused(tmp_path, Given(double, made), text)


@pytest.mark.parametrize(
    ("opened", "said"),
    [
        (lambda: ValueError("bad"), r"unable to load model 'm', backend 'given' failed: ValueError: bad"),
        (lambda: SystemExit(1), "backend 'given' failed: SystemExit: 1"),
        (lambda: Unsupported("not this one"), "not this one"),
        (lambda: None, "open returned NoneType, not a function"),
    ],
)
def test_an_open_that_fails(tmp_path: Path, opened: Any, said: str) -> None:
    assert said in refused(tmp_path, Given(opened()))


def test_a_missing_or_empty_file(tmp_path: Path) -> None:
    backend = Given(double, filename="model.given")
    assert refused(tmp_path / "a", backend) == "unable to find 'm/1/model.given' for model instance 'm'"
    assert "'m/1/model.given' is empty" in refused(tmp_path / "b", backend, files={"model.given": ""})
    assert not backend.models


def test_paths_do_not_show(tmp_path: Path) -> None:
    class Reader(Given):
        def open(self, model: Model) -> Any:
            return (model.path.parent / "missing").read_text()

    text = refused(tmp_path, Reader(double))
    assert "FileNotFoundError" in text
    assert "'m/missing'" in text


def test_what_a_backend_is_told(tmp_path: Path) -> None:
    backend = Given(double, filename="model.given")
    text = (
        DYNAMIC
        + 'parameters { key: "p" value { string_value: "7" } } parameters { key: "odd" value { string_value: "x" } }'
    )
    with serving(tmp_path, backend, text, files={"model.given": "1"}, settings={"s": "9", "p": "1"}):
        pass
    (model,) = backend.models
    assert (model.name, model.version, model.path) == ("m", 1, tmp_path / "m" / "1" / "model.given")
    assert (model.number("p", 1), model.number("s", 1), model.number("none", 5)) == (7, 9, 5)
    assert (model.instance, model.device, model.threads >= 1) == ("", "cpu", True)
    with pytest.raises(InvalidArg, match="'odd' of model 'm' must be a whole number from 0, got 'x'"):
        model.number("odd", 1)
    with pytest.raises(InvalidArg, match="whole number from 8"):
        model.number("p", 1, least=8)


@pytest.mark.parametrize(
    ("files", "name", "expected"),
    [
        (["w.bin"], "w.bin", "w.bin"),
        (["model.given", "own.bin"], "", "model.given"),
        (["folder/x"], "folder", "folder"),
    ],
)
def test_which_file(tmp_path: Path, files: list[str], name: str, expected: str) -> None:
    backend = Given(double, filename="model.given")
    for file in files:
        path = tmp_path / "m" / "1" / file
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("x")
    (tmp_path / "m" / "config.pbtxt").write_text(
        'backend: "given"' + DYNAMIC + (f'default_model_filename: "{name}"' if name else "")
    )
    preparer = Preparer(lambda _: backend)
    context, _ = preparer.version("m", 1, tmp_path / "m", tmp_path / "m" / "1", preparer.read("m", tmp_path / "m"))
    backend.load(context).close()
    assert backend.models[0].path == tmp_path / "m" / "1" / expected


def test_a_backend_without_a_file_gets_the_folder(tmp_path: Path) -> None:
    backend = Given(double)
    with serving(tmp_path, backend):
        pass
    assert backend.models[0].path == tmp_path / "m" / "1"


# --- instances --------------------------------------------------------------------------------------------------------


class Closing:
    def __init__(self, error: BaseException | None = None) -> None:
        self.error, self.closed = error, 0

    def __call__(self, batch: Batch) -> dict[str, Any]:
        return double(batch)

    def close(self) -> None:
        self.closed += 1
        if self.error:
            raise self.error


@pytest.mark.parametrize("shared", [True, False])
def test_instances_share_a_model_or_not(tmp_path: Path, shared: bool) -> None:
    run = Closing()
    backend = Given(run)
    backend.shared = shared
    with serving(tmp_path, backend, DYNAMIC + "instance_group { count: 3 kind: KIND_CPU }") as runtime:
        assert (values(ask(runtime, IN=rows(1))) == rows(1) * 2).all()
    names = [model.instance for model in backend.models]
    assert names == ([""] if shared else ["m_0_0", "m_0_1", "m_0_2"])
    assert run.closed == len(names)


@pytest.mark.parametrize("kind", ["KIND_GPU", "KIND_AUTO"])
def test_each_instance_is_told_its_gpu(tmp_path: Path, kind: str) -> None:
    backend = Given(double)
    backend.shared, backend.uses_gpu = False, True
    text = DYNAMIC + f"instance_group {{ count: 1 kind: {kind} gpus: [ 0, 3 ] }}"
    with serving(tmp_path, backend, text, gpus=(0, 3)) as runtime:
        assert (values(ask(runtime, IN=rows(1))) == rows(1) * 2).all()
    assert [model.device for model in backend.models] == ["cuda:0", "cuda:3"]


def test_a_backend_that_uses_no_gpu(tmp_path: Path) -> None:
    backend = Given(double)
    backend.shared = False
    said = refused(tmp_path / "a", backend, DYNAMIC + "instance_group { kind: KIND_GPU }", gpus=(0,))
    assert "KIND_GPU" in said
    assert not backend.models
    with serving(tmp_path / "b", backend, gpus=(0,)):
        pass
    assert [model.device for model in backend.models] == ["cpu"]


def test_datatypes_are_those_that_numpy_has(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Given(double).datatypes() == set(TYPES)
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    array_values.kind_of.cache_clear()
    try:
        assert Given(double).datatypes() == set(TYPES) - {DataType.BF16}
    finally:
        array_values.kind_of.cache_clear()


def test_an_end_that_fails_is_only_logged(tmp_path: Path) -> None:
    run = Closing(SystemExit(1))
    with serving(tmp_path, Given(run)):
        pass
    assert run.closed == 1


def test_states_of_sequences_are_inputs_and_outputs(tmp_path: Path) -> None:
    def count(batch: Batch) -> dict[str, Any]:
        total = batch.inputs["SUM_IN"] + batch.inputs["IN"]
        return {"OUT": total, "SUM_OUT": total}

    state = 'state { input_name: "SUM_IN" output_name: "SUM_OUT" data_type: TYPE_FP32 dims: 2 '
    state += 'initial_state { name: "zero" data_type: TYPE_FP32 dims: 2 zero_data: true } }'
    text = f"max_batch_size: 2 sequence_batching {{ {state} }} " + IO
    with serving(tmp_path, Given(count), text) as runtime:
        for n in range(1, 4):
            given = [("IN", DataType.FP32, (1, 2), np.ones((1, 2), np.float32).tobytes())]
            call = InferCall(runtime.native, given, correlation=7, flags=(n == 1) + 2 * (n == 3))
            assert (values(call) == n).all()
