"""Priorities, requests whose time is over, exact limits, refusals in time while every instance is busy.

Whole models whose instance stands at a gate; the machine of test_dynamic_machine.py has the rest.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import pytest

from tests.helpers.models import (
    ANY,
    ANY_OUT,
    HOUR_US,
    LONG_S,
    Gate,
    busy,
    counters_at_base,
    in_threads,
    served,
    submit,
    value_of,
)
from triton_fast._native.sched.model import NativeModel
from triton_fast._native.sched.queue_driver import QueueDriver
from triton_fast.errors import Unavailable

__all__ = ["counters_at_base"]

EXPIRED = "Request timeout expired"
FULL = "Exceeds maximum queue size"
PLAIN = (0, 0, False, False)


def test_higher_levels_go_first_and_fill_up_from_lower_ones():
    gate = Gate()
    with served(gate, max_batch=3, levels=[PLAIN] * 3, default_level=2) as model:
        first = busy(model, gate)
        # 0 and what is beyond the levels is the default one.
        calls = [submit(model, k, priority=p) for k, p in enumerate([3, 2, 0, 1, 9, 3, 1])]
        gate.open()
        assert value_of(first) == -1
        assert [value_of(call) for call in calls] == list(range(7))
    assert gate.batches[1:] == [[3, 6, 1], [2, 4, 0], [5]]


def test_a_priority_means_nothing_without_levels():
    gate = Gate()
    with served(gate, max_batch=2) as model:
        first = busy(model, gate)
        calls = [submit(model, k, priority=p) for k, p in enumerate([3, 2, 1])]
        gate.open()
        assert [value_of(call) for call in [first, *calls]] == [-1, 0, 1, 2]
    assert gate.batches[1:] == [[0, 1], [2]]


def test_limits_hold_for_each_level():
    gate = Gate()
    with served(gate, levels=[(2, 0, False, False), (1, 0, False, False)], default_level=2) as model:
        first = busy(model, gate)
        calls = [submit(model, 0, priority=1), submit(model, 1, priority=1), submit(model, 2)]
        for priority in (1, 2):
            with pytest.raises(Unavailable, match=FULL):
                submit(model, 3, priority=priority)
        gate.open()
        assert [value_of(call) for call in [first, *calls]] == [-1, 0, 1, 2]


def test_delayed_requests_are_executed_after_the_others():
    gate = Gate()
    levels = [(0, HOUR_US, True, True)]
    with served(gate, max_batch=2, levels=levels) as model:
        first = busy(model, gate)
        calls = [submit(model, k, timeout_us=own) for k, own in enumerate([1, 0, 1, 0, 0])]
        until = time.monotonic_ns() + 1_000_000
        while time.monotonic_ns() < until:
            pass
        gate.open()
        assert [value_of(call) for call in [first, *calls]] == [-1, 0, 1, 2, 3, 4]
        assert model.snapshot()["failures"]["REJECTED"] == 0
    assert gate.batches[1:] == [[1, 3], [4, 0], [2]]


def test_as_many_are_accepted_as_there_are_places_by_a_thousand_clients():
    gate = Gate()
    with served(gate, max_queue_size=10) as model:
        first = busy(model, gate)
        accepted, refused = [], []

        def client(k: int) -> None:
            try:
                accepted.append(submit(model, k))
            except Unavailable as error:
                refused.append(str(error))

        in_threads(1000, client)
        assert len(accepted) == model.pending == 10
        assert refused == [FULL] * 990
        gate.open()
        assert value_of(first) == -1
        assert len({value_of(call) for call in accepted}) == 10
        assert model.snapshot()["failures"]["REJECTED"] == 990


def test_requests_are_refused_at_their_deadline_although_the_instance_is_busy():
    gate = Gate()
    levels = [(0, 20_000, True, False), (0, 10_000, True, False), (0, HOUR_US, False, False)]
    with served(gate, levels=levels, default_level=3, inputs=ANY, outputs=ANY_OUT) as model:
        first = submit(model, -1, priority=3)
        gate.taken()
        calls = [
            submit(model, k, 1, k % 5 + 1, priority=k % 2 + 1, timeout_us=(k * 37) % 20_000) for k in range(400)
        ]  # fmt: skip
        kept = submit(model, 400, 1, 1)
        # The gate stays shut: nobody but the watcher can answer them.
        for call in calls:
            with pytest.raises(Unavailable, match=EXPIRED):
                call.wait(LONG_S)
        late = model.late
        assert sum(count for _, count in late) == 400
        assert [bound for bound, _ in late] == [*sorted(bound for bound, _ in late[:-1]), None]
        gate.open()
        assert [value_of(first), value_of(kept)] == [-1, 400]
    assert gate.batches == [[-1], [400]]


def watchers() -> set[str]:
    """The threads of this process that watch queues."""
    found = set()
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):  # it has ended
            if (task / "comm").read_text() == "queue-timeouts\n":
                found.add(task.name)
    return found


@pytest.mark.parametrize(("level", "count"), [((0, 5, False, True), 0), ((0, HOUR_US, True, False), 1)])
def test_lanes_without_a_timeout_need_no_watcher(level, count):
    before = watchers()
    with served(Gate(held=False), levels=[level, PLAIN]) as model:
        assert value_of(submit(model, 1)) == 1
        assert model.late == [(bound, 0) for bound, _ in model.late]
        assert len(watchers() - before) == count


@pytest.mark.parametrize(("levels", "default"), [([PLAIN] * 1025, 1), ([PLAIN], 0), ([PLAIN], 2), ([PLAIN] * 3, 4)])
def test_wrong_levels_are_refused(levels, default):
    with pytest.raises(ValueError, match="1 to 1024 levels with the default one among them:"):
        NativeModel("m", 1, 4, (), (), levels=levels, default_level=default)


# --- with a clock that is given ---------------------------------------------------------------------------------------

US = 1000


def test_the_lowest_of_a_thousand_levels():
    queue = QueueDriver(levels=[PLAIN] * 1024, default_level=1024, max_batch=1)
    for k in (1024, 700, 0, 1, 64, 33):
        assert queue.submit(k + 1, 10, priority=k) is None
    order = [queue.take(20)[0] - 1 for _ in range(6)]
    assert order == [1, 33, 64, 700, 1024, 0]
    assert queue.take(30) == 0
    for k in order:
        queue.finish(k + 1)


def test_a_higher_level_does_not_wait_for_more_behind_a_whole_batch_of_a_lower_one():
    queue = QueueDriver(levels=[PLAIN] * 2, default_level=2, max_batch=2, delay_ns=100)
    queue.submit(1, 1000, priority=1, shape=5)
    assert queue.take(1001) == 1100
    queue.submit(2, 1001, shape=6)
    assert queue.take(1002) == 1100
    queue.submit(3, 1002, shape=6)
    assert queue.take(1003) == [1]
    assert queue.take(1004) == [2, 3]
    assert queue.breaks == {"max": 1, "preferred": 0, "delay": 0, "shape": 0, "order": 1, "empty": 0}
    for k in (1, 2, 3):
        queue.finish(k)


def test_looking_takes_nothing_and_sees_the_highest_level():
    queue = QueueDriver(levels=[PLAIN] * 2, default_level=2, max_batch=1)
    queue.submit(1, 1)
    assert queue.take(1, look=True) == [1]
    queue.submit(2, 2, priority=1)
    assert queue.take(3, look=True) == queue.take(3, look=True) == [2]
    assert queue.pending == 2
    assert [queue.take(4), queue.take(4), queue.take(4)] == [[2], [1], 0]
    for k in (1, 2):
        queue.finish(k)


def test_ten_thousand_own_timeouts_expire_in_their_order():
    queue = QueueDriver(levels=[(0, 10_000_000, True, False)])
    for k in range(1, 10_001):
        assert queue.submit(k, US, timeout_us=1 + k * 7919 % 10_007, shape=k % 3) is None
    expected = sorted(range(1, 10_001), key=lambda k: (k * 7919 % 10_007, k))
    for k in expected[::3]:
        assert queue.cancel(k)
    queue.expire(5_000 * US)
    queue.expire(20_000 * US)
    left = [k for n, k in enumerate(expected) if n % 3]
    assert queue.delivered == [(k, EXPIRED, True) for k in left]
    assert queue.next_deadline == queue.pending == 0
