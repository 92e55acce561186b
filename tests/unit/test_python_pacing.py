"""Back-off, allowances and line cutting: pure pieces on a clock of the test's own."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from triton_fast.backends.python import health
from triton_fast.backends.python.output import MAX_LINE, Lines
from triton_fast.backends.python.pacing import Allowance, Backoff


def test_backoff_doubles_to_its_limit_and_health_resets_it():
    backoff = Backoff()
    assert [round(backoff.delay(1.0), 1) for _ in range(8)] == [0, 0.1, 0.2, 0.4, 0.8, 1.5, 1.5, 1.5]
    assert backoff.delay(59.9) == 1.5
    assert [backoff.delay(60.0), backoff.delay(1.0), backoff.delay(0.0)] == [0, 0.1, 0.2]


def test_backoff_is_longer_while_workers_do_not_start():
    backoff = Backoff()
    delays = [round(backoff.delay(), 1) for _ in range(12)]
    assert delays == [0, 0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 6.4, 12.8, 25.6, 30, 30]
    # One that served at last, and died.
    assert [backoff.delay(3.0), backoff.delay(3.0), backoff.delay()] == [1.5, 1.5, 3.0]


@given(st.lists(st.tuples(st.integers(0, 500), st.integers(0, 100)), max_size=50))
def test_an_allowance_holds_its_rate(uses):
    now, spent, allowance = 0.0, 0.0, Allowance(10, 100, 0.0)
    for amount, pause in uses:
        wait = allowance.spend(amount, now)
        spent += amount
        # What was ever used, the last piece apart, came within burst and rate.
        assert spent - amount <= 100 + 10 * now + 1e-6
        now += wait + pause


@given(st.binary(max_size=300), st.integers(1, 20))
def test_lines_do_not_depend_on_the_pieces(data, size):
    found = []
    lines = Lines(found.append)
    for at in range(0, len(data), size):
        lines.feed(data[at : at + size])
    lines.close()
    expected = data.split(b"\n")
    if not expected[-1]:
        expected.pop()
    assert found == [line.decode("utf-8", "replace").removesuffix("\r") for line in expected]


def test_a_line_is_cut_at_its_limit_and_memory_with_it():
    found = []
    lines = Lines(found.append)
    for _ in range(10):
        lines.feed(b"x" * MAX_LINE)
        assert len(lines._part) <= MAX_LINE
    lines.feed(b"\nnext\n")
    assert [len(found[0]), found[1]] == [MAX_LINE + len(" ... (line cut)"), "next"]


def test_ends_in_words():
    assert health.unhealthy("m_0_0") == "Stub process 'm_0_0' is not healthy."
    assert health.unhealthy("m_0_0", health.end_of(3)).endswith("The worker process exited with code 3")
    assert health.end_of(-9) == "was killed by signal SIGKILL"
    assert health.end_of(-99) == "was killed by signal 99"
