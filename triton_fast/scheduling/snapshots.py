"""From a served version's native counters to the snapshot that metrics are made of."""

from __future__ import annotations

from triton_fast._native.core.stats import HISTOGRAM_BOUNDS_US
from triton_fast.observability.metrics import Histogram, ModelSnapshot
from triton_fast.scheduling.runtime import ServedVersion


def snapshot(runtime: ServedVersion, load_seconds: float) -> ModelSnapshot:
    """Return the counters of one version at this moment. ``load_seconds``: what its load took."""
    taken = runtime.native.snapshot()
    ns = taken["ns"]
    return ModelSnapshot(
        model=runtime.name,
        version=str(runtime.version),
        namespace=runtime.namespace,
        tags=dict(runtime.config.metric_tags),
        success=taken["success"],
        failures=taken["failures"],
        inference_count=taken["inference_count"],
        exec_count=taken["execution_count"],
        request_ns=ns["request"],
        queue_ns=ns["queue"],
        compute_input_ns=ns["compute_input"],
        compute_infer_ns=ns["compute_infer"],
        compute_output_ns=ns["compute_output"],
        pending=taken["pending"],
        load_seconds=load_seconds,
        histograms={
            phase: Histogram(HISTOGRAM_BOUNDS_US, counts, total)
            for phase, (counts, total) in taken["histograms"].items()
        },
        breaks=taken["breaks"] if runtime.batches else {},
        cache=taken["cache"] if runtime.cached else None,
    )
