"""Names of the per-model counters that ``NativeModel.snapshot`` returns. Source: core/stats.pyx."""

HISTOGRAM_BOUNDS_US: tuple[int, ...]
"""Upper bounds of the latency histograms in microseconds, ascending; one more bucket holds what is longer."""

PHASES: tuple[str, ...]
"""request (all of it), queue, compute_input, compute_infer, compute_output."""

FAILURE_REASONS: tuple[str, ...]
"""REJECTED (by the queue), CANCELED, BACKEND, OTHER."""

SUMMARIES: tuple[str, ...]
"""PHASES, cache_hit and cache_miss."""

RESPONSE_FIELDS: tuple[str, ...]
"""What is counted of each response: compute_infer, compute_output, success, fail, empty_response, cancel."""

BREAK_REASONS: tuple[str, ...]
"""What ended the batches taken: max, preferred, delay, shape, order, empty."""

def bench(n: int, *, summaries: bool = False) -> int:
    """Count n executions of one request each, as a runner does (bench/micro only); return how many."""
