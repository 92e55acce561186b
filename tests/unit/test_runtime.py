"""A model version from its config: instances, queue policy, refusals, failed starts, stopping. Python instances."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tests.helpers.models import LONG_S, STOPPED, Gate, counters_at_base, submit, value_of
from triton_fast import config as cfg
from triton_fast._native.sched.inprocess import InferCall, StreamCall
from triton_fast._native.sched.instance import NativeInstance
from triton_fast._native.sched.pyinstance import PyInstance
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.backends.identity import IdentityBackend
from triton_fast.config import parse
from triton_fast.errors import Internal, InvalidArg, Unavailable, Unsupported
from triton_fast.observability import log
from triton_fast.scheduling import runtime as scheduling
from triton_fast.scheduling import threads
from triton_fast.scheduling.runtime import ModelRuntime, instance_specs, refuse_unsupported

__all__ = ["counters_at_base"]

IO = "input { name: 'IN' data_type: TYPE_INT32 dims: 1 } output { name: 'OUT' data_type: TYPE_INT32 dims: 1 }"


def config_of(text: str, gpus: tuple[int, ...] = ()):
    config = parse.parse_text(f'name: "m" backend: "gate" {IO} {text}'.encode(), "f").config
    cfg.normalize(config, cpu_count=2, gpus=gpus)
    return config


def context_of(text: str) -> LoadContext:
    return LoadContext("m", 3, Path("m"), Path("m/3"), config_of(text))


class GateBackend(Backend):
    """Hands out one gate's instances and records what it was asked for."""

    name = "gate"
    default_filename = ""

    def __init__(self, fail_at: int = -1, error: Exception | None = None) -> None:
        self.gate = Gate()
        self.specs: list[InstanceSpec] = []
        self.contexts: list[LoadContext] = []
        self.closed: list[int] = []
        self.fail_at, self.error = fail_at, error
        self.close_error: Exception | None = None

    def load(self, context: LoadContext) -> BackendModel:
        self.contexts.append(context)
        return GateModel(self)


class GateModel(BackendModel):
    def __init__(self, backend: GateBackend) -> None:
        self.backend = backend

    def create_instance(self, spec: InstanceSpec) -> NativeInstance:
        if len(self.backend.specs) == self.backend.fail_at:
            raise self.backend.error or AssertionError
        self.backend.specs.append(spec)
        return PyInstance(self.backend.gate, spec.name)

    def close(self) -> None:
        self.backend.closed.append(len(self.backend.gate.batches))
        if self.backend.close_error:
            raise self.backend.close_error


def started(text: str = "max_batch_size: 4") -> tuple[ModelRuntime, GateBackend]:
    backend = GateBackend()
    return ModelRuntime.start(context_of(text), backend), backend


def queued_batches(text: str, rows: list[int]) -> list[list[int]]:
    """The batches that requests queued behind a held instance are executed in."""
    runtime, backend = started(text)
    calls = [submit(runtime.native, -1)]
    backend.gate.taken()
    calls += [submit(runtime.native, k, n) for k, n in enumerate(rows)]
    backend.gate.open()
    for call in calls:
        value_of(call)
    assert runtime.stop(LONG_S)
    return backend.gate.batches[1:]


# --- instances --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", [("m_0", "KIND_CPU", 0, False)]),
        ("instance_group { kind: KIND_CPU count: 3 }", [(f"m_0_{k}", "KIND_CPU", 0, False) for k in range(3)]),
        (
            "instance_group { name: 'a' kind: KIND_CPU } instance_group { name: 'b' kind: KIND_CPU passive: true }",
            [("a_0", "KIND_CPU", 0, False), ("b_0", "KIND_CPU", 0, True)],
        ),
        (
            "instance_group { name: 'g' kind: KIND_GPU count: 2 gpus: [ 1, 4 ] }",
            [("g_0", "KIND_GPU", 1, False), ("g_1", "KIND_GPU", 1, False),
             ("g_2", "KIND_GPU", 4, False), ("g_3", "KIND_GPU", 4, False)],
        ),
    ],
)  # fmt: skip
def test_instances_of_a_config(text, expected):
    specs = instance_specs(config_of(text, gpus=(1, 4) if "GPU" in text else ()))
    assert [(spec.name, spec.kind, spec.device, spec.passive) for spec in specs] == expected


def test_passive_instances_are_made_but_take_nothing():
    runtime, backend = started(
        "instance_group { name: 'a' kind: KIND_CPU } instance_group { name: 'b' kind: KIND_CPU passive: true }"
    )
    assert [spec.name for spec in backend.specs] == ["a_0", "b_0"]
    assert runtime.native.n_instances == 1
    assert runtime.stop(LONG_S)


def test_a_backend_is_told_its_share_of_the_cores(monkeypatch):
    monkeypatch.setattr(threads, "usable_cores", lambda: 8)
    runtime, backend = started("instance_group { kind: KIND_CPU count: 3 }")
    assert backend.contexts[0].threads_per_instance == 2
    assert runtime.stop(LONG_S)


# --- what the config asks for -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("max_batch_size: 4", [[0], [1], [2], [3], [4]]),
        ("max_batch_size: 4 dynamic_batching { }", [[0, 1, 2], [3], [4]]),
        ("max_batch_size: 4 dynamic_batching { preferred_batch_size: [ 2 ] }", [[0, 1], [2], [3], [4]]),
    ],
)
def test_batching_follows_the_config(text, expected):
    assert queued_batches(text, [1, 1, 2, 4, 1]) == expected


def test_queue_size_follows_the_config():
    runtime, backend = started("max_batch_size: 4 dynamic_batching { default_queue_policy { max_queue_size: 2 } }")
    calls = [submit(runtime.native, 0)]
    backend.gate.taken()
    calls += [submit(runtime.native, k) for k in (1, 2)]
    with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
        submit(runtime.native, 3)
    backend.gate.open()
    assert [value_of(call) for call in calls] == [0, 1, 2]
    assert runtime.stop(LONG_S)


def test_queue_timeouts_follow_the_config():
    runtime, backend = started(
        "max_batch_size: 4 dynamic_batching { max_queue_delay_microseconds: 3600000000 default_queue_policy {"
        " default_timeout_microseconds: 3500000000 allow_timeout_override: true } }"
    )
    backend.gate.open()
    # Without its own timeout it would wait out the delay.
    with pytest.raises(Unavailable, match="Request timeout expired"):
        submit(runtime.native, 0, timeout_us=1000).wait(LONG_S)
    assert runtime.stop(LONG_S)


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("model_transaction_policy { decoupled: true }", "decoupled"),
    ],
)
def test_what_this_build_does_not_have_fails_the_load(text, what):
    config = parse.parse_text(f'name: "m" {IO} {text}'.encode(), "f").config
    with pytest.raises(Unsupported, match=f"^model 'm' .*{what}.*, which this version "):
        refuse_unsupported(config, GateBackend())


def test_a_decoupled_model_needs_a_backend_that_can():
    config = config_of("model_transaction_policy { decoupled: true }")
    with pytest.raises(Unsupported, match=r"^model 'm' is decoupled, .* does not serve with backend 'gate'$"):
        refuse_unsupported(config, GateBackend())
    able = GateBackend()
    able.decoupled = True
    refuse_unsupported(config, able)
    runtime = ModelRuntime.start(LoadContext("m", 1, Path("m"), Path("m/1"), config), able)
    able.gate.open()
    call = StreamCall(runtime.native, [("IN", 8, (1,), b"\5\0\0\0")])
    assert call.take(LONG_S) == ({"OUT": (8, (1,), b"\5\0\0\0")}, True)
    with pytest.raises(Unsupported, match=r"^model 'm' is decoupled: it has no single answer"):
        submit(runtime.native, 1)
    assert runtime.stop(LONG_S)


def test_batch_outputs_need_a_backend_that_cuts_them():
    text = "batch_output { kind: BATCH_SCATTER_WITH_INPUT_SHAPE target_name: 'OUT' source_input: 'IN' }"
    config = parse.parse_text(f'name: "m" {IO} {text}'.encode(), "f").config
    with pytest.raises(Unsupported, match=r"^model 'm' has batch_output, which backend 'gate' does not cut$"):
        refuse_unsupported(config, GateBackend())
    able = GateBackend()
    able.makes_batch_tensors = True
    refuse_unsupported(config, able)


def test_a_cache_that_the_server_does_not_have_is_logged(monkeypatch):
    lines = []
    monkeypatch.setattr(log, "warning", lambda message, **fields: lines.append(message))
    runtime, _ = started("response_cache { enable: true }")
    assert runtime.stop(LONG_S)
    assert not runtime.cached
    (line,) = lines
    assert "--cache-config" in line


# --- start and stop ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [InvalidArg, RuntimeError])
def test_a_failed_instance_closes_the_model(kind):
    backend = GateBackend(fail_at=1, error=kind("no device"))
    with pytest.raises(kind, match="no device"):
        ModelRuntime.start(context_of("instance_group { kind: KIND_CPU count: 2 }"), backend)
    assert backend.closed == [0]


def test_a_config_without_instances_fails_the_load(monkeypatch):
    monkeypatch.setattr(scheduling, "instance_specs", lambda *_: [])
    with pytest.raises(Internal, match="model 'm' has no instances"):
        ModelRuntime.start(context_of(""), GateBackend())


def test_stop_finishes_what_is_in_hand_then_closes():
    runtime, backend = started()
    running = submit(runtime.native, 1)
    backend.gate.taken()
    queued = submit(runtime.native, 2)
    assert not runtime.stop(0)
    with pytest.raises(Unavailable, match=STOPPED):
        while True:  # the stop goes on in the background; until it has begun, requests are taken
            submit(runtime.native, 3)
    assert backend.closed == []
    backend.gate.open()
    assert runtime.stop(LONG_S)
    assert runtime.stop()
    assert [value_of(running), value_of(queued)] == [1, 2]
    assert backend.closed == [len(backend.gate.batches)]


def test_stop_from_several_threads_closes_once():
    runtime, backend = started()
    backend.gate.open()
    ends = []
    stoppers = [threading.Thread(target=lambda: ends.append(runtime.stop(LONG_S))) for _ in range(4)]
    for stopper in stoppers:
        stopper.start()
    for stopper in stoppers:
        stopper.join()
    assert ends == [True] * 4
    assert backend.closed == [0]


def test_abort_answers_what_is_queued():
    runtime, backend = started()
    running = submit(runtime.native, 1)
    backend.gate.taken()
    queued = submit(runtime.native, 2)
    runtime.abort()
    with pytest.raises(Unavailable, match=STOPPED):
        queued.wait(LONG_S)
    backend.gate.open()
    assert value_of(running) == 1
    assert runtime.stop(LONG_S)


def test_a_close_that_fails_is_logged_and_stops_all_the_same(monkeypatch):
    lines = []
    monkeypatch.setattr(log, "error", lambda message, **fields: lines.append((message, fields)))
    runtime, backend = started()
    backend.close_error = RuntimeError("busy")
    assert runtime.stop(LONG_S)
    assert lines == [("closing the model failed: busy", {"model": "m", "version": 3})]


# --- the identity backend's config ------------------------------------------------------------------------------------


def identity(text: str, io: str = IO) -> ModelRuntime:
    config = parse.parse_text(f'name: "m" {io} {text}'.encode(), "f").config
    cfg.normalize(config, cpu_count=2)
    return ModelRuntime.start(LoadContext("m", 1, Path("m"), Path("m/1"), config), IdentityBackend())


def test_identity_serves_from_its_config():
    runtime = identity("max_batch_size: 2 parameters { key: 'execute_delay_ms' value { string_value: '3' } }")
    assert value_of(submit(runtime.native, 7)) == 7
    assert runtime.native.snapshot()["ns"]["compute_infer"] >= 3_000_000
    assert runtime.stop(LONG_S)


def test_identity_without_a_batch_dimension():
    runtime = identity("")
    assert value_of(InferCall(runtime.native, [("IN", 8, (1,), b"\5\0\0\0")])) == 5
    assert runtime.stop(LONG_S)


@pytest.mark.parametrize("delay", ["-1", "x", "", "1e3", "3600001"])
def test_identity_refuses_a_bad_delay(delay):
    with pytest.raises(InvalidArg, match=f"'execute_delay_ms' of model 'm' must be .* got '{delay}'"):
        identity(f"parameters {{ key: 'execute_delay_ms' value {{ string_value: '{delay}' }} }}")


@pytest.mark.parametrize(
    ("io", "text"),
    [
        ("input { name: 'IN' data_type: TYPE_INT32 dims: 1 }", "as many inputs as outputs for model 'm', got 1 and 0"),
        (IO.replace("TYPE_INT32 dims: 1 } out", "TYPE_FP32 dims: 1 } out"), "the same data type and dims"),
        (IO.replace("dims: 1 } out", "dims: 2 } out"), "the same data type and dims"),
    ],
)
def test_identity_refuses_what_it_can_not_hand_back(io, text):
    with pytest.raises(InvalidArg, match=text):
        identity("", io)


# --- threads ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("instances", "cores", "expected"), [(1, 8, 8), (3, 8, 2), (8, 8, 1), (100, 8, 1), (0, 4, 4), (1, 1, 1)]
)
def test_threads_never_exceed_the_cores(instances, cores, expected):
    assert threads.threads_per_instance(instances, cores) == expected


@pytest.fixture
def cgroup(monkeypatch, tmp_path):
    """64 cores by affinity, and cgroup files of the test's own."""
    monkeypatch.setattr(threads, "_CGROUP_V2", tmp_path / "cpu.max")
    monkeypatch.setattr(threads, "_CGROUP_V1", tmp_path)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(64)), raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("line", "expected"),
    [("max 100000", 64), ("200000 100000", 2), ("150000 100000", 2), ("1000 100000", 1), ("9900000 100000", 64),
     ("", 64), ("x y", 64), ("100000", 64), ("0 100000", 64)],
)  # fmt: skip
def test_cores_under_a_quota(cgroup, line, expected):
    (cgroup / "cpu.max").write_text(line + "\n")
    assert threads.usable_cores() == expected


@pytest.mark.parametrize(("quota", "expected"), [("-1", 64), ("400000", 4), ("350001", 4)])
def test_cores_under_an_old_quota(cgroup, quota, expected):
    (cgroup / "cpu.cfs_quota_us").write_text(quota + "\n")
    (cgroup / "cpu.cfs_period_us").write_text("100000\n")
    assert threads.usable_cores() == expected


def test_cores_without_a_cgroup(cgroup):
    assert threads.usable_cores() == 64


def test_cores_without_affinity(cgroup, monkeypatch):
    monkeypatch.delattr(threads.os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(threads.os, "cpu_count", lambda: None)
    assert threads.usable_cores() == 1
