"""What a version counts only where ``--metrics-config`` asks for it: summaries, and the time to the first response.

Knows configs and the engine's counters; nothing of how they are shown.
"""

from __future__ import annotations

import math
from typing import Any

from triton_fast._native.sched.model import NativeModel
from triton_fast.observability.metrics_config import MetricsConfig

FAMILY = "nv_inference_first_response_histogram_ms"
DEFAULT_BUCKETS = (100.0, 500.0, 2000.0, 5000.0)
_LONGEST_MS = 2.0**60


def first_buckets(config: Any) -> tuple[float, ...]:
    """Return the finite bounds, in ms, of the histogram of the time to the first response: the config's or Triton's."""
    for control in config.model_metrics.metric_control:
        if control.metric_identifier.family == FAMILY:
            return tuple(bound for bound in control.histogram_options.buckets if bound != math.inf)
    return DEFAULT_BUCKETS


def measure(native: NativeModel, config: Any, metrics: MetricsConfig) -> None:
    """Have ``native`` count what ``metrics`` asks for. Before its first request."""
    bounds = None
    if metrics.histogram_latencies:
        # Times are whole ms: one is at most 7.5 if it is at most 7.
        bounds = [math.floor(max(-_LONGEST_MS, min(_LONGEST_MS, bound))) for bound in first_buckets(config)]
    native.measure(summary_error=metrics.summary_error, first_bounds_ms=bounds)
