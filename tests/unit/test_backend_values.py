"""Values that several backends read alike, and what each of them says of one that can not be used."""

from __future__ import annotations

from pathlib import Path

import pytest

from triton_fast import protos
from triton_fast.backends import values
from triton_fast.backends.base import LoadContext
from triton_fast.backends.onnxruntime import plan as onnxruntime
from triton_fast.backends.openvino import plan as openvino
from triton_fast.backends.pytorch import settings as pytorch
from triton_fast.errors import InvalidArg

BATCH = "default-max-batch-size"


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("16", 16), (" 8 ", 8), ("2147483647", 2147483647)])
def test_a_default_that_can_be_used(text: str, value: int) -> None:
    assert values.default_max_batch_size({BATCH: text}) == value
    assert values.default_max_batch_size({}) == 4
    assert values.default_max_batch_size({}, 8192) == 8192


@pytest.mark.parametrize("text", ["", "-1", "1.5", "x", "2147483648", "9" * 5000, "\u0663", "{text}"])
def test_a_default_that_can_not(text: str) -> None:
    for refused, shown in (
        ({}, f"parameter '{BATCH}' must be a whole number from 0 to 2147483647, got '{text}'"),
        ({"refused": "{key} of mine: '{text}'"}, f"{BATCH} of mine: '{text}'"),
    ):
        with pytest.raises(InvalidArg) as raised:
            values.default_max_batch_size({BATCH: text}, **refused)
        assert raised.value.message == shown


def test_flags() -> None:
    assert [values.flag(text, "k") for text in ("ON", " yes", "1", "true", "", "off", "No", "0", "false")] == (
        [True] * 4 + [False] * 5
    )
    with pytest.raises(InvalidArg, match=r"^parameter 'k' must be true or false, got 'maybe'$"):
        values.flag("maybe", "k")
    with pytest.raises(InvalidArg, match=r"^parameter 'k' of model 'm' must be true or false, got 'maybe'$"):
        values.flag("maybe", "k", model="m")


@pytest.mark.parametrize(("backend", "key"), [
    ("onnxruntime", "intra_op_thread_count"), ("onnxruntime", "inter_op_thread_count"),
    ("openvino", "INFERENCE_NUM_THREADS"), ("openvino", "COMPILATION_NUM_THREADS"), ("openvino", "NUM_STREAMS"),
    ("pytorch", "INTRA_OP_THREAD_COUNT"), ("pytorch", "NUM_INTEROP_THREADS"),
])  # fmt: skip
def test_threads_that_no_system_has(backend: str, key: str) -> None:
    """A load request may say how many: libraries hang, or end the process, when they do not get them."""

    def read(text: str) -> object:
        config = protos.ModelConfig(name="m", backend=backend)
        config.parameters[key].string_value = text
        context = LoadContext("m", 1, Path("m"), Path("m/1"), config)
        if backend == "onnxruntime":
            return onnxruntime.make_plan(context, available=(), global_pool=False)
        return openvino.make_plan(context) if backend == "openvino" else pytorch.read(context)

    read("1024")
    for text in ("1025", "100000", "2147483647"):
        with pytest.raises(InvalidArg, match=f"'{key}'.* 1024.*{text}"):
            read(text)


def test_kinds() -> None:
    kinds = protos.ModelInstanceGroup
    for kind in ("KIND_AUTO", "KIND_CPU", "KIND_GPU", "KIND_MODEL"):
        assert values.kind_name(kinds(kind=getattr(kinds, kind))) == kind
