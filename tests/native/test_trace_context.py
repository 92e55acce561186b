"""traceparent and tracestate, natively: against OpenTelemetry's own propagator, and what the recommendation refuses."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from triton_fast._native.core.trace_context import carrier, parse, span_in

TRACE, SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
GOOD = f"00-{TRACE}-{SPAN}-01"


def parsed(*fields: tuple[str, str]) -> tuple[bytes, int, int, bytes] | None:
    return parse([(name.encode(), value.encode("latin-1")) for name, value in fields])


def test_a_context() -> None:
    assert parsed(("traceparent", GOOD)) == (bytes.fromhex(TRACE), int(SPAN, 16), 1, b"")
    assert parsed(("TraceParent", GOOD), ("Tracestate", "a=b"), ("x", "y"), ("tracestate", "c=d")) == (
        bytes.fromhex(TRACE), int(SPAN, 16), 1, b"a=b,c=d",
    )  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        "", "00", GOOD[:-1], GOOD + "0", GOOD + "-", GOOD + "-00", GOOD.upper(), f" {GOOD}", f"{GOOD} ",
        f"ff-{TRACE}-{SPAN}-01", f"FF-{TRACE}-{SPAN}-01", f"0g-{TRACE}-{SPAN}-01", f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01", f"00-{TRACE}-{SPAN}-0g", f"00_{TRACE}-{SPAN}-01", f"00-{TRACE}_{SPAN}-01",
        f"00-{TRACE}-{SPAN}_01", f"00-{TRACE[:-1]}x-{SPAN}-01", f"01-{TRACE}-{SPAN}-01x", "0" * 55, "-" * 5000,
    ],
)  # fmt: skip
def test_what_is_malformed_is_not_there(value: str) -> None:
    assert parsed(("traceparent", value)) is None


@pytest.mark.parametrize("value", [f"01-{TRACE}-{SPAN}-01", f"cc-{TRACE}-{SPAN}-01-more-of-it"])
def test_later_versions_may_say_more(value: str) -> None:
    found = parsed(("traceparent", value))
    assert found is not None and found[1] == int(SPAN, 16)


def test_two_parents_are_none() -> None:
    assert parsed(("traceparent", GOOD), ("traceparent", GOOD)) is None
    assert parsed(("traceparent", "x"), ("traceparent", GOOD)) is None
    assert parsed(("tracestate", "a=b")) is None


def test_a_state_too_long_or_odd_is_dropped_and_the_parent_kept() -> None:
    for states in (["x" * 512], ["x" * 300, "y" * 300], ["a=\x01"], ["a=b", "c=\xff", "d=e"], ["x" * 511, "y"]):
        found = parsed(("traceparent", GOOD), *(("tracestate", state) for state in states))
        assert found is not None and found[3] == b"", states
    found = parsed(("traceparent", GOOD), ("tracestate", "x" * 511))
    assert found is not None and len(found[3]) == 511


@given(st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1), st.integers(0, 255))
def test_as_opentelemetry_reads_it(trace_id: int, span: int, flags: int) -> None:
    text = f"00-{trace_id:032x}-{span:016x}-{flags:02x}"
    context = TraceContextTextMapPropagator().extract({"traceparent": text})
    theirs = trace.get_current_span(context).get_span_context()
    ours = parsed(("traceparent", text))
    assert ours is not None
    assert (theirs.trace_id, theirs.span_id) == (int.from_bytes(ours[0], "big"), ours[1])
    assert ours[2] == flags


@given(
    st.integers(1, 2**128 - 1), st.integers(1, 2**64 - 1),
    st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=512),
)  # fmt: skip
def test_a_carrier_is_json_and_names_its_span(trace_id: int, span: int, state: str) -> None:
    text = carrier(trace_id.to_bytes(16, "big"), span, state.encode())
    found = json.loads(text)
    assert found.pop("traceparent") == f"00-{trace_id:032x}-{span:016x}-01"
    assert found == ({"tracestate": state} if state else {})
    assert span_in(text) == span


@given(st.binary(max_size=80))
def test_no_text_breaks_the_search_for_a_span(text: bytes) -> None:
    found = span_in(text)
    assert found is None or text.startswith(b'{"traceparent":"00-')
