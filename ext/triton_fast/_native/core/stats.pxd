# Per-model counters, written once per batch by instance threads and read by the statistics verb and the metrics.
from libc.stdint cimport int32_t, int64_t

cdef enum:
    N_BOUNDS = 20           # finite histogram bounds; bucket N_BOUNDS is +Inf
    N_PHASES = 5

cdef enum:
    PHASE_REQUEST = 0
    PHASE_QUEUE = 1
    PHASE_INPUT = 2
    PHASE_INFER = 3
    PHASE_OUTPUT = 4

cdef enum:
    FAIL_REJECTED = 0
    FAIL_CANCELED = 1
    FAIL_BACKEND = 2
    FAIL_OTHER = 3
    N_FAILS = 4

cdef enum:
    BREAK_MAX = 0           # max_batch_size or the largest preferred size
    BREAK_PREFERRED = 1
    BREAK_DELAY = 2         # the oldest request had waited long enough
    BREAK_SHAPE = 3         # the next request's shapes or optional inputs differ
    BREAK_ORDER = 4         # the next request may not overtake (priority, ordering, its own rules)
    BREAK_EMPTY = 5         # nothing more was queued
    N_BREAKS = 6

cdef struct BatchStat:
    int64_t size
    int64_t count
    int64_t ns[3]           # compute input, infer, output

cdef struct Stats:
    int32_t lock
    int64_t last_inference_ms   # wall clock
    int64_t inference_count     # rows executed
    int64_t execution_count
    int64_t success
    int64_t failures[4]
    int64_t fail_ns
    int64_t us[5]               # per phase, whole microseconds added per request, as Triton's counters do
    int64_t ns[5]               # per phase, of successful requests
    int64_t hist[5][21]
    int64_t hist_ns[5]
    int64_t cache_hits          # answered by the response cache; also in success
    int64_t cache_hit_ns        # looking up and copying out
    int64_t cache_misses
    int64_t cache_miss_ns       # looking up and copying in
    int64_t breaks[6]           # BREAK_*: what ended the batches that were taken
    BatchStat* batches          # sorted by size
    int32_t n_batches
    int32_t cap_batches


# Both take the caller's lock: hold s.lock (tf_lock) around them.
cdef void stats_success(Stats* s, int64_t* phase_ns) noexcept nogil
cdef void stats_execution(Stats* s, int64_t rows, int64_t* compute_ns) noexcept nogil
# These take the lock themselves.
# Answered by the response cache: phase_ns as for stats_success, of which only request and queue count.
cdef void stats_cached(Stats* s, int64_t* phase_ns, int64_t hit_ns) noexcept nogil
# n requests that the response cache had no answer for; ns: looking up, copying in.
cdef void stats_missed(Stats* s, int64_t n, int64_t ns) noexcept nogil
cdef void stats_failure(Stats* s, int reason, int64_t request_ns) noexcept nogil
cdef void stats_clear(Stats* s) noexcept nogil
cdef object stats_snapshot(Stats* s)
