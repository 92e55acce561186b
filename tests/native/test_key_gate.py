"""The native table of API keys against a dictionary, and what it says of keys that it does not know."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from triton_fast._native.net.gate import KeyGate

KEYS = st.binary(min_size=1, max_size=96)


@given(keys=st.dictionaries(KEYS, st.integers(0, 2**32 - 1), max_size=200), others=st.lists(KEYS, max_size=50))
@settings(max_examples=200, deadline=None)
def test_as_a_dictionary(keys: dict[bytes, int], others: list[bytes]) -> None:
    gate = KeyGate()
    gate.reset(len(keys))
    for key, scopes in keys.items():
        gate.remember(key, scopes)
    for key in [*keys, *others, b"", b"x" * 97, b"x" * 5000]:
        assert gate.scopes(key) == keys.get(key)
        assert gate.take(key) is (key in keys)
        for wrong in (key + b"\0", key[:-1], key[:-1] + b"\xff"):
            assert gate.scopes(wrong) == keys.get(wrong)


def test_reset_forgets_and_counts() -> None:
    gate = KeyGate()
    before = gate.generation
    gate.reset(1)
    gate.remember(b"a", 1)
    gate.remember(b"a", 2)  # the same one again takes no room
    assert gate.scopes(b"a") == 2
    gate.reset(1)
    assert gate.scopes(b"a") is None
    assert gate.generation == before + 2


def test_no_more_than_there_is_room_for() -> None:
    gate = KeyGate()
    with pytest.raises(ValueError, match="no room"):
        gate.remember(b"a", 1)
    gate.reset(2)
    gate.remember(b"a", 1)
    gate.remember(b"b", 1)
    with pytest.raises(ValueError, match="no room"):
        gate.remember(b"c", 1)
    for key in (b"", b"x" * 97):
        with pytest.raises(ValueError, match="not a key"):
            gate.remember(key, 1)
    for count in (-1, 65537):
        with pytest.raises((ValueError, OverflowError)):
            gate.reset(count)


@pytest.mark.parametrize(("rate", "burst"), [(1, 1), (10, 10), (0.25, 1), (1e9, 5000), (0, 5000)])
def test_a_second_worth_at_once(rate: float, burst: int) -> None:
    gate = KeyGate()
    gate.reset(1)
    gate.remember(b"a", 1, rate)
    gate.now = 10**15
    assert sum(gate.take(b"a") for _ in range(5000)) == burst
