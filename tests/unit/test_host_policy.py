"""Host policies: what the flag may say, what a thread and its children inherit, and that all is put back."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
import threading

import pytest

from tests.unit.test_runtime import config_of
from triton_fast.backends import host_policy
from triton_fast.backends.host_policy import HostPolicy, parse
from triton_fast.errors import InvalidArg
from triton_fast.scheduling.instances import Limits, threads_of
from triton_fast.scheduling.runtime import instance_specs

ALLOWED = sorted(os.sched_getaffinity(0))
FORMAT = "host policy setting 'cpu-cores' format is '<lower_cpu_core_id>-<upper_cpu_core_id>'. Got "


def cores_of(text: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """What a policy names, on a machine of 64 cores where every binding succeeds."""
    monkeypatch.setattr(host_policy.os, "sched_getaffinity", lambda _: set(range(64)))
    monkeypatch.setattr(host_policy.os, "sched_setaffinity", lambda *_: None)
    return sorted(parse({"cpu": {"cpu-cores": text}})["cpu"].cores)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0-3", [0, 1, 2, 3]), ("0-3,5", [0, 1, 2, 3, 5]), ("7", [7]), ("1-1", [1]), ("0-1,8-9,1-2", [0, 1, 2, 8, 9]),
        (" 2 - 3 , 4", [2, 3, 4]), ("63", [63]),
    ],
)  # fmt: skip
def test_cores(text, expected, monkeypatch):
    assert cores_of(text, monkeypatch) == expected


@pytest.mark.parametrize("part", ["x", "-1", "1-", "3-1", "", "1-2-3", "0x1", "1.5", "9999999", "٣"])
def test_bad_cores(part, monkeypatch):
    with pytest.raises(InvalidArg) as caught:
        cores_of(f"0-1,{part}", monkeypatch)
    assert str(caught.value).startswith(f"{FORMAT}{part} (policy 'cpu'")


def test_cores_that_the_process_may_not_use(monkeypatch):
    with pytest.raises(InvalidArg) as caught:
        cores_of("2-3,62-66,90", monkeypatch)
    assert str(caught.value) == (
        "host policy 'cpu' names cores 64-66,90, which this process may not use; it may use 0-63"
    )


def test_a_thread_what_it_starts_and_the_end():
    policy = parse({"one": {"cpu-cores": str(ALLOWED[0])}})["one"]
    assert policy == HostPolicy("one", frozenset({ALLOWED[0]}))
    seen = []

    def look() -> None:
        seen.append(os.sched_getaffinity(0))

    with policy.bound():
        look()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
        code = "import os; print(sorted(os.sched_getaffinity(0)))"
        shown = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    assert seen == [{ALLOWED[0]}] * 2
    assert shown.strip() == f"[{ALLOWED[0]}]"
    assert sorted(os.sched_getaffinity(0)) == ALLOWED


def test_all_is_put_back_after_an_error():
    policy = HostPolicy("one", frozenset({ALLOWED[0]}))
    with pytest.raises(RuntimeError, match="inside"), policy.bound():
        raise RuntimeError("inside")
    assert sorted(os.sched_getaffinity(0)) == ALLOWED


def test_a_core_that_is_not_there():
    gone = HostPolicy("gone", frozenset({1023}))
    with pytest.raises(InvalidArg, match="host policy 'gone' can not be applied: "), gone.bound():
        pytest.fail("bound to a core that there is not")
    assert sorted(os.sched_getaffinity(0)) == ALLOWED


class Kernel:
    """Stands in for libc: remembers what memory was bound to."""

    def __init__(self, refuses: bool = False) -> None:
        self.policy: tuple[int, int] = (0, 0)
        self.calls: list[tuple[int, int]] = []
        self.refuses = refuses

    def syscall(self, number: int, first: object, mask: object, bits: int, *_: object) -> int:
        set_number, get_number = host_policy._CALLS[host_policy.platform.machine()]
        if number == get_number:
            assert bits == host_policy.MAX_NODES
            first._obj.value = self.policy[0]
            mask[0] = self.policy[1]
            return 0
        assert number == set_number
        assert (mask is None) == (bits == 0)
        if self.refuses:
            ctypes.set_errno(22)
            return -1
        self.policy = (first, mask[0] if mask is not None else 0)
        self.calls.append(self.policy)
        return 0


@pytest.mark.parametrize("before", [(0, 0), (3, 0b11)])
def test_memory_of_a_node_and_the_end(before, monkeypatch):
    kernel = Kernel()
    kernel.policy = before
    monkeypatch.setattr(host_policy, "_libc", lambda: kernel)
    monkeypatch.setattr(host_policy.platform, "machine", lambda: "x86_64")
    policy = parse({"near": {"numa-node": "5"}})["near"]
    assert policy == HostPolicy("near", frozenset(), 5)
    assert kernel.calls == [(2, 1 << 5), before]
    with policy.bound():
        assert kernel.policy == (2, 1 << 5)
    assert kernel.policy == before


def test_the_kernel_says_no(monkeypatch):
    monkeypatch.setattr(host_policy, "_libc", lambda: Kernel(refuses=True))
    monkeypatch.setattr(host_policy.platform, "machine", lambda: "aarch64")
    with pytest.raises(InvalidArg) as caught:
        parse({"far": {"numa-node": "5"}})
    assert str(caught.value) == "host policy 'far': memory can not be bound to NUMA node 5: Invalid argument"


def test_a_node_that_is_not_there_for_real():
    with pytest.raises(InvalidArg, match=r"NUMA node 999|memory nodes can not be chosen"):
        parse({"far": {"numa-node": "999"}})


@pytest.mark.parametrize("text", ["x", "-1", "1024", "99999", "1 ", "٣"])
def test_bad_nodes(text):
    with pytest.raises(InvalidArg, match=r"'numa-node' must be the number of a node. Got "):
        parse({"far": {"numa-node": text}})


def test_an_unknown_machine(monkeypatch):
    monkeypatch.setattr(host_policy.platform, "machine", lambda: "vax")
    with pytest.raises(InvalidArg, match="this machine's memory nodes can not be chosen"):
        parse({"far": {"numa-node": "0"}})


@pytest.mark.parametrize(
    ("text", "gpus", "expected"),
    [
        ("", (), ["cpu"]),
        ("instance_group { kind: KIND_MODEL }", (), ["model"]),
        ("instance_group { kind: KIND_GPU gpus: [ 0, 1 ] }", (0, 1), ["gpu_0", "gpu_1"]),
        ("instance_group { kind: KIND_CPU host_policy: 'mine' }", (), ["mine"]),
        ("instance_group { kind: KIND_GPU gpus: [ 0, 1 ] host_policy: 'mine' }", (0, 1), ["mine", "mine"]),
        ("instance_group { kind: KIND_CPU host_policy: 'unknown' }", (), [""]),
    ],
)
def test_the_policy_of_a_group(text, gpus, expected):
    known = {
        name: HostPolicy(name, frozenset({k})) for k, name in enumerate(("cpu", "model", "gpu_0", "gpu_1", "mine"))
    }
    specs = instance_specs(config_of(text, gpus=gpus), Limits(policies=known))
    assert [spec.host_policy.name for spec in specs] == expected


def test_threads_stay_within_the_cores_of_the_policies(monkeypatch):
    monkeypatch.setattr("triton_fast.scheduling.instances.usable_cores", lambda: 16)
    monkeypatch.setattr("triton_fast.scheduling.threads.usable_cores", lambda: 16)
    config = config_of("instance_group { kind: KIND_CPU count: 2 }")
    four = Limits(policies={"cpu": HostPolicy("cpu", frozenset(range(4)))})
    assert threads_of(instance_specs(config, four)) == 2
    assert threads_of(instance_specs(config)) == 8
