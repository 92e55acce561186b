"""What a model's execution is about: the server's span, for spans of the model's own, and the requests, for the log.

Knows only the texts that a request brings; OpenTelemetry's API is the model's environment's, imported when asked for.
"""

from __future__ import annotations

import contextvars
import json
import threading
from collections.abc import Sequence
from typing import Any

MAX_ID = 128
# Of a batch, the most ids that one line of the log has.
MAX_IDS = 16


class _Now(threading.local):
    """The requests that this thread executes."""

    requests: Sequence[Any] = ()


now = _Now()
# What the log says of the requests of a coroutine, which runs on another thread.
told: contextvars.ContextVar[dict[str, str]] = contextvars.ContextVar("triton_fast_told")


def about() -> dict[str, str]:
    """The fields of the log for what this thread, or this coroutine, executes."""
    return about_of(now.requests) if now.requests else told.get({})


def about_of(requests: Sequence[Any]) -> dict[str, str]:
    """``id`` and ``trace`` of one request; ``ids`` of several, in the batch's order, those that have one."""
    if len(requests) == 1:
        return {name: text for name, text in (("id", requests[0].request_id()[:MAX_ID]),
                                              ("trace", _trace_id(requests[0]))) if text}  # fmt: skip
    ids = [name[:MAX_ID] for name in (request.request_id() for request in requests) if name]
    if not ids:
        return {}
    more = [f"and {len(ids) - MAX_IDS} more"] if len(ids) > MAX_IDS else []
    return {"ids": ", ".join(ids[:MAX_IDS] + more)}


def _trace_id(request: Any) -> str:
    text = request.trace().get_context()
    parts = json.loads(text).get("traceparent", "").split("-") if text else []
    return parts[1] if len(parts) == 4 else ""


def current_span(request: Any = None) -> Any:
    """Return the server's ``compute`` span of ``request``, or of the first traced one that this thread executes.

    It records nothing; it is there to be a parent: ``trace.set_span_in_context(pb_utils.current_span(request))``. Where
    nothing is traced it is OpenTelemetry's invalid span, below which spans begin a trace of their own. Raises
    ImportError without the package opentelemetry-api.
    """
    from opentelemetry import trace

    for one in (request,) if request is not None else now.requests:
        text = one.trace().get_context()
        if text:
            return _span(trace, json.loads(text))
    return trace.INVALID_SPAN


def _span(trace: Any, carrier: dict[str, str]) -> Any:
    _, trace_id, span, flags = carrier["traceparent"].split("-")
    state = carrier.get("tracestate")
    # The carrier names the model's span, what is below it is one more: see core/tracing.pxd, TraceRecord.span.
    return trace.NonRecordingSpan(
        trace.SpanContext(
            int(trace_id, 16), int(span, 16) | 1, True, trace.TraceFlags(int(flags, 16)),
            trace.TraceState.from_header([state]) if state else None,
        )
    )  # fmt: skip
