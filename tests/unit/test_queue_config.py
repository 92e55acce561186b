"""How a config becomes the queue of a model: levels and their policies, order, limits, strategies that are refused."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest

from tests.helpers.models import LONG_S, Gate, counters_at_base, submit, value_of
from tests.helpers.sequences import END, START
from triton_fast import config as cfg
from triton_fast._native.sched.inprocess import InferCall
from triton_fast._native.sched.instance import NativeInstance
from triton_fast._native.sched.pyinstance import PyInstance
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.backends.host import Host
from triton_fast.config import parse
from triton_fast.errors import Code, InvalidArg, ResourceExhausted, Unavailable, Unsupported
from triton_fast.scheduling.instances import Limits
from triton_fast.scheduling.queues import queue_options
from triton_fast.scheduling.runtime import ModelRuntime
from triton_fast.types import DataType

__all__ = ["counters_at_base"]

IO = "input { name: 'IN' data_type: TYPE_INT32 dims: 1 } output { name: 'OUT' data_type: TYPE_INT32 dims: 1 }"
FULL = "Exceeds maximum queue size"


class GateBackend(Backend, BackendModel):
    name = "gate"
    default_filename = ""

    def __init__(self) -> None:
        self.gate = Gate()

    def load(self, context: LoadContext) -> BackendModel:
        return self

    def create_instance(self, spec: InstanceSpec) -> NativeInstance:
        return PyInstance(self.gate, spec.name)

    def close(self) -> None:
        pass


def config_of(text: str):
    config = parse.parse_text(f'name: "m" backend: "gate" max_batch_size: 4 {IO} {text}'.encode(), "f").config
    cfg.normalize(config, cpu_count=2, gpus=())
    return config


def started(text: str, root: Path = Path("m"), full_code: Code = Code.UNAVAILABLE, **host):
    backend = GateBackend()
    context = LoadContext("m", 3, root, root / "3", config_of(text), host=Host(**host))
    return ModelRuntime.start(context, backend, Limits(full_code=full_code)), backend.gate


def parameter(key: str, value: str) -> str:
    return f"parameters {{ key: '{key}' value {{ string_value: '{value}' }} }}"


def test_no_block_and_an_empty_one():
    plain = {"preferred": (), "delay_us": 0, "levels": ((0, 0, False, False),), "default_level": 1,
             "preserve_ordering": False, "max_volume": 0, "max_queue_bytes": 0,
             "max_held_bytes": 0}  # fmt: skip
    assert queue_options(config_of("")) == {**plain, "dynamic": False}
    assert queue_options(config_of("dynamic_batching { }")) == {**plain, "dynamic": True, "preferred": (4,)}


def test_levels_without_a_policy_have_the_default_one():
    options = queue_options(
        config_of("""dynamic_batching {
        priority_levels: 3 default_priority_level: 2
        default_queue_policy { max_queue_size: 9 default_timeout_microseconds: 70 allow_timeout_override: true }
        priority_queue_policy { key: 2 value { timeout_action: DELAY default_timeout_microseconds: 5 } }
    }""")
    )
    assert options["levels"] == ((9, 70, True, False), (0, 5, False, True), (9, 70, True, False))
    assert options["default_level"] == 2


def test_policies_of_levels_need_levels():
    options = queue_options(
        config_of("""dynamic_batching {
        default_queue_policy { max_queue_size: 9 } priority_queue_policy { key: 1 value { max_queue_size: 2 } }
    }""")
    )
    assert options["levels"] == ((9, 0, False, False),)


def test_too_many_levels_fail_the_load():
    text = "dynamic_batching { priority_levels: %d default_priority_level: 1 }"
    assert len(queue_options(config_of(text % 1024))["levels"]) == 1024
    with pytest.raises(Unsupported, match="'m' asks for 4000000000 priority_levels; this version serves at most 1024"):
        queue_options(config_of(text % 4_000_000_000))


@pytest.mark.parametrize(
    ("full_code", "kind"), [(Code.UNAVAILABLE, Unavailable), (Code.RESOURCE_EXHAUSTED, ResourceExhausted)]
)
def test_a_full_queue_answers_with_the_code_asked_for(full_code, kind):
    runtime, gate = started(
        "dynamic_batching { default_queue_policy { max_queue_size: 1 } } " + parameter("max_queue_bytes", "100"),
        full_code=full_code,
    )
    calls = [submit(runtime.native, -1)]
    gate.taken()
    calls.append(submit(runtime.native, 1))
    with pytest.raises(kind, match=f"^{FULL}$") as caught:
        submit(runtime.native, 2)
    assert type(caught.value) is kind
    gate.open()
    assert [value_of(call) for call in calls] == [-1, 1]
    assert runtime.stop(LONG_S)


@pytest.mark.parametrize("full_code", [Code.UNAVAILABLE, Code.RESOURCE_EXHAUSTED])
def test_sequences_that_may_wait(full_code):
    runtime, gate = started(
        "sequence_batching { } instance_group { kind: KIND_CPU } " + parameter("max_waiting_sequences", "1"),
        full_code=full_code,
    )

    def start(sequence: int) -> InferCall:
        value = ("IN", DataType.INT32, (1, 1), struct.pack("<i", sequence))
        return InferCall(runtime.native, [value], flags=START | END, correlation=sequence)

    calls = [start(1)]
    gate.taken()
    # All slots of the one instance, and one that waits.
    calls += [start(k) for k in range(2, 6)]
    with pytest.raises(Unavailable, match=f"^{FULL}: 1 sequences wait for a slot of model 'm'$") as caught:
        start(6)
    assert caught.value.code is full_code
    gate.open()
    assert [value_of(call) for call in calls] == [1, 2, 3, 4, 5]
    assert runtime.stop(LONG_S)


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("max_waiting_requests", "1", "1 requests of sequence 1 wait for model 'm'"),
        ("max_queue_bytes", "4", r"its requests have 4 bytes of inputs \(max_queue_bytes: 4\)"),
    ],
)
def test_requests_of_a_sequence_that_may_wait(name, value, text):
    runtime, gate = started("sequence_batching { } " + parameter(name, value))

    def send(number: int, flags: int = 0) -> InferCall:
        value = ("IN", DataType.INT32, (1, 1), struct.pack("<i", number))
        return InferCall(runtime.native, [value], flags=flags, correlation=1)

    calls = [send(1, START)]
    gate.taken()
    calls.append(send(2))
    with pytest.raises(Unavailable, match=f"^{FULL}: {text}$"):
        send(3, END)
    gate.open()
    assert [value_of(call) for call in calls] == [1, 2]
    assert runtime.stop(LONG_S)


@pytest.mark.parametrize("text", ["0", "-1", "x", "", "2147483648"])
@pytest.mark.parametrize("name", ["max_waiting_sequences", "max_waiting_requests"])
def test_sequences_that_may_wait_are_a_number(name, text):
    with pytest.raises(InvalidArg, match=f"^parameter '{name}' of model 'm' must be a number from 1, got '{text}'$"):
        started("sequence_batching { } " + parameter(name, text))


def test_bytes_that_may_wait():
    runtime, gate = started("dynamic_batching { } " + parameter("max_queue_bytes", "12"))
    calls = [submit(runtime.native, -1)]
    gate.taken()
    calls += [submit(runtime.native, k) for k in range(3)]
    with pytest.raises(Unavailable, match=rf"^{FULL}: its requests have 12 bytes of inputs \(max_queue_bytes: 12\)$"):
        submit(runtime.native, 4)
    with pytest.raises(
        InvalidArg, match=r"^the request has 16 bytes of inputs, more than the queue may hold \(max_que"
    ):
        submit(runtime.native, 4, 4)
    assert calls.pop().cancel()
    calls.append(submit(runtime.native, 5))
    gate.open()
    assert [value_of(call) for call in calls] == [-1, 0, 1, 5]
    assert runtime.stop(LONG_S)


def test_bytes_of_responses_that_may_be_held_back():
    ordered = "dynamic_batching { preserve_ordering: true } "
    assert queue_options(config_of(ordered))["max_held_bytes"] == 1 << 30
    assert queue_options(config_of(ordered + parameter("max_held_bytes", "5")))["max_held_bytes"] == 5
    with pytest.raises(
        InvalidArg, match=r"^parameter 'max_held_bytes' of model 'm' must be a number of bytes from 1, got '0'$"
    ):
        queue_options(config_of(ordered + parameter("max_held_bytes", "0")))


def test_a_batch_has_no_more_elements_than_its_strategy_allows():
    runtime, gate = started("dynamic_batching { } " + parameter("BATCH_STRATEGY", "volume:3"))
    calls = [submit(runtime.native, -1)]
    gate.taken()
    calls += [submit(runtime.native, k, rows) for k, rows in enumerate((1, 2, 1, 4, 1))]
    gate.open()
    assert [value_of(call) for call in calls] == [-1, 0, 1, 2, 3, 4]
    assert gate.batches[1:] == [[0, 1], [2], [3], [4]]
    assert runtime.native.snapshot()["breaks"]["order"] == 1
    assert runtime.stop(LONG_S)


@pytest.mark.parametrize(
    ("key", "value", "text"),
    [
        ("BATCH_STRATEGY", "volume:0", "must be 'volume:<elements>', from 1, got 'volume:0'"),
        ("BATCH_STRATEGY", "volume", "must be 'volume:<elements>'"),
        ("BATCH_STRATEGY", "volume:9999999999999999999", "must be 'volume:<elements>'"),
        ("max_queue_bytes", "0", "'max_queue_bytes' of model 'm' must be a number of bytes from 1, got '0'"),
        ("max_queue_bytes", "-1", "must be a number of bytes"),
        ("max_queue_bytes", "9223372036854775808", "must be a number of bytes"),
        ("max_queue_bytes", "²", "must be a number of bytes"),
    ],
)
def test_wrong_parameters_fail_the_load(key, value, text):
    with pytest.raises(InvalidArg, match=text):
        queue_options(config_of("dynamic_batching { } " + parameter(key, value)))


def test_libraries_that_form_batches_fail_the_load(tmp_path):
    runtime, _ = started("dynamic_batching { }", tmp_path)
    assert runtime.stop(LONG_S)
    with pytest.raises(Unsupported, match="'m' sets the parameter TRITON_BATCH_STRATEGY_PATH; this version runs no"):
        started("dynamic_batching { } " + parameter("TRITON_BATCH_STRATEGY_PATH", "x.so"), tmp_path)
    (tmp_path / "3").mkdir()
    (tmp_path / "backends" / "gate").mkdir(parents=True)
    for folder in (tmp_path, tmp_path / "3", tmp_path / "backends" / "gate"):
        library = folder / "batchstrategy.so"
        library.touch()
        with pytest.raises(Unsupported, match=f"has a batchstrategy.so in '{folder.name}', .*TRITON_BATCH_STRATEGY_P"):
            started("dynamic_batching { }", tmp_path, backend_directory=tmp_path / "backends")
        runtime, _ = started("", tmp_path, backend_directory=tmp_path / "backends")  # it forms no batches
        assert runtime.stop(LONG_S)
        library.unlink()
