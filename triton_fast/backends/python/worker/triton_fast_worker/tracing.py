"""The server's span of a model's execution, for spans that the model makes itself.

Knows only the text that a request brings; OpenTelemetry's API is the model's environment's, imported when asked for.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from typing import Any


class _Now(threading.local):
    """The requests that this thread executes."""

    requests: Sequence[Any] = ()


now = _Now()


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
