"""TensorRT itself on a GPU: engines are built here, and results are numpy's. Skipped where either is missing."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers.server import ServerProcess
from tests.helpers.trt_models import NUMPY, Opener
from tests.helpers.trt_plans import write
from tests.integration.onnx_files import infer
from triton_fast.errors import InvalidArg, ServerError

trt = pytest.importorskip("tensorrt", reason="TensorRT is missing: pip install 'triton_fast[tensorrt]'")


pytestmark = pytest.mark.skipif(not hasattr(trt, "Builder"), reason="this TensorRT can not build engines")

GRAPHS = "optimization { cuda { graphs: true } }\n"
OF_TRT = {"FP32": "FLOAT", "FP16": "HALF"}
Shape = Sequence[int]
Range = tuple[Shape, Shape, Shape]


def kind_of(name: str) -> Any:
    return getattr(trt.DataType, OF_TRT.get(name, name))


def build(
    define: Callable[[Any], None], profiles: Sequence[Mapping[str, Range]], values: Mapping[str, Range] = {}
) -> bytes:
    """Return the plan of the network that ``define`` fills."""
    builder = trt.Builder(trt.Logger(trt.Logger.WARNING))
    flags = getattr(trt, "NetworkDefinitionCreationFlag", None)
    typed = getattr(flags, "STRONGLY_TYPED", None)
    network = builder.create_network(1 << int(typed) if typed is not None else 0)
    define(network)
    config = builder.create_builder_config()
    for ranges in profiles:
        profile = builder.create_optimization_profile()
        for name, (low, best, high) in ranges.items():
            profile.set_shape(name, tuple(low), tuple(best), tuple(high))
        for name, (low, best, high) in values.items():
            profile.set_shape_input(name, tuple(low), tuple(best), tuple(high))
        config.add_optimization_profile(profile)
    made = builder.build_serialized_network(network, config)
    assert made is not None
    return bytes(made)


def mark(network: Any, tensor: Any, name: str) -> None:
    tensor.name = name
    network.mark_output(tensor)


def swap(kind: str, dims: Shape = (-1, 2, 3)) -> bytes:
    """OUT = IN with its last two dimensions exchanged."""

    def define(network: Any) -> None:
        given = network.add_input("IN", kind_of(kind), tuple(dims))
        tensor = given
        if kind == "UINT8":  # goes in and out of networks, no more
            tensor = network.add_cast(tensor, trt.DataType.FLOAT).get_output(0)
        if kind == "INT8":
            scale = network.add_constant((), np.ones((), np.float32)).get_output(0)
            tensor = network.add_dequantize(tensor, scale, trt.DataType.FLOAT).get_output(0)
        layer = network.add_shuffle(tensor)
        layer.first_transpose = trt.Permutation([*range(len(dims) - 2), len(dims) - 1, len(dims) - 2])
        tensor = layer.get_output(0)
        if kind == "UINT8":
            tensor = network.add_cast(tensor, trt.DataType.UINT8).get_output(0)
        if kind == "INT8":
            scale = network.add_constant((), np.ones((), np.float32)).get_output(0)
            tensor = network.add_quantize(tensor, scale, trt.DataType.INT8).get_output(0)
        mark(network, tensor, "OUT")

    if dims[0] != -1:
        return build(define, [{}])
    return build(define, [{"IN": ((1, *dims[1:]), (4, *dims[1:]), (8, *dims[1:]))}])


def add_sub(ranges: Sequence[Range], dims: Shape = (-1, -1)) -> bytes:
    def define(network: Any) -> None:
        a, b = (network.add_input(name, trt.DataType.FLOAT, tuple(dims)) for name in "AB")
        mark(network, network.add_elementwise(a, b, trt.ElementWiseOperation.SUM).get_output(0), "SUM")
        mark(network, network.add_elementwise(a, b, trt.ElementWiseOperation.SUB).get_output(0), "DIFFERENCE")

    return build(define, [{"A": one, "B": one} for one in ranges])


def nonzero() -> bytes:
    def define(network: Any) -> None:
        given = network.add_input("IN", trt.DataType.FLOAT, (-1,))
        mark(network, network.add_non_zero(given).get_output(0), "OUT")

    return build(define, [{"IN": ((1,), (100,), (100_000,))}])


def reshaped() -> bytes:
    """OUT = IN in the shape that S says."""

    def define(network: Any) -> None:
        given = network.add_input("IN", trt.DataType.FLOAT, (-1,))
        layer = network.add_shuffle(given)
        layer.set_input(1, network.add_input("S", trt.DataType.INT64, (2,)))
        mark(network, layer.get_output(0), "OUT")

    return build(define, [{"IN": ((1,), (6,), (64,))}], {"S": ((1, 1), (2, 3), (64, 64))})


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Opener]:
    opener = Opener(tmp_path)
    yield opener
    opener.close()
    gc.collect()


def rows(n: int, width: int = 4, start: float = 1) -> np.ndarray:
    return np.arange(start, start + n * width, dtype=np.float32).reshape(n, width)


TWO = (((1, 1), (4, 4), (8, 8)), ((1, 9), (4, 32), (8, 64)))
ONE = (((1, 1), (4, 4), (8, 4096)),)


@pytest.mark.parametrize("kind", sorted(NUMPY))
@pytest.mark.parametrize("batched", [True, False])
def test_every_datatype(opened: Opener, kind: str, batched: bool) -> None:
    made = opened(swap(kind, (-1, 2, 3) if batched else (2, 3)), "" if batched else "max_batch_size: 0\n")
    shapes = [(n, 2, 3) for n in (1, 2, 1)] if batched else [(2, 3)]
    given = [np.random.default_rng(i).integers(0, 2, shape).astype(NUMPY[kind]) for i, shape in enumerate(shapes)]
    for array, answer in zip(given, made.run(*[{"IN": array} for array in given]), strict=True):
        assert not isinstance(answer, Exception), answer
        assert answer["OUT"].tobytes() == np.ascontiguousarray(array.swapaxes(-1, -2)).tobytes()


def test_two_profiles_and_what_neither_takes(opened: Opener) -> None:
    made = opened(add_sub(TWO), 'instance_group [{ profile: ["0", "1"] }]\n')
    for width in (3, 40, 8, 9, 64, 3):
        a = rows(2, width)
        (answer,) = made.run({"A": a, "B": a})
        assert not isinstance(answer, Exception), answer
        assert (answer["SUM"] == 2 * a).all()
        assert (answer["DIFFERENCE"] == 0).all()
    (error,) = made.run({"A": rows(1, 65), "B": rows(1, 65)})
    assert isinstance(error, InvalidArg)
    assert "between 9 and 64 but received 65" in str(error)


def test_graphs(opened: Opener) -> None:
    made = opened(add_sub(ONE), f"max_batch_size: 8\n{GRAPHS}")
    for start in range(6):
        for n in (8, 1, 3):
            a = rows(n, 256, start)
            (answer,) = made.run({"A": a, "B": rows(n, 256)})
            assert not isinstance(answer, Exception), answer
            assert (answer["SUM"] == a + rows(n, 256)).all()
    # 1 and 8 rows are captured behind their second run, 3 are not.
    assert made.counted("captured", "launched", "enqueued") == (2, 8, 10)


def test_large_tensors_and_batches(opened: Opener) -> None:
    made = opened(add_sub(ONE))
    for sizes in ((8,), (1, 3, 4), (1,) * 8):
        given = [{"A": rows(n, 4096, n), "B": rows(n, 4096)} for n in sizes]
        for request, answer in zip(given, made.run(*given), strict=True):
            assert not isinstance(answer, Exception), answer
            assert (answer["SUM"] == request["A"] + request["B"]).all()


def test_outputs_of_unknown_size(opened: Opener) -> None:
    made = opened(nonzero(), "max_batch_size: 0\n")
    for array in (np.array([0, 1, 0, 1, 1], np.float32), np.ones(60_000, np.float32), np.zeros(7, np.float32)):
        (answer,) = made.run({"IN": array})
        assert not isinstance(answer, Exception), answer
        assert sorted(answer["OUT"].ravel().tolist()) == np.flatnonzero(array).tolist()


def test_shape_tensors(opened: Opener) -> None:
    made = opened(reshaped(), "max_batch_size: 0\n")
    for shape in ((2, 3), (3, 2), (1, 6), (6, 1)):
        (answer,) = made.run({"IN": np.arange(6, dtype=np.float32), "S": np.array(shape, np.int64)})
        assert not isinstance(answer, Exception), answer
        assert (answer["OUT"] == np.arange(6, dtype=np.float32).reshape(shape)).all()


def test_what_is_no_plan(opened: Opener) -> None:
    whole = add_sub(TWO)
    for data in (b"garbage" * 100, whole[: len(whole) // 2], b"PK\x03\x04" + bytes(100)):
        with pytest.raises(ServerError, match=r"unable to create TensorRT engine: ."):
            opened(data)
    opened(whole)


def test_the_server(tmp_path: Path) -> None:
    write(tmp_path, add_sub(ONE), f'backend: "tensorrt"\n{GRAPHS}instance_group [{{ count: 2 }}]\n')
    with ServerProcess(tmp_path) as server:

        def ask(n: int) -> bool:
            a = np.full((1 + n % 4, (4, 256, 4096)[n % 3]), n, np.float32)
            found = infer(server.http, "m", {"A": a, "B": a})
            return bool((found["SUM"] == 2 * n).all() and (found["DIFFERENCE"] == 0).all())

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(ask, range(200)))
