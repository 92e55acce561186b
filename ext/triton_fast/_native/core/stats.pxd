# Per-model counters, written once per batch by instance threads and read by the statistics verb and the metrics.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.summary cimport Summary

cdef enum:
    N_BOUNDS = 20           # finite histogram bounds; bucket N_BOUNDS is +Inf
    N_PHASES = 5

    PHASE_REQUEST = 0
    PHASE_QUEUE = 1
    PHASE_INPUT = 2
    PHASE_INFER = 3
    PHASE_OUTPUT = 4

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

    SUMMARY_HIT = 5         # after the phases
    SUMMARY_MISS = 6
    N_SUMMARIES = 7

cdef enum:
    RESPONSE_INFER = 0      # PHASE_* of one response
    RESPONSE_OUTPUT = 1
    RESPONSE_SUCCESS = 2
    RESPONSE_FAIL = 3
    RESPONSE_EMPTY = 4
    RESPONSE_CANCEL = 5
    N_RESPONSE_FIELDS = 6
    MAX_RESPONSES = 1024    # indices counted apart; what comes after counts with the last

cdef struct BatchStat:
    int64_t size
    int64_t count
    int64_t ns[3]           # compute input, infer, output

cdef struct ResponseStat:   # of all responses that were the i-th of their request
    int64_t count[6]
    int64_t ns[6]

cdef struct FirstResponse:  # the time to it: counts of each bucket alone, the last without an upper bound
    int32_t n               # bounds
    int64_t* bounds_ms
    int64_t* counts         # n + 1
    int64_t sum_ms

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
    int64_t cache_hits          # answered by the response cache; also in success
    int64_t cache_hit_ns        # looking up and copying out
    int64_t cache_hit_us        # whole microseconds each
    int64_t cache_misses
    int64_t cache_miss_ns       # looking up and copying in
    int64_t cache_miss_us
    int64_t breaks[6]           # BREAK_*: what ended the batches that were taken
    BatchStat* batches          # sorted by size
    int32_t n_batches
    int32_t cap_batches
    ResponseStat* responses     # of backends that report each response
    int32_t n_responses
    Summary* summaries          # N_SUMMARIES; NULL: nobody asked for them
    FirstResponse* first        # likewise


# These take the caller's lock: hold s.lock (tf_lock) around them.
cdef void stats_success(Stats* s, int64_t* phase_ns) noexcept nogil
cdef void stats_execution(Stats* s, int64_t rows, int64_t* compute_ns) noexcept nogil
# A request of s has ended whose first response came at first_at (ns), 0 where it came with the end, at `ended`.
cdef void stats_first_slow(Stats* s, int64_t began, int64_t first_at, int64_t ended) noexcept nogil
# These take the lock themselves.
# Answered by the response cache: phase_ns as for stats_success, of which only request and queue count.
cdef void stats_cached(Stats* s, int64_t* phase_ns, int64_t hit_ns) noexcept nogil
# n requests that the response cache had no answer for; ns: looking up, copying in.
cdef void stats_missed(Stats* s, int64_t n, int64_t ns) noexcept nogil
cdef void stats_miss_slow(Stats* s, int64_t ns) noexcept nogil
cdef void stats_failure(Stats* s, int reason, int64_t request_ns) noexcept nogil
# One response of a request, the index-th. kind: RESPONSE_SUCCESS, _FAIL, _EMPTY or _CANCEL; ns of the model's work on
# it and of handing it out.
cdef void stats_response(Stats* s, int64_t index, int kind, int64_t infer_ns, int64_t output_ns) noexcept nogil
cdef void stats_clear(Stats* s) noexcept nogil
cdef object stats_snapshot(Stats* s)
# What is not counted unless somebody asks; before the first request. error: of summaries' ranks, 0 for none;
# bounds_ms: of the time to the first response, None for none.
cdef int stats_measure(Stats* s, double error, object bounds_ms) except -1
# {"phase": (count, sum in us, [value in us or None for each quantile])}; empty without summaries. Lets go of the GIL.
cdef dict stats_summaries(Stats* s, object quantiles)


# All that one miss took, for the summaries.
cdef inline void stats_miss_took(Stats* s, int64_t ns) noexcept nogil:
    if s.summaries != NULL:
        stats_miss_slow(s, ns)


# Hold s.lock.
cdef inline void stats_first(Stats* s, int64_t began, int64_t first_at, int64_t ended) noexcept nogil:
    if s.first != NULL:
        stats_first_slow(s, began, first_at, ended)
