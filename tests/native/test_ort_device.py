"""Inputs in device memory, with a stand-in for CUDA's driver: what is given to ONNX Runtime as it is, what is gathered.

ONNX Runtime for CPUs would read device memory as its own. So the model takes rows of another length than the requests
have: ONNX Runtime gets the inputs and refuses them unread.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.helpers import onnx_models as models
from tests.helpers import standin_cuda
from tests.helpers.onnx_repository import array, tensor
from tests.helpers.standin_cuda import StandIn
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.cuda import device_pool, flow
from triton_fast._native.cuda.device_pool import DeviceMemory
from triton_fast._native.ort import drive, session
from triton_fast._native.ort.instance import OrtInstance
from triton_fast.backends.onnxruntime import library
from triton_fast.config import IoSpec
from triton_fast.errors import Internal, ServerError, Unavailable, Unsupported
from triton_fast.types import DataType

ROW = np.arange(4, dtype=np.float32).reshape(1, 4)
COPY = "cuMemcpyDtoDAsync_v2"


@pytest.fixture
def fake() -> Iterator[StandIn]:
    with standin_cuda.opened() as opened:
        yield opened
        flow.trim()


class OnDevice:
    """An instance that believes that its session runs on GPU 0, and memory of GPUs to give it."""

    def __init__(self, fake: StandIn, path: Path, length: int = 5) -> None:
        path.write_bytes(models.identity("FP32", ("batch", length)))
        library.prepare({})
        opened = session.Session(str(path), session.SessionOptions())
        rows = [opened.inputs[0][:4]], [(opened.outputs[0][:4], True)]
        self.instance = OrtInstance("m_0", opened, 8, *rows, device=0)
        specs = [IoSpec(name, DataType.FP32, (4,)) for name in ("INPUT0", "OUTPUT0")]
        self.handle = ModelHandle("m", 1, 8, specs[:1], specs[1:])
        self.fake = fake
        self.kept: list[DeviceMemory] = []

    def on(self, device: int, offset: int = 0, nbytes: int = 16) -> tuple[DataType, tuple[int, int], object]:
        memory = DeviceMemory(device, 64)
        self.kept.append(memory)
        self.fake.poke(memory.address + offset, ROW.tobytes())
        return DataType.FP32, (nbytes // 16, 4), (device, memory.address + offset, nbytes)

    def run(self, *inputs: Any) -> list[Any]:
        return list(drive.run_batch(self.instance, self.handle, [{"INPUT0": one} for one in inputs]))

    def counted(self) -> tuple[int, int, int]:
        count = self.instance.counters()
        return count["borrowed"], count["copied_bytes"], count["device_bytes"]


@pytest.fixture
def made(fake: StandIn, tmp_path: Path) -> Iterator[OnDevice]:
    one = OnDevice(fake, tmp_path / "m.onnx")
    yield one
    one.kept.clear()
    assert device_pool.stats(0)["live"] == device_pool.stats(1)["live"] == 0


def refused_by_ort(answers: list[object]) -> None:
    for answer in answers:
        assert isinstance(answer, Internal), answer
        assert "Got invalid dimensions for input: INPUT0" in str(answer), answer


def test_it_says_what_it_takes(made: OnDevice) -> None:
    assert (made.instance.takes_gpu, made.instance.device) == (True, 0)


def test_host_memory_goes_on_as_it_is(fake: StandIn, tmp_path: Path) -> None:
    before = fake.calls(COPY)
    made = OnDevice(fake, tmp_path / "m.onnx", length=4)
    (answer,) = made.run(tensor(ROW))
    np.testing.assert_array_equal(array(answer["OUTPUT0"]), ROW)
    assert made.counted() == (1, 0, 0)
    two = made.run(tensor(ROW), tensor(ROW + 1))
    np.testing.assert_array_equal(array(two[1]["OUTPUT0"]), ROW + 1)
    assert made.counted() == (1, 32, 0)
    assert made.fake.calls(COPY) == before


def test_one_request_lends_its_memory(made: OnDevice) -> None:
    refused_by_ort(made.run(made.on(0)))
    assert made.counted() == (1, 0, 0)


def test_memory_that_lies_badly_is_copied_on_the_device(made: OnDevice) -> None:
    before = made.fake.calls(COPY)
    refused_by_ort(made.run(made.on(0, offset=16)))
    assert made.counted() == (0, 0, 16)
    assert made.fake.calls(COPY) == before + 1


def test_several_requests_are_gathered_on_the_device(made: OnDevice) -> None:
    within, into = made.fake.calls(COPY), made.fake.calls("cuMemcpyHtoDAsync_v2")
    refused_by_ort(made.run(made.on(0), tensor(ROW), made.on(0, offset=4)))
    assert made.counted() == (0, 0, 48)
    assert made.fake.calls(COPY) == within + 2
    assert made.fake.calls("cuMemcpyHtoDAsync_v2") == into + 1


def test_a_failed_run_is_waited_for(made: OnDevice) -> None:
    before = made.fake.calls("cuCtxSynchronize")
    refused_by_ort(made.run(made.on(0)))
    assert made.fake.calls("cuCtxSynchronize") > before


def test_an_input_without_elements_has_no_place(fake: StandIn, tmp_path: Path) -> None:
    made = OnDevice(fake, tmp_path / "m.onnx", length=4)
    (answer,) = made.run(made.on(0, nbytes=0))
    assert not isinstance(answer, ServerError), answer
    assert made.counted() == (1, 0, 0)


def test_memory_of_another_device(made: OnDevice) -> None:
    for answer in made.run(made.on(0), made.on(1)):
        assert isinstance(answer, Unsupported)
        assert str(answer) == "input 'INPUT0' must be in CPU memory"


@pytest.mark.parametrize("function", [COPY, "cuMemcpyHtoDAsync_v2", ""])
def test_what_fails_ends_the_batch_and_no_more(made: OnDevice, function: str) -> None:
    inputs = made.on(0), tensor(ROW), made.on(0)
    device_pool.trim()
    if function:
        made.fake.fail(function)
    else:
        made.fake.limit(memory=1)
    answers = made.run(*inputs)
    made.fake.limit()
    assert len({str(answer) for answer in answers}) == 1
    assert all(isinstance(answer, Unavailable) for answer in answers), answers
    refused_by_ort(made.run(*inputs))  # the next gets as far as it can
