"""The repeat backend's config: what is filled in, what is refused, and a model version that serves."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.helpers.models import LONG_S, counters_at_base
from triton_fast import backends
from triton_fast import config as cfg
from triton_fast._native.sched.inprocess import StreamCall
from triton_fast.backends.base import LoadContext
from triton_fast.config import ConfigError, parse
from triton_fast.errors import InvalidArg
from triton_fast.scheduling.runtime import ModelRuntime
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

INPUTS = {
    "IN": "TYPE_INT32 dims: -1", "DELAY": "TYPE_UINT32 dims: -1", "WAIT": "TYPE_UINT32 dims: 1",
}  # fmt: skip
OUTPUTS = {"OUT": "TYPE_INT32 dims: 1", "IDX": "TYPE_UINT32 dims: 1"}
DECOUPLED = "model_transaction_policy { decoupled: true }"


def tensors(inputs=INPUTS, outputs=OUTPUTS):
    lines = [f"{kind} {{ name: '{name}' data_type: {rest} }}"
             for kind, given in (("input", inputs), ("output", outputs)) for name, rest in given.items()]
    return " ".join(lines)  # fmt: skip


def context_of(text):
    parsed = parse.parse_text(f'name: "m" backend: "repeat" {text}'.encode(), "f")
    cfg.normalize(parsed.config, cpu_count=1)
    return LoadContext("m", 1, Path("m"), Path("m/1"), parsed.config, given=parsed.given)


def complete(text):
    context = context_of(text)
    config = backends.get("repeat").complete_config(context)
    cfg.normalize(config, cpu_count=1)
    return context, config


def serves(context):
    runtime = ModelRuntime.start(context, backends.get("repeat"))
    given = [
        ("IN", DataType.INT32, (2,), struct.pack("<2i", 4, 5)),
        ("DELAY", DataType.UINT32, (2,), bytes(8)),
        ("WAIT", DataType.UINT32, (1,), bytes(4)),
    ]
    call = StreamCall(runtime.native, given, ["OUT"])
    found = []
    while (taken := call.take(LONG_S)) is not None:
        found.append(taken)
    assert runtime.stop(LONG_S)
    values = [struct.unpack("<i", outputs["OUT"][2])[0] for outputs, is_final in found if not is_final]
    return values == [4, 5] and found[-1] == ({}, True)


@pytest.mark.parametrize("text", ["", "max_batch_size: 0", DECOUPLED, tensors(), tensors(outputs={})])
def test_what_is_left_out_is_filled_in(text):
    context, config = complete(text)
    assert {entry.name: (entry.data_type, list(entry.dims)) for entry in config.input} == {
        "IN": (DataType.INT32, [-1]), "DELAY": (DataType.UINT32, [-1]), "WAIT": (DataType.UINT32, [1]),
    }  # fmt: skip
    assert [(entry.name, entry.data_type, list(entry.dims)) for entry in config.output] == [
        ("OUT", DataType.INT32, [1]), ("IDX", DataType.UINT32, [1]),
    ]  # fmt: skip
    assert config.max_batch_size == 0
    assert config.model_transaction_policy.decoupled
    assert serves(context)


def test_what_is_given_stays():
    _, config = complete(f"model_transaction_policy {{ decoupled: false }} {tensors({'X': 'TYPE_FP32 dims: 3'})}")
    assert [entry.name for entry in config.input] == ["X"]
    assert not config.model_transaction_policy.decoupled


def test_batches_can_not_be_completed():
    with pytest.raises(ConfigError, match="does not support batching"):
        complete("max_batch_size: 4")


@pytest.mark.parametrize(
    "text",
    [
        tensors(),
        tensors({name: INPUTS[name] for name in ("WAIT", "DELAY", "IN")}, dict(reversed(OUTPUTS.items()))),
        tensors({**INPUTS, "IN": "TYPE_INT32 dims: 2", "DELAY": "TYPE_UINT32 dims: 2"}),
    ],
)
def test_a_whole_config_serves(text):
    assert serves(context_of(f"{DECOUPLED} {text}"))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"max_batch_size: 2 {DECOUPLED} {tensors()}",
         "repeat backend only supports models with max_batch_size == 0, got 2 for model 'm'"),
        (tensors(), "repeat backend requires model_transaction_policy { decoupled: true } for model 'm'"),
        (DECOUPLED, "repeat backend expects inputs IN, DELAY, WAIT for model 'm', got none"),
        (f"{DECOUPLED} {tensors({**INPUTS, 'MORE': 'TYPE_INT32 dims: 1'})}",
         "repeat backend expects inputs IN, DELAY, WAIT for model 'm', got IN, DELAY, WAIT, MORE"),
        (f"{DECOUPLED} {tensors(outputs={'OUT': OUTPUTS['OUT']})}",
         "repeat backend expects outputs OUT, IDX for model 'm', got OUT"),
        (f"{DECOUPLED} {tensors({**INPUTS, 'WAIT': 'TYPE_INT32 dims: 1'})}",
         "repeat backend expects input WAIT to have data type TYPE_UINT32 for model 'm'"),
        (f"{DECOUPLED} {tensors(outputs={**OUTPUTS, 'OUT': 'TYPE_INT64 dims: 1'})}",
         "repeat backend expects output OUT to have data type TYPE_INT32 for model 'm'"),
        (f"{DECOUPLED} {tensors({**INPUTS, 'WAIT': 'TYPE_UINT32 dims: -1'})}",
         "repeat backend expects input WAIT to have dims [1] for model 'm', got [-1]"),
        (f"{DECOUPLED} {tensors({**INPUTS, 'IN': 'TYPE_INT32 dims: [ -1, 2 ]'})}",
         "repeat backend expects input IN to have dims [-1] for model 'm', got [-1, 2]"),
        (f"{DECOUPLED} {tensors({**INPUTS, 'IN': 'TYPE_INT32 dims: 3'})}",
         "repeat backend expects inputs IN and DELAY to have the same dims for model 'm'"),
    ],
)  # fmt: skip
def test_a_config_that_does_not_fit_is_refused(text, expected):
    with pytest.raises(InvalidArg) as found:
        ModelRuntime.start(context_of(text), backends.get("repeat"))
    assert str(found.value) == expected
