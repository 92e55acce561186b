"""The engine's side of a cache elsewhere: what waits for an answer, what is stored, and every way a lookup ends. A dict
on the test's own thread is the cache."""

from __future__ import annotations

import contextlib
import gc
import struct
import threading
from collections.abc import Iterator

import pytest

from tests.helpers.models import (
    ANY,
    ANY_OUT,
    LONG_S,
    Gate,
    counters_at_base,
    make_model,
    served,
    submit,
    value_of,
)
from triton_fast._native.sched.cache import CacheLayer
from triton_fast._native.sched.model import NativeModel
from triton_fast._native.sched.remote import Insertion, Lookup, RemoteCache
from triton_fast.errors import Cancelled, Unavailable

__all__ = ["counters_at_base"]

KEY = bytes(range(32))


@contextlib.contextmanager
def remote(*gates: Gate, cache: RemoteCache, **options: object) -> Iterator[NativeModel]:
    with served(*gates, **options) as model:
        model.add_layer(CacheLayer(cache, b"who"))
        yield model
        cache.close()


def lookup(cache: RemoteCache) -> Lookup:
    job = cache.take()
    assert isinstance(job, Lookup)
    return job


def stored(cache: RemoteCache) -> tuple[bytes, bytes]:
    job = cache.take()
    assert isinstance(job, Insertion)
    return job.digest, bytes(job.value)


def made(cache: RemoteCache, model: NativeModel, number: int) -> bytes:
    """Have number executed and return its packed answer."""
    call = submit(model, number)
    assert lookup(cache).found(KEY, None)
    assert value_of(call) == number
    return stored(cache)[1]


def test_a_miss_is_executed_and_stored_a_hit_is_not():
    cache, gate = RemoteCache(), Gate(held=False)
    with remote(gate, cache=cache) as model:
        call = submit(model, 5)
        job = lookup(cache)
        assert job.identity == b"who"
        assert job.age_ns > 0
        assert model.pending == 1
        fields = job.fields()
        assert fields[:3] == [b"IN", 8, 2]
        assert [bytes(field) for field in fields[3:5]] == [struct.pack("<2q", 1, 1), struct.pack("<i", 5)]
        del fields
        assert job.found(KEY, None) is True
        assert value_of(call) == 5
        digest, value = stored(cache)
        assert digest == KEY
        call = submit(model, 5)
        assert lookup(cache).found(KEY, value) is True
        assert value_of(call) == 5
        assert gate.batches == [[5]]
        taken = model.snapshot()
        assert taken["cache"][0] == taken["cache"][2] == 1
        assert taken["success"] == 2
        assert cache.stats()["entries"] == 0


def test_equal_requests_wait_for_one_lookup():
    cache, gate = RemoteCache(), Gate(held=False)
    with remote(gate, cache=cache) as model:
        value = made(cache, model, 1)
        calls = [submit(model, 1) for _ in range(5)]
        assert model.pending == 5
        assert calls[2].cancel()
        assert calls[0].cancel() is False  # its inputs are being read
        lookup(cache).found(KEY, value)
        assert [value_of(calls[k]) for k in (0, 1, 3, 4)] == [1] * 4
        assert model.pending == 0
        assert gate.batches == [[1]]


def test_one_that_was_cancelled_meanwhile_does_not_run():
    cache, gate = RemoteCache(), Gate(held=False)
    with remote(gate, cache=cache) as model:
        calls = [submit(model, 1) for _ in range(2)]
        assert calls[0].cancel() is False
        lookup(cache).missed()
        with pytest.raises(Cancelled):
            calls[0].wait(LONG_S)
        assert value_of(calls[1]) == 1
        assert gate.batches == [[1]]
        assert model.snapshot()["failures"]["CANCELED"] == 1


@pytest.mark.parametrize("value", [b"x", b"TFC\x02" + bytes(60), bytes(1000)])
def test_what_is_no_answer_is_executed_and_replaced(value):
    cache, gate = RemoteCache(), Gate(held=False)
    with remote(gate, cache=cache) as model:
        call = submit(model, 3)
        assert lookup(cache).found(KEY, value) is False
        assert value_of(call) == 3
        assert stored(cache)[0] == KEY
        assert gate.batches == [[3]]


def test_without_a_key_nothing_is_stored():
    cache, gate = RemoteCache(), Gate(held=False)
    with remote(gate, cache=cache) as model:
        call = submit(model, 3)
        lookup(cache).missed()
        assert value_of(call) == 3
        cache.open = False
        assert value_of(submit(model, 4)) == 4  # nobody is asked
        cache.open = True
        submit(model, 5)
        lookup(cache).missed()  # and the one before had stored nothing


def test_a_dropped_lookup_is_a_miss():
    cache, gate = RemoteCache(), Gate(held=False)
    with remote(gate, cache=cache) as model:
        call = submit(model, 3)
        job = lookup(cache)
        del job
        gc.collect()
        assert value_of(call) == 3
        call = submit(model, 3)
        job = lookup(cache)
        job.missed()
        job.missed()
        with pytest.raises(ValueError, match="over"):
            job.found(KEY, None)
        with pytest.raises(ValueError, match="32 bytes"):
            again = submit(model, 4)
            lookup(cache).found(b"k", None)
        gc.collect()
        assert [value_of(call), value_of(again)] == [3, 4]


def test_a_refused_miss_is_told():
    cache, gate = RemoteCache(), Gate()
    with remote(gate, cache=cache, max_queue_size=1) as model:
        first = submit(model, 0)
        lookup(cache).missed()
        gate.taken()
        queued = submit(model, 1)
        lookup(cache).missed()
        call = submit(model, 2)
        lookup(cache).missed()
        with pytest.raises(Unavailable, match="Exceeds maximum queue size"):
            call.wait(LONG_S)
        gate.open()
        assert [value_of(first), value_of(queued)] == [0, 1]


def test_what_waits_to_be_stored_is_bounded():
    cache, gate = RemoteCache(most_bytes=2000), Gate(held=False)
    with remote(gate, cache=cache, inputs=ANY, outputs=ANY_OUT) as model:
        for k in range(6):
            call = submit(model, k)
            lookup(cache).found(bytes([k + 1]) * 32, None)
            assert value_of(call) == k
        assert cache.dropped == 3
        assert [stored(cache)[0][0] for _ in range(3)] == [1, 2, 3]


def test_stopping_waits_for_lookups():
    cache, gate = RemoteCache(), Gate(held=False)
    model = make_model(gate)
    model.add_layer(CacheLayer(cache))
    call = submit(model, 1)
    job = lookup(cache)
    stopper = threading.Thread(target=model.stop)
    stopper.start()
    while True:
        try:
            submit(model, 2)
        except Unavailable:
            break
    assert stopper.is_alive()
    job.missed()
    stopper.join(LONG_S)
    assert not stopper.is_alive()
    with pytest.raises(Unavailable):
        call.wait(LONG_S)
    cache.close()


def test_closing_answers_what_waits():
    cache, gate = RemoteCache(), Gate(held=False)
    with remote(gate, cache=cache) as model:
        calls = [submit(model, k) for k in range(3)]
        cache.close()
        assert [value_of(call) for call in calls] == [0, 1, 2]
        assert cache.take() is None
        cache.open = True
        assert cache.open is False
        assert value_of(submit(model, 9)) == 9
