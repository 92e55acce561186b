"""Traces as OpenTelemetry spans, through the SDK's own batch processor and OTLP exporter.

Source: spec/metrics.md section 6. Knows no settings of what is traced; the SDK is imported only when it is used.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Iterable, Sequence
from typing import Any

from triton_fast.errors import InvalidArg, Unsupported
from triton_fast.observability import log

MISSING = (
    "--trace-config mode=opentelemetry needs the OpenTelemetry SDK and its OTLP exporter: pip install triton_fast[otel]"
)
SERVICE = "triton-inference-server"
SCOPE = "triton-server"
END_S = 5.0
_LIMITS = {
    "bsp_max_queue_size": "max_queue_size",
    "bsp_schedule_delay": "schedule_delay_millis",
    "bsp_max_export_batch_size": "max_export_batch_size",
}


class _ToLog(logging.Handler):
    """What the SDK has to say belongs into the server's log."""

    def emit(self, record: logging.LogRecord) -> None:
        log.warning(f"OpenTelemetry: {record.getMessage()}")


class SpanExport:
    """Makes spans of traces and hands them to the SDK.

    Parameters
    ----------
    settings
        ``url``, ``resource`` (key=value, any number) and the limits of the batch processor.
    processor
        Instead of the SDK's, for tests.

    Raises
    ------
    ServerError
        The SDK is not installed, or refuses the settings.
    """

    def __init__(self, settings: Sequence[tuple[str, str]], processor: Any = None) -> None:
        try:
            from opentelemetry import trace as api
            from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk import resources
            from opentelemetry.sdk.trace import Event, ReadableSpan
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
            from opentelemetry.sdk.util.instrumentation import InstrumentationScope
        except ImportError as error:
            raise Unsupported(f"{MISSING} ({error})") from None
        self._api = api
        self._event = Event
        self._span = ReadableSpan
        self._scope = InstrumentationScope(SCOPE)
        self._flags = api.TraceFlags(api.TraceFlags.SAMPLED)
        given = dict(settings)
        attributes = dict(text.partition("=")[::2] for name, text in settings if name == "resource")
        if "service.name" not in attributes and not _service_in(os.environ):
            attributes["service.name"] = SERVICE
        self._resource = resources.Resource.create(dict(attributes))
        logger = logging.getLogger("opentelemetry")
        if not any(isinstance(handler, _ToLog) for handler in logger.handlers):
            logger.addHandler(_ToLog())
            logger.propagate = False
        # A client's malformed tracestate is ignored; it must not be able to fill the log.
        logging.getLogger("opentelemetry.trace.span").setLevel(logging.ERROR)
        limits = {name: int(given[setting]) for setting, name in _LIMITS.items() if setting in given}
        try:
            exporter = None if processor is not None else OTLPSpanExporter(endpoint=_endpoint(given.get("url", "")))
            self._processor = processor or BatchSpanProcessor(exporter, **limits)  # type: ignore[arg-type]
        except ValueError as error:
            raise InvalidArg(f"--trace-config opentelemetry: {error}") from None

    def write(self, traces: Iterable[tuple[int, Any]]) -> None:
        # Stamps are monotonic; what the clock was set back by since does not matter to who reads spans.
        offset = time.time_ns() - time.monotonic_ns()
        for _, trace in traces:
            for span in self._spans(offset, *trace):
                self._processor.on_end(span)

    def close(self, timeout_s: float = END_S) -> None:
        """Export what is left, for so long: a collector that does not answer must not hold up the server's end."""
        # The SDK's own limit is half a minute, which is all that most give a server to end.
        thread = threading.Thread(target=self._processor.shutdown, name="trace-end", daemon=True)
        thread.start()
        thread.join(timeout_s)
        if thread.is_alive():
            log.warning(f"OpenTelemetry: the collector did not take the last spans in {timeout_s:g} s; they are lost")

    def _context(self, trace_id: int, span: int, state: Any, *, remote: bool = False) -> Any:
        return self._api.SpanContext(trace_id, span, remote, self._flags, state)

    def _spans(  # noqa: PLR0917 - a trace's parts, as they come
        self, offset: int, trace: bytes, parent: int, root: int, header: str, records: list[tuple[Any, ...]]
    ) -> Iterable[Any]:
        trace_id = int.from_bytes(trace, "big")
        state = self._api.TraceState.from_header([header]) if header else None

        def context(span: int, *, remote: bool = False) -> Any:
            return self._context(trace_id, span, state, remote=remote)

        def made(  # noqa: PLR0917
            name: str, span: int, above: Any, begun: int, ended: int, events: Sequence[tuple[str, int]],
            failed: bool = False, attributes: dict[str, Any] | None = None,
        ) -> Any:  # fmt: skip
            status = self._api.Status(self._api.StatusCode.ERROR if failed else self._api.StatusCode.UNSET)
            return self._span(
                name, context(span), above, self._resource, attributes or {},
                [self._event(event, timestamp=offset + ns) for event, ns in events if ns], (),
                self._api.SpanKind.SERVER, None, status, offset + begun, offset + max(begun, ended), self._scope,
            )  # fmt: skip

        for number, above, span, above_span, origin, name, version, request_id, failed, times, answered in records:
            received, whole, began, queued, started, gathered, computed, output, ended = times
            if origin:
                receive = "HTTP_RECV" if origin == "HTTP" else "GRPC_WAITREAD"
                events = [(f"{receive}_START", received), (f"{receive}_END", whole), *answered]
                last = max([ended, *(ns for _, ns in answered)])
                yield made("InferRequest", root, context(parent, remote=True) if parent else None, received or began,
                           last, events, failed)  # fmt: skip
            attributes = {
                "triton.model_name": name, "triton.model_version": version, "triton.trace_id": number,
                "triton.trace_parent_id": above,
            }  # fmt: skip
            if request_id:
                attributes["triton.request_id"] = request_id
            events = [("REQUEST_START", began), ("QUEUE_START", queued), ("REQUEST_END", ended)]
            yield made(name, span, context(above_span), began, ended, events, failed, attributes)
            if started:
                events = [
                    ("COMPUTE_START", started), ("COMPUTE_INPUT_END", gathered), ("COMPUTE_OUTPUT_START", computed),
                    ("COMPUTE_END", output),
                ]  # fmt: skip
                yield made("compute", span | 1, context(span), started, output, events)


def _service_in(env: Any) -> bool:
    return bool(env.get("OTEL_SERVICE_NAME")) or "service.name=" in env.get("OTEL_RESOURCE_ATTRIBUTES", "")


def _endpoint(url: str) -> str | None:
    """Return the URL as ``requests`` needs it; None leaves it to OTEL_EXPORTER_OTLP_*, and else to the default."""
    return url if not url or "://" in url else f"http://{url}"
