"""Tracing as it is asked for at start. Knows no flags."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TraceOptions:
    """``level`` holds TIMESTAMPS and TENSORS, empty when off; ``otel`` the settings of mode opentelemetry, in order."""

    mode: str = "triton"
    level: tuple[str, ...] = ()
    rate: int = 1000
    count: int = -1
    file: str = ""
    log_frequency: int = 0
    otel: tuple[tuple[str, str], ...] = ()
