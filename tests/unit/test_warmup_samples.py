"""Warm-up samples: from a config and its files to requests, what is refused, and what a start makes of them."""

from __future__ import annotations

import dataclasses
import struct
import tracemalloc
from pathlib import Path

import pytest

from tests.helpers.models import LONG_S, counters_at_base, submit, value_of
from tests.unit.test_runtime import GateBackend, config_of
from triton_fast import config as cfg
from triton_fast._native.sched.limiter import Limiter
from triton_fast._native.sched.model import NativeModel
from triton_fast.backends.base import LoadContext
from triton_fast.errors import Internal, InvalidArg, ServerError, Unavailable
from triton_fast.observability import log
from triton_fast.scheduling import warmup
from triton_fast.scheduling.instances import Limits
from triton_fast.scheduling.runtime import ModelRuntime
from triton_fast.types import TYPES, DataType

__all__ = ["counters_at_base"]

BATCHED = "max_batch_size: 4 "


def warm(source: str, *, name: str = "w", rows: int = 1, more: str = "", dims: str = "1", kind: str = "INT32") -> str:
    value = f"data_type: TYPE_{kind} dims: [ {dims} ] {source}"
    return f"model_warmup {{ name: '{name}' batch_size: {rows} {more} inputs {{ key: 'IN' value {{ {value} }} }} }}"


def samples(text: str, folder: Path = Path("m"), **files: bytes) -> list[warmup.Sample]:
    for name, data in files.items():
        (folder / "warmup").mkdir(exist_ok=True)
        (folder / "warmup" / name).write_bytes(data)
    config = config_of(text)
    native = NativeModel("m", 1, config.max_batch_size, *cfg.io_specs(config, folder))
    return warmup.read_samples(config, folder, native)


def data_of(text: str, folder: Path = Path("m"), **files: bytes) -> bytes:
    (sample,) = samples(text, folder, **files)
    ((name, _, _, data),) = sample.inputs
    assert name == "IN"
    return data


def started(text: str, *, error: Exception | None = None, limits: Limits | None = None, folder: Path = Path("m")):
    backend = GateBackend()
    backend.gate.open()
    if error is not None:
        backend.gate.answer = lambda requests: [error for _ in requests]
    context = LoadContext("m", 3, folder, folder / "3", config_of(text))
    return ModelRuntime.start(context, backend, limits or Limits()), backend


# --- samples ----------------------------------------------------------------------------------------------------------


def test_a_sample_is_so_many_requests_of_one_row():
    (sample,) = samples(f"{BATCHED} {warm('zero_data: true', rows=3, more='count: 5', dims='2, 3')}")
    assert (sample.name, sample.rows, sample.count) == ("w", 3, 5)
    assert sample.inputs == [("IN", DataType.INT32, [1, 2, 3], bytes(24))]


def test_count_zero_is_once_and_batch_size_zero_is_never():
    found = samples(BATCHED + warm("zero_data: true", more="count: 0") + warm("zero_data: true", name="no", rows=0))
    assert [(sample.name, sample.count) for sample in found] == [("w", 1)]


def test_without_a_batch_dimension_the_dims_are_the_shape():
    (sample,) = samples(warm("zero_data: true", dims="2"))
    assert sample.inputs == [("IN", DataType.INT32, [2], bytes(8))]


@pytest.mark.parametrize("source", ["zero_data: true", "random_data: true"])
def test_strings_are_empty_ones(source):
    assert data_of(warm(source, dims="2, 2", kind="STRING")) == struct.pack("<IIII", 0, 0, 0, 0)


@pytest.mark.parametrize("dtype", [dtype for dtype in TYPES if dtype != DataType.STRING])
def test_random_data_is_valid_data(dtype):
    info = TYPES[dtype]
    data = data_of(warm("random_data: true", dims="4096", kind=info.config.removeprefix("TYPE_")))
    assert len(data) == 4096 * info.size
    items = {data[k : k + info.size] for k in range(0, len(data), info.size)}
    assert len(items) > (1 if dtype == DataType.BOOL else 100 // 8)
    if dtype == DataType.BOOL:
        assert items == {b"\0", b"\1"}
    forms = {DataType.FP16: "e", DataType.FP32: "f", DataType.FP64: "d"}
    if dtype in forms:
        assert all(1 <= value < 2 for item in items for value in struct.unpack("<" + forms[dtype], item))
    if dtype == DataType.BF16:
        assert all(1 <= value < 2 for item in items for value in struct.unpack("<f", b"\0\0" + item))


def test_a_file_gives_its_beginning(tmp_path):
    text = warm("input_data_file: 'd'", dims="2")
    assert data_of(text, tmp_path, d=bytes(range(12))) == bytes(range(8))


def test_a_file_of_strings_gives_all(tmp_path):
    data = struct.pack("<I", 3) + b"abc" + struct.pack("<I", 0)
    assert data_of(warm("input_data_file: 'd'", dims="2", kind="STRING"), tmp_path, d=data) == data


def test_a_file_that_is_too_short(tmp_path):
    with pytest.raises(InvalidArg) as caught:
        samples(warm("input_data_file: 'd'", dims="2"), tmp_path, d=bytes(5))
    assert str(caught.value) == "warmup setting expects 8 bytes, but the data provided from d only has 5 bytes"


def test_files_that_can_not_be_read(tmp_path):
    model = tmp_path / "m"
    (model / "warmup" / "folder").mkdir(parents=True)
    with pytest.raises(Internal, match=r"^failed to open text file for read m/warmup/none: No such file or directory$"):
        samples(warm("input_data_file: 'none'"), model)
    with pytest.raises(Internal, match=r"^failed to open text file for read m/warmup/folder: not a regular file$"):
        samples(warm("input_data_file: 'folder'"), model)


@pytest.mark.parametrize("name", ["../secret", "link", "a/../../../secret"])
def test_files_outside_of_the_model_are_not_read(name, tmp_path):
    model = tmp_path / "m"
    (model / "warmup").mkdir(parents=True)
    (tmp_path / "secret").write_bytes(bytes(99))
    (model / "secret").symlink_to(tmp_path / "secret")
    (model / "warmup" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(ServerError, match=r"outside model directory|failed to open"):
        samples(warm(f"input_data_file: '{name}'"), model)


def test_a_sample_that_no_memory_holds():
    with pytest.raises(Unavailable, match="warmup sample 'w' needs 4611686018427387904 bytes for input 'IN'"):
        samples(warm("zero_data: true", dims="1152921504606846976"))


def test_samples_that_no_memory_holds_together(monkeypatch):
    """All of them are kept until the last has run."""
    monkeypatch.setattr(warmup, "usable_memory", lambda: 4000)
    one = [warm("zero_data: true", name=name, dims="160") for name in "abc"]
    assert len(samples("".join(one[:2]))) == 2
    with pytest.raises(Unavailable, match="warmup sample 'c' needs 640 bytes for input 'IN'"):
        samples("".join(one) + warm("zero_data: true", name="d"))


def test_random_data_takes_little_more_than_it_is():
    tracemalloc.start()
    try:
        data_of(warm("random_data: true", dims="4194304", kind="FP32"))
        assert tracemalloc.get_traced_memory()[1] < 3 * (16 << 20)
    finally:
        tracemalloc.stop()


def test_an_input_that_the_model_has_not_is_left_out(monkeypatch):
    lines = []
    monkeypatch.setattr(log, "warning", lambda message, **fields: lines.append((message, fields)))
    text = warm("zero_data: true")[:-1] + "inputs { key: 'X' value { data_type: TYPE_FP32 dims: 1 zero_data: true } } }"
    (sample,) = samples(text)
    assert [row[0] for row in sample.inputs] == ["IN"]
    assert sample.added == {}
    assert lines == [("warmup sample 'w' has input 'X', which the model has not", {"model": "m"})]


# --- the start of a version -------------------------------------------------------------------------------------------


def test_each_instance_runs_each_sample_before_the_version_is_there():
    text = (
        f"{BATCHED} instance_group {{ kind: KIND_CPU count: 2 }} instance_group {{ kind: KIND_CPU passive: true }}"
        + warm("zero_data: true", rows=2, more="count: 2")
        + warm("zero_data: true", name="v")
    )
    runtime, backend = started(text)
    assert backend.gate.batches == [[0, 0], [0, 0], [0]] * 2
    assert len(backend.specs) == 3
    assert value_of(submit(runtime.native, 5)) == 5
    assert runtime.stop(LONG_S)


def test_a_failing_sample_fails_the_load():
    with pytest.raises(InvalidArg) as caught:
        started(BATCHED + warm("zero_data: true", rows=2), error=Internal("no luck"))
    assert str(caught.value) == "failed to run warmup sample 'w': no luck; no luck; "


def test_a_failing_sample_closes_the_model():
    backend = GateBackend()
    backend.gate.open()
    backend.gate.answer = lambda requests: [Internal("no luck") for _ in requests]
    context = LoadContext("m", 3, Path("m"), Path("m/3"), config_of(BATCHED + warm("zero_data: true")))
    limiter = Limiter()
    group = "instance_group { kind: KIND_CPU rate_limiter { resources { name: 'R' count: 1 } } }"
    context = dataclasses.replace(context, config=config_of(BATCHED + group + warm("zero_data: true")))
    with pytest.raises(InvalidArg, match="no luck"):
        ModelRuntime.start(context, backend, Limits(limiter))
    assert backend.closed == [1]
    assert limiter.amounts == {}


@pytest.mark.parametrize(("size", "limit"), [(5, 4), (2, 0)])
def test_a_sample_above_the_batch_size_fails_the_load(size, limit):
    with pytest.raises(InvalidArg) as caught:
        started(f"max_batch_size: {limit} {warm('zero_data: true', rows=size)}")
    text = f"batch size {size} for 'm_0', max allowed is {limit}; "
    assert str(caught.value) == f"failed to run warmup sample 'w': {text * size}"


def test_samples_that_are_no_requests_of_the_model():
    with pytest.raises(InvalidArg, match="data-type is 'FP32', but model 'm' expects 'INT32'"):
        started(BATCHED + warm("zero_data: true", kind="FP32"))
    with pytest.raises(InvalidArg, match=r"input 'IN' for model 'm'. Expected \[-1,1\], got \[1,7\]"):
        started(BATCHED + warm("zero_data: true", dims="7"))
    with pytest.raises(InvalidArg, match="expected 1 inputs but got 0 inputs for model 'm'"):
        started(f"{BATCHED} model_warmup {{ name: 'w' batch_size: 1 }}")


def test_a_load_that_is_given_up_ends_between_two_executions():
    backend = GateBackend()
    backend.gate.open()
    asked = iter([False, False, False, True])
    config = config_of(BATCHED + warm("zero_data: true", more="count: 4294967295"))
    context = LoadContext("m", 3, Path("m"), Path("m/3"), config, given_up=lambda: next(asked))
    with pytest.raises(Unavailable, match=r"^the load was given up before warmup sample 'w' had run$"):
        ModelRuntime.start(context, backend)
    assert len(backend.gate.batches) == 3
    assert len(backend.closed) == 1


# --- the rate limiter's part in a start -------------------------------------------------------------------------------


GROUP = """instance_group { kind: KIND_CPU count: 2
rate_limiter { resources { name: 'R' count: 2 } resources { name: 'G' global: true count: 1 } priority: 7 } }"""


def test_instances_join_with_what_their_group_says():
    limiter = Limiter()
    runtime, backend = started(f"{BATCHED} {GROUP} {warm('zero_data: true')}", limits=Limits(limiter))
    assert limiter.amounts == {("R", 0): (2, 0), ("G", None): (1, 0)}
    assert [(spec.resources, spec.priority) for spec in backend.specs] == [((("R", False, 2), ("G", True, 1)), 7)] * 2
    assert value_of(submit(runtime.native, 5)) == 5
    assert runtime.stop(LONG_S)
    assert limiter.amounts == {}


def test_resources_that_are_not_there_fail_the_load():
    limiter = Limiter([("G", 1, -1), ("R", 1, -1)])
    with pytest.raises(InvalidArg, match='Resource count for "R" is limited to 1 which will prevent'):
        started(f"{BATCHED} {GROUP}", limits=Limits(limiter))
    assert limiter.amounts == {}


def test_without_the_limiter_or_without_resources_nobody_joins():
    limiter = Limiter()
    runtime, _ = started(f"{BATCHED} instance_group {{ kind: KIND_CPU rate_limiter {{ priority: 3 }} }}",
                         limits=Limits(limiter))  # fmt: skip
    assert limiter.amounts == {}
    assert runtime.stop(LONG_S)
    runtime, _ = started(f"{BATCHED} {GROUP}")
    assert runtime.stop(LONG_S)


def test_passive_instances_need_nothing():
    limiter = Limiter([("R", 1, -1)])
    text = GROUP.replace("count: 2\n", "passive: true ").replace("count: 2 }", "count: 99 }")
    runtime, _ = started(f"{BATCHED} instance_group {{ kind: KIND_CPU }} {text}", limits=Limits(limiter))
    assert limiter.amounts == {}
    assert runtime.stop(LONG_S)


def test_secondary_devices_and_host_policies_are_kept():
    text = "instance_group { kind: KIND_CPU secondary_devices { kind: KIND_NVDLA device_id: 3 } host_policy: 'p' }"
    shown = cfg.to_json(config_of(text + GROUP + warm("random_data: true", more="count: 2")))
    first, second = shown["instance_group"]
    assert first["secondary_devices"] == [{"kind": "KIND_NVDLA", "device_id": "3"}]
    assert first["host_policy"] == "p"
    assert second["rate_limiter"] == {
        "resources": [{"name": "R", "global": False, "count": 2}, {"name": "G", "global": True, "count": 1}],
        "priority": 7,
    }  # fmt: skip
    assert shown["model_warmup"][0]["count"] == 2
    assert shown["model_warmup"][0]["inputs"]["IN"]["random_data"] is True
