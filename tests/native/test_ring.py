"""The completion ring: order, one wake-up per empty -> non-empty edge, nothing lost between threads."""

from __future__ import annotations

import os
import select
import threading

import pytest

from tests.helpers.models import LONG_S, counters_at_base
from triton_fast._native.core.ring import CompletionRing, _deliver, _drain, _expect, _kept, _poll, _push

__all__ = ["counters_at_base"]


def readable(ring, timeout_s=0.0):
    return bool(select.select([ring.fileno()], [], [], timeout_s)[0])


def test_order_is_kept_within_and_across_chains():
    ring = CompletionRing()
    _push(ring, [1, 2, 3])
    _push(ring, [4])
    _push(ring, [5, 6])
    assert _drain(ring) == [1, 2, 3, 4, 5, 6]
    assert _drain(ring) == []


def test_the_descriptor_is_readable_while_something_waits():
    ring = CompletionRing()
    assert not readable(ring)
    _push(ring, [1])
    assert readable(ring)
    _push(ring, [2])
    assert readable(ring)
    assert _drain(ring) == [1, 2]
    assert not readable(ring)
    _push(ring, [3])
    assert readable(ring)
    assert _drain(ring) == [3]


def test_only_the_first_of_many_writes_to_the_descriptor():
    ring = CompletionRing()
    for k in range(10):
        _push(ring, [k])
    assert int.from_bytes(os.read(ring.fileno(), 8), "little") == 1
    assert _drain(ring) == list(range(10))


def test_draining_an_empty_ring_does_not_block():
    assert _drain(CompletionRing()) == []


def test_polling_takes_what_is_there_and_gives_up():
    ring = CompletionRing()
    assert _poll(ring, 1000) == []
    _push(ring, [1, 2])
    _push(ring, [3])
    assert _poll(ring, 10**12) == [1, 2, 3]  # something is there: it does not look on
    # Outside a poll the descriptor tells of what comes.
    _drain(ring)
    _push(ring, [4])
    assert readable(ring)
    assert _poll(ring, 0) == [4]


def test_what_the_loop_did_itself_does_not_wake_it():
    ring = CompletionRing()
    for number in (1, 2, 3):
        _deliver(ring, _expect(ring, number))
    assert not readable(ring)
    assert _kept(ring) == [1, 2, 3]
    assert _kept(ring) == _drain(ring) == []


def test_only_what_is_expected_is_kept():
    ring = CompletionRing()
    first = _expect(ring, 1)
    second = _expect(ring, 2)
    _deliver(ring, first)  # of an earlier submit, or of another connection
    assert readable(ring)
    _deliver(ring, second)
    assert _kept(ring) == [2]
    third = _expect(ring, 3)
    assert _kept(ring) == []
    _deliver(ring, third)  # after its submit
    assert _drain(ring) == [1, 3]


def test_what_another_thread_delivers_is_not_kept():
    ring = CompletionRing()
    request = _expect(ring, 1)  # and an instance is faster than the submit that gave it the request
    thread = threading.Thread(target=_deliver, args=(ring, request))
    thread.start()
    thread.join()
    assert readable(ring)
    assert _kept(ring) == []
    assert _drain(ring) == [1]


@pytest.mark.parametrize("poll_ns", [None, 0, 20_000])
@pytest.mark.parametrize("producers", [1, 4])
def test_nothing_is_lost_between_threads(producers, poll_ns):
    ring = CompletionRing()
    chains, length = 3000, 4
    seen: dict[int, list[int]] = {k: [] for k in range(producers)}
    total = producers * chains * length

    def produce(k):
        for start in range(0, chains * length, length):
            _push(ring, [(k << 32) + start + n for n in range(length)])

    threads = [threading.Thread(target=produce, args=(k,)) for k in range(producers)]
    for thread in threads:
        thread.start()
    got = 0
    while got < total:
        numbers = [] if poll_ns is None else _poll(ring, poll_ns)
        if not numbers:
            # A lost wake-up would leave the reader here.
            assert readable(ring, LONG_S)
            numbers = _drain(ring)
        for number in numbers:
            seen[number >> 32].append(number & 0xFFFFFFFF)
            got += 1
    for thread in threads:
        thread.join()
    assert all(numbers == list(range(chains * length)) for numbers in seen.values())
    assert _drain(ring) == []


def test_the_descriptor_is_closed_with_the_ring():
    ring = CompletionRing()
    fd = ring.fileno()
    assert not os.get_inheritable(fd)
    del ring
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)
