"""From a served version's native counters to the snapshot that metrics are made of."""

from __future__ import annotations

from collections.abc import Sequence

from triton_fast._native.core.stats import HISTOGRAM_BOUNDS_US
from triton_fast.observability.snapshot import Histogram, ModelSnapshot, Summary
from triton_fast.scheduling.measures import first_buckets
from triton_fast.scheduling.runtime import ServedVersion


def snapshot(runtime: ServedVersion, load_seconds: float, quantiles: Sequence[float] = ()) -> ModelSnapshot:
    """Return the counters of one version at this moment.

    ``load_seconds``: what its load took; ``quantiles``: of its summaries, if it keeps them.
    """
    taken = runtime.native.snapshot()
    hits, _, misses, _ = taken["cache"]
    hit_us, miss_us = taken["cache_us"]
    first = taken["first_response"]
    return ModelSnapshot(
        model=runtime.name,
        version=str(runtime.version),
        namespace=runtime.namespace,
        tags=dict(runtime.config.metric_tags),
        success=taken["success"],
        failures=taken["failures"],
        inference_count=taken["inference_count"],
        exec_count=taken["execution_count"],
        duration_us=taken["us"],
        pending=taken["pending"],
        load_seconds=load_seconds,
        histograms={
            phase: Histogram(HISTOGRAM_BOUNDS_US, counts, total)
            for phase, (counts, total) in taken["histograms"].items()
        },
        summaries={
            phase: Summary(count, total, tuple(zip(quantiles, values, strict=True)))
            for phase, (count, total, values) in runtime.native.summaries(quantiles).items()
        },
        first_response=None if first is None else Histogram(first_buckets(runtime.config), *first[1:]),
        breaks=taken["breaks"] if runtime.batches else {},
        cache=(hits, hit_us, misses, miss_us) if runtime.cached else None,
    )
