"""Settings that say which requests are traced, and the queue of ended traces."""

from __future__ import annotations

from typing import Any

class TraceCollector:
    """The queue of ended traces.

    Parameters
    ----------
    most
        Traces that may wait; those that end when there is no place are dropped and counted.
    """

    def __init__(self, most: int = 65536) -> None: ...
    @property
    def dropped(self) -> int:
        """Traces for which there was no place."""

    @property
    def waiting(self) -> int: ...
    def hurry(self) -> None:
        """Have ``take`` return at once, now or the next time it is called."""

    def take(self, timeout_s: float, most_bytes: int = ...) -> list[tuple[int, Any]]:
        """Wait for traces, without the GIL, and let some gather; return ``[(stream, trace)]``, of
        files not much more than ``most_bytes``; the rest comes the next time.

        A trace is bytes, the objects of a Triton trace file with commas between them; or, of a setting with spans,
        ``(trace id, parent span or 0, root span, tracestate, records)``. A record is ``(id, parent id, span, parent
        span, "HTTP" | "GRPC" | "", model, version, request id, failed, times, [(event, ns)])``; times are received,
        received whole, began, queued, started (0: not executed), input, computed, output, ended, in monotonic ns.
        """

class TraceSetting:
    """What holds for the requests of some models.

    Parameters
    ----------
    level
        1 timestamps, 2 tensors, or both.
    rate
        One of so many requests is traced; 0: only those that bring a context.
    count
        How many are; -1: any number.
    stream
        What ``TraceCollector.take`` names the setting by.
    spans
        Traces become spans, and a request's own context is followed, whatever rate and count say.
    """

    def __init__(
        self, collector: TraceCollector, level: int, rate: int, count: int, stream: int, spans: bool
    ) -> None: ...
    @property
    def count(self) -> int:
        """How many requests it will still trace; -1: any number."""

class TraceSwitch:
    """What holds for the requests of a model now; ``NativeModel.trace_by`` gives it to the model's versions."""

    def set(self, setting: TraceSetting | None) -> None:
        """Have this setting hold from the next request on; None: nothing is traced."""
