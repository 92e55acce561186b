"""Every metric family of the server: name, type, text, labels. docs/metrics.md is tested against this table.

Names and texts of nv_* are Triton's, letter for letter. Knows nothing of where the numbers come from.
"""

from __future__ import annotations

from dataclasses import dataclass

# Labels of every series of a model; "_<tag>" and "namespace" come with the config and the server's options.
MODEL = ("model", "version")
PHASES = ("request", "queue", "compute_input", "compute_infer", "compute_output")


@dataclass(frozen=True)
class Family:
    """``when``: what the family is printed for; empty: always, though it may have no series."""

    name: str
    kind: str
    help: str
    labels: tuple[str, ...] = MODEL
    when: str = ""


_DURATION = {
    "request": "Cumulative inference request duration in microseconds (includes cached requests)",
    "queue": "Cumulative inference queuing duration in microseconds (includes cached requests)",
    "compute_input": "Cumulative compute input duration in microseconds (does not include cached requests)",
    "compute_infer": "Cumulative compute inference duration in microseconds (does not include cached requests)",
    "compute_output": "Cumulative inference compute output duration in microseconds (does not include cached requests)",
}
# Triton's summaries of the compute phases have the counters' texts.
_SUMMARY = {
    **_DURATION,
    "request": "Summary of inference request duration in microseconds (includes cached requests)",
    "queue": "Summary of inference queuing duration in microseconds (includes cached requests)",
}
_PHASE = {
    "request": "End-to-end time of successful requests",
    "queue": "Time requests waited before execution",
    "compute_input": "Time taken to prepare the inputs of an execution",
    "compute_infer": "Time taken by the model itself",
    "compute_output": "Time taken to hand out the outputs of an execution",
}

SUCCESS = Family("nv_inference_request_success", "counter", "Number of successful inference requests, all batch sizes")
FAILURE = Family(
    "nv_inference_request_failure", "counter", "Number of failed inference requests, all batch sizes",
    ("model", "reason", "version"),
)  # fmt: skip
INFERENCES = Family(
    "nv_inference_count", "counter", "Number of inferences performed (does not include cached requests)"
)
EXECUTIONS = Family(
    "nv_inference_exec_count", "counter", "Number of model executions performed (does not include cached requests)"
)
DURATIONS = {phase: Family(f"nv_inference_{phase}_duration_us", "counter", _DURATION[phase]) for phase in PHASES}
CACHE_HITS = Family("nv_cache_num_hits_per_model", "counter", "Number of cache hits per model", when="--cache-config")
CACHE_HIT_TIME = Family(
    "nv_cache_hit_duration_per_model", "counter", "Total cache hit duration per model, in microseconds",
    when="--cache-config",
)  # fmt: skip
CACHE_MISSES = Family(
    "nv_cache_num_misses_per_model", "counter", "Number of cache misses per model", when="--cache-config"
)
CACHE_MISS_TIME = Family(
    "nv_cache_miss_duration_per_model", "counter",
    "Total cache miss (insert+lookup) duration per model, in microseconds", when="--cache-config",
)  # fmt: skip
PENDING = Family(
    "nv_inference_pending_request_count", "gauge",
    "Instantaneous number of pending requests awaiting execution per-model.",
)  # fmt: skip
LOAD_TIME = Family("nv_model_load_duration_secs", "gauge", "Model load time in seconds")
FIRST_RESPONSE = Family(
    "nv_inference_first_response_histogram_ms", "histogram",
    "Duration from request to first response in milliseconds", when="--metrics-config=histogram_latencies=true",
)  # fmt: skip
_SUMMARIES_ON = "--metrics-config=summary_latencies=true"
SUMMARIES = {
    phase: Family(f"nv_inference_{phase}_summary_us", "summary", _SUMMARY[phase], when=_SUMMARIES_ON)
    for phase in PHASES
}
CACHE_SUMMARIES = {
    "cache_hit": Family(
        "nv_cache_hit_summary_per_model", "summary",
        "Summary of cache hit counts/durations per model, in microseconds.", when=f"--cache-config, {_SUMMARIES_ON}",
    ),
    "cache_miss": Family(
        "nv_cache_miss_summary_per_model", "summary",
        "Summary of cache miss counts/durations per model, in microseconds.", when=f"--cache-config, {_SUMMARIES_ON}",
    ),
}  # fmt: skip

PINNED_TOTAL = Family(
    "nv_pinned_memory_pool_total_bytes", "gauge", "Pinned memory pool total memory size, in bytes", ()
)
PINNED_USED = Family("nv_pinned_memory_pool_used_bytes", "gauge", "Pinned memory pool used memory size, in bytes", ())
_GPU, _GPU_ON = ("gpu_uuid",), "--allow-gpu-metrics, with NVIDIA's driver and the package nvidia-ml-py"
# By the field of GpuFigures that they show.
GPU = {
    "utilization": Family("nv_gpu_utilization", "gauge", "GPU utilization rate [0.0 - 1.0)", _GPU, _GPU_ON),
    "memory_total": Family("nv_gpu_memory_total_bytes", "gauge", "GPU total memory, in bytes", _GPU, _GPU_ON),
    "memory_used": Family("nv_gpu_memory_used_bytes", "gauge", "GPU used memory, in bytes", _GPU, _GPU_ON),
    "power_usage": Family("nv_gpu_power_usage", "gauge", "GPU power usage in watts", _GPU, _GPU_ON),
    "power_limit": Family("nv_gpu_power_limit", "gauge", "GPU power management limit in watts", _GPU, _GPU_ON),
    "energy": Family(
        "nv_energy_consumption", "counter", "GPU energy consumption in joules since the Triton Server started",
        _GPU, _GPU_ON,
    ),
}  # fmt: skip
_CPU_ON = "--allow-cpu-metrics"
# By the field of HostFigures.
CPU = {
    "utilization": Family("nv_cpu_utilization", "gauge", "CPU utilization rate [0.0 - 1.0]", (), _CPU_ON),
    "memory_total": Family("nv_cpu_memory_total_bytes", "gauge", "CPU total memory (RAM), in bytes", (), _CPU_ON),
    "memory_used": Family("nv_cpu_memory_used_bytes", "gauge", "CPU used memory (RAM), in bytes", (), _CPU_ON),
}
_LOCAL = "--cache-config=local,..."
# Of the local cache as a whole; Triton's has these too, and leaves them at 0.
STORE = {
    "util": Family("nv_cache_util", "gauge", "Cache utilization [0.0 - 1.0]", (), _LOCAL),
    "entries": Family("nv_cache_num_entries", "gauge", "Number of responses stored in response cache", (), _LOCAL),
    "hits": Family("nv_cache_num_hits", "gauge", "Number of cache hits in response cache", (), _LOCAL),
    "misses": Family("nv_cache_num_misses", "gauge", "Number of cache misses in response cache", (), _LOCAL),
    "lookups": Family("nv_cache_num_lookups", "gauge", "Number of cache lookups in response cache", (), _LOCAL),
    "evictions": Family("nv_cache_num_evictions", "gauge", "Number of cache evictions in response cache", (), _LOCAL),
    "lookup_us": Family(
        "nv_cache_lookup_duration", "gauge", "Total cache lookup duration (hit and miss), in microseconds", (), _LOCAL
    ),
    "insert_us": Family(
        "nv_cache_insertion_duration", "gauge", "Total cache insertion duration, in microseconds", (), _LOCAL
    ),
}
HISTOGRAMS = {
    phase: Family(f"triton_fast_{phase}_duration_seconds", "histogram", f"{_PHASE[phase]}, in seconds")
    for phase in PHASES
}
BREAKS = Family(
    "triton_fast_batch_break_total", "counter", "Batches that were executed, by what kept them from growing",
    ("model", "reason", "version"),
)  # fmt: skip
LOST_LINES = Family("triton_fast_log_lines_lost_total", "counter", "Lines of the log that could not be written", ())

# In the order of a scrape.
FAMILIES = (
    SUCCESS, FAILURE, INFERENCES, EXECUTIONS, *DURATIONS.values(), CACHE_HITS, CACHE_HIT_TIME, CACHE_MISSES,
    CACHE_MISS_TIME, PENDING, LOAD_TIME, PINNED_TOTAL, PINNED_USED, *GPU.values(), *CPU.values(), *STORE.values(),
    FIRST_RESPONSE, *SUMMARIES.values(), *CACHE_SUMMARIES.values(), *HISTOGRAMS.values(), BREAKS, LOST_LINES,
)  # fmt: skip
