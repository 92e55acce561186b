"""Tracing: which requests are traced, for all models and for single ones, and the thread that writes what was.

The data path is native (``_native/core/tracing``); here is what changes it. Source: spec/http.md section 8.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from typing import Any, Protocol

from triton_fast._native.core.collector import TraceCollector, TraceSetting, TraceSwitch
from triton_fast.errors import InvalidArg
from triton_fast.observability import log
from triton_fast.observability.tracing.files import TraceFiles
from triton_fast.observability.tracing.options import TraceOptions
from triton_fast.observability.tracing.settings import LEVELS, Changes, Overrides, Values, fault_of, level_names
from triton_fast.observability.tracing.spans import SpanExport

WAIT_S = 1.0
INVALID = "Attempting to set invalid trace setting :"
DEFAULT_URL = "http://localhost:4318/v1/traces"


class Traced(Protocol):
    """What ``NativeModel`` has."""

    def trace_by(self, switch: TraceSwitch) -> None: ...


class Scope:
    """One setting that holds: for all models that have none of their own (``name`` ""), or for one."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.overrides = Overrides()
        self.native: TraceSetting | None = None
        self.values = Values()
        self.stream = 0


class Tracing:
    """The trace settings of one server.

    Parameters
    ----------
    options
        What the command line says; ``clear`` falls back to it.
    most
        Ended traces that may wait for the writer.

    Raises
    ------
    ServerError
        Mode opentelemetry without the SDK, or with settings that it refuses.
    """

    def __init__(self, options: TraceOptions = TraceOptions(), *, most: int = 65536) -> None:  # noqa: B008 - frozen
        self.options = options
        self.spans = options.mode == "opentelemetry"
        self.collector = TraceCollector(most)
        self._files = TraceFiles(options.file)
        self._export = SpanExport(options.otel) if self.spans else None
        self._lock = threading.Lock()
        self._switches: dict[str, TraceSwitch] = {}
        self._scopes: dict[str, Scope] = {}
        self._streams = 0
        self._retired: list[int] = []
        self._opened: list[tuple[int, int]] = []
        self._reported = 0
        self._thread: threading.Thread | None = None
        self._stopping = False
        level = sum(LEVELS[name] for name in options.level)
        self._start = Values(level, options.rate, options.count, options.log_frequency)
        self._all = Scope("")
        with self._lock:
            self._apply(self._all, self._start)

    # ---- models

    def attach(self, name: str, model: Traced) -> None:
        """Have the settings hold for a version of a model, before its first request. A name's outlive its versions."""
        with self._lock:
            switch = self._switches.get(name)
            if switch is None:
                switch = self._switches[name] = TraceSwitch()
                switch.set(self._scopes.get(name, self._all).native)
        model.trace_by(switch)

    # ---- settings

    def shown(self, name: str = "") -> dict[str, list[str]]:
        """Return what holds for a model, or with "" for all others, in the order in which it is told."""
        with self._lock:
            scope = self._scopes.get(name, self._all)
            values = self._now(scope)
        shown = {
            "trace_level": level_names(values.trace_level),
            "trace_rate": [str(values.trace_rate)],
            "trace_count": [str(values.trace_count)],
        }
        if not self.spans:
            shown["log_frequency"] = [str(values.log_frequency)]
            shown["trace_file"] = [self.options.file]
        shown["trace_mode"] = [self.options.mode]
        if self.spans:
            given = dict(self.options.otel)
            shown["url"] = [given.pop("url", DEFAULT_URL)]
            for setting in ("resource", "bsp_max_export_batch_size", "bsp_schedule_delay", "bsp_max_queue_size"):
                if setting in given:
                    shown[setting] = [given.pop(setting)]
        return shown

    def update(self, name: str, changes: Changes) -> None:
        """Change what holds for a model, or with "" for all others. Raises InvalidArg, and changes nothing."""
        if not changes:
            return
        with self._lock:
            scope = self._all if not name else self._scopes.get(name) or Scope(name)
            before = self._start if scope is self._all else self._now(self._all)
            self._remember(scope)
            overrides = scope.overrides.with_changes(changes)
            values = overrides.over(before)
            fault = fault_of(values, has_file=bool(self.options.file), spans=self.spans)
            if fault is not None and values.trace_level:
                raise InvalidArg(INVALID + fault)
            scope.overrides = overrides
            self._apply(scope, values)
            if scope is not self._all:
                self._scopes[name] = scope
                return
            for other in self._scopes.values():
                self._remember(other)
                follows = other.overrides.over(values)
                if follows != self._now(other):
                    self._apply(other, follows)

    def _now(self, scope: Scope) -> Values:
        """What holds, with what is left of the count."""
        if scope.native is None:
            return scope.values
        return Values(**{**scope.values.__dict__, "trace_count": scope.native.count})

    def _remember(self, scope: Scope) -> None:
        """What was used up of a count stays so when something else changes."""
        now = self._now(scope)
        if now.trace_count != scope.values.trace_count:
            scope.overrides.said["trace_count"] = now.trace_count

    def _apply(self, scope: Scope, values: Values) -> None:
        if scope.native is not None:
            self._retired.append(scope.stream)
        self._streams += 1
        scope.values = values
        scope.stream = self._streams
        scope.native = None
        fault = fault_of(values, has_file=bool(self.options.file), spans=self.spans)
        # Who brings a context is traced whatever is left of the count.
        if fault is None or (self.spans and not fault):
            scope.native = TraceSetting(
                self.collector, values.trace_level, values.trace_rate, values.trace_count, scope.stream, self.spans
            )
            self._opened.append((scope.stream, values.log_frequency))
        for name, switch in self._switches.items():
            if self._scopes.get(name, scope if scope.name == name else self._all) is scope:
                switch.set(scope.native)
        self.collector.hurry()

    # ---- the writer

    def start(self) -> None:
        """Start the thread that writes."""
        self._thread = threading.Thread(target=self._run, name="trace-writer", daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Write what is left and end. Call it when no request is in flight any more."""
        self._stopping = True
        self.collector.hurry()
        if self._thread is not None:
            self._thread.join()
        self._write(0.0)
        while self.collector.waiting:
            self._write(0.0)
        self._files.close()
        if self._export is not None:
            self._export.close()

    def _run(self) -> None:
        while not self._stopping:
            try:
                self._write(WAIT_S)
            except Exception as error:
                log.error(f"traces could not be written: {type(error).__name__}: {error}")

    def _write(self, wait_s: float) -> None:
        taken = self.collector.take(wait_s)
        with self._lock:
            opened, self._opened = self._opened, []
            retired, self._retired = self._retired, []
        for stream, frequency in opened:
            self._files.open_stream(stream, frequency)
        self._deliver(taken)
        self._files.retire(retired)
        dropped = self.collector.dropped
        if dropped > self._reported:
            log.warning(f"{dropped - self._reported} traces were dropped: they end faster than they can be written")
            self._reported = dropped

    def _deliver(self, taken: Iterable[tuple[int, Any]]) -> None:
        if self._export is not None:
            self._export.write(taken)
        else:
            self._files.write(taken)


__all__ = ["TraceOptions", "Tracing"]
