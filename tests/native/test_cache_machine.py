"""A state machine over the response cache against a plain LRU: what is a hit, what is executed, what is evicted, and
how many bytes are in use, to the byte. Two models share the cache; bursts of equal requests fail, cancel and share."""

from __future__ import annotations

from collections import OrderedDict

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from tests.helpers.models import (
    ANY,
    ANY_OUT,
    LONG_S,
    Gate,
    counters_at_base,
    first_number,
    make_model,
    submit,
    value_of,
)
from triton_fast._native.sched.cache import CacheLayer
from triton_fast._native.sched.store import NativeCache
from triton_fast.errors import Internal

__all__ = ["counters_at_base"]

BLOCK_HEADER = 56
ENTRY_HEAD = 128


def table_size(budget: int) -> int:
    """A slot of 8 bytes for every 4 KiB, rounded up to a power of two; at least 64."""
    slots = 64
    while slots * 4096 < budget:
        slots *= 2
    return slots * 8


def block_size(n: int) -> int:
    """The pool's size for n bytes: 512 and up, powers of two and one and a half times those."""
    size = 512
    while True:
        if n <= size:
            return size
        if n <= size + size // 2:
            return size + size // 2
        size *= 2


def cost(elements: int) -> int:
    """What an answer of so many INT32 takes: one output row of rank 2 is 48 bytes, filled up to 64 as its data is."""
    return block_size(ENTRY_HEAD + 64 + -(-4 * elements // 64) * 64) + BLOCK_HEADER


class Lru(RuleBasedStateMachine):
    @initialize(budget=st.sampled_from([600, 1700, 4000, 12_000, 1 << 20]))
    def begin(self, budget):
        self.budget = budget
        self.table = table_size(budget)
        self.cache = NativeCache(budget)
        self.known: OrderedDict[tuple[int, int, int], int] = OrderedDict()
        self.evicted = 0
        self.load = 0
        self.fails: set[int] = set()
        self.models = []
        for _ in range(2):
            self.models.append(self.new_model())

    def new_model(self):
        self.load += 1
        gate = Gate(held=False, answer=self.answer)
        model = make_model(gate, inputs=ANY, outputs=ANY_OUT)
        model.add_layer(CacheLayer(self.cache))
        return [model, gate, self.load]

    def answer(self, requests):
        return [
            Internal("no") if first_number(inputs) in self.fails
            else {"OUT": (inputs["IN"][0], inputs["IN"][1], bytes(inputs["IN"][2]))}
            for inputs in requests
        ]  # fmt: skip

    def stored(self, key, elements):
        need = cost(elements)
        if need > self.budget - self.table:
            return
        while self.table + sum(self.known.values()) + need > self.budget:
            self.known.popitem(last=False)
            self.evicted += 1
        self.known[key] = need

    @rule(which=st.integers(0, 1), number=st.integers(0, 5), elements=st.sampled_from([1, 100, 101, 300, 900, 5000]))
    def ask(self, which, number, elements):
        model, gate, load = self.models[which]
        key, before = (load, number, elements), len(gate.batches)
        assert value_of(submit(model, number, 1, elements)) == number
        hit = key in self.known
        assert len(gate.batches) - before == (0 if hit else 1)
        if hit:
            self.known.move_to_end(key)
        else:
            self.stored(key, elements)

    @rule(number=st.integers(0, 5), n=st.integers(2, 6), cancels=st.sets(st.integers(1, 5)), fails=st.booleans())
    def burst(self, number, n, cancels, fails):
        model, gate, load = self.models[0]
        key, before = (load, number, 1), len(gate.batches)
        if key in self.known:
            return
        gate._held, gate.entered = True, type(gate.entered)()
        self.fails = {number} if fails else set()
        calls = [submit(model, number)]
        gate.taken()
        calls += [submit(model, number) for _ in range(n - 1)]
        left = [call for k, call in enumerate(calls) if not (k in cancels and call.cancel())]
        if fails:
            gate.step(len(left))
        else:
            gate.step()
        for call in left:
            if fails:
                with pytest.raises(Internal):
                    call.wait(LONG_S)
            else:
                assert value_of(call) == number
        gate._held = False
        self.fails = set()
        assert len(gate.batches) - before == (len(left) if fails else 1)
        if not fails:
            self.stored(key, 1)

    @rule()
    def clear(self):
        self.cache.clear()
        self.known.clear()

    @rule()
    def reload(self):
        model, _, load = self.models.pop()
        model.stop()
        del model
        for key in [key for key in self.known if key[0] == load]:
            del self.known[key]
        self.models.append(self.new_model())

    @invariant()
    def bytes_are_exact(self):
        taken = self.cache.stats()
        assert taken["used"] == self.table + sum(self.known.values()) <= self.budget
        assert taken["entries"] == len(self.known)
        assert taken["evictions"] == self.evicted

    def teardown(self):
        for model, gate, _ in getattr(self, "models", ()):
            gate.open()
            model.stop()


TestLru = Lru.TestCase
TestLru.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
