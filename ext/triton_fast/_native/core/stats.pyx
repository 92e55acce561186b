# Counters behind /v2/models/M/stats and /metrics. One short spin-locked section per executed batch; nothing here
# allocates per request. Knows nothing of queues or protocols.
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memmove, memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from triton_fast._native.core.native cimport tf_lock, tf_unlock

# Upper bounds in ns: 10 us to 10 s by 1-2.5-5.
cdef int64_t[N_BOUNDS] BOUNDS_NS = [
    10000, 25000, 50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000, 25000000, 50000000, 100000000,
    250000000, 500000000, 1000000000, 2500000000, 5000000000, 10000000000, 30000000000,
]

HISTOGRAM_BOUNDS_US = tuple(BOUNDS_NS[i] // 1000 for i in range(N_BOUNDS))
PHASES = ("request", "queue", "compute_input", "compute_infer", "compute_output")
FAILURE_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
BREAK_REASONS = ("max", "preferred", "delay", "shape", "order", "empty")


cdef inline int bucket_of(int64_t ns) noexcept nogil:
    cdef int i = 0
    if ns > BOUNDS_NS[9]:
        i = 10
    while i < N_BOUNDS and ns > BOUNDS_NS[i]:
        i += 1
    return i


cdef inline void add_phase(Stats* s, int p, int64_t ns) noexcept nogil:
    s.ns[p] += ns
    s.us[p] += ns // 1000
    s.hist[p][bucket_of(ns)] += 1
    s.hist_ns[p] += ns


cdef void stats_success(Stats* s, int64_t* phase_ns) noexcept nogil:
    cdef int p
    s.success += 1
    for p in range(N_PHASES):
        add_phase(s, p, phase_ns[p])


cdef void stats_cached(Stats* s, int64_t* phase_ns, int64_t hit_ns) noexcept nogil:
    tf_lock(&s.lock)
    s.success += 1
    add_phase(s, PHASE_REQUEST, phase_ns[PHASE_REQUEST])
    add_phase(s, PHASE_QUEUE, phase_ns[PHASE_QUEUE])
    s.cache_hits += 1
    s.cache_hit_ns += hit_ns
    tf_unlock(&s.lock)


cdef void stats_missed(Stats* s, int64_t n, int64_t ns) noexcept nogil:
    tf_lock(&s.lock)
    s.cache_misses += n
    s.cache_miss_ns += ns
    tf_unlock(&s.lock)


cdef void stats_execution(Stats* s, int64_t rows, int64_t* compute_ns) noexcept nogil:
    cdef int32_t lo = 0, hi = s.n_batches, mid, cap
    cdef BatchStat* grown
    cdef timespec ts
    clock_gettime(CLOCK_REALTIME, &ts)
    s.last_inference_ms = <int64_t>ts.tv_sec * 1000 + ts.tv_nsec // 1000000
    s.execution_count += 1
    s.inference_count += rows
    while lo < hi:
        mid = (lo + hi) >> 1
        if s.batches[mid].size < rows:
            lo = mid + 1
        else:
            hi = mid
    if lo == s.n_batches or s.batches[lo].size != rows:
        if s.n_batches == s.cap_batches:
            cap = s.cap_batches * 2 if s.cap_batches else 8
            grown = <BatchStat*>realloc(s.batches, <size_t>cap * sizeof(BatchStat))
            if grown == NULL:
                return
            s.batches = grown
            s.cap_batches = cap
        memmove(&s.batches[lo + 1], &s.batches[lo], <size_t>(s.n_batches - lo) * sizeof(BatchStat))
        memset(&s.batches[lo], 0, sizeof(BatchStat))
        s.batches[lo].size = rows
        s.n_batches += 1
    s.batches[lo].count += 1
    s.batches[lo].ns[0] += compute_ns[0]
    s.batches[lo].ns[1] += compute_ns[1]
    s.batches[lo].ns[2] += compute_ns[2]


cdef void stats_failure(Stats* s, int reason, int64_t request_ns) noexcept nogil:
    tf_lock(&s.lock)
    s.failures[reason] += 1
    s.fail_ns += request_ns
    tf_unlock(&s.lock)


cdef void stats_clear(Stats* s) noexcept nogil:
    free(s.batches)
    memset(s, 0, sizeof(Stats))


cdef object stats_snapshot(Stats* s):
    cdef Stats copy
    cdef BatchStat* batches = NULL
    cdef int32_t room = 0, i
    # The table is copied under the lock into memory got outside it.
    while True:
        tf_lock(&s.lock)
        if s.n_batches <= room:
            break
        room = s.n_batches + 8
        tf_unlock(&s.lock)
        free(batches)
        batches = <BatchStat*>malloc(<size_t>room * sizeof(BatchStat))
        if batches == NULL:
            raise MemoryError
    memcpy(&copy, s, sizeof(Stats))
    if s.n_batches:
        memcpy(batches, s.batches, <size_t>s.n_batches * sizeof(BatchStat))
    tf_unlock(&s.lock)
    try:
        return {
            "last_inference_ms": copy.last_inference_ms,
            "inference_count": copy.inference_count,
            "execution_count": copy.execution_count,
            "success": copy.success,
            "failures": {FAILURE_REASONS[i]: copy.failures[i] for i in range(N_FAILS)},
            "fail_ns": copy.fail_ns,
            "ns": {PHASES[i]: copy.ns[i] for i in range(N_PHASES)},
            "us": {PHASES[i]: copy.us[i] for i in range(N_PHASES)},
            "histograms": {
                PHASES[i]: (tuple([copy.hist[i][b] for b in range(N_BOUNDS + 1)]), copy.hist_ns[i])
                for i in range(N_PHASES)
            },
            "cache": (copy.cache_hits, copy.cache_hit_ns, copy.cache_misses, copy.cache_miss_ns),
            "breaks": {BREAK_REASONS[i]: copy.breaks[i] for i in range(N_BREAKS)},
            "batches": [
                (batches[i].size, batches[i].count, batches[i].ns[0], batches[i].ns[1], batches[i].ns[2])
                for i in range(copy.n_batches)
            ],
        }
    finally:
        free(batches)
