# Counters behind /v2/models/M/stats and /metrics. One short spin-locked section per executed batch; nothing here
# allocates per request. Knows nothing of queues or protocols.
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcpy, memmove, memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from triton_fast._native.core.native cimport now_ns, tf_lock, tf_unlock
from triton_fast._native.core.summary cimport (
    Entry, Summary, summary_add, summary_clear, summary_copy, summary_quantile, summary_settle, summary_size,
)

# Upper bounds in ns: 10 us to 10 s by 1-2.5-5.
cdef int64_t[N_BOUNDS] BOUNDS_NS = [
    10000, 25000, 50000, 100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000, 25000000, 50000000, 100000000,
    250000000, 500000000, 1000000000, 2500000000, 5000000000, 10000000000, 30000000000,
]

HISTOGRAM_BOUNDS_US = tuple(BOUNDS_NS[i] // 1000 for i in range(N_BOUNDS))
PHASES = ("request", "queue", "compute_input", "compute_infer", "compute_output")
FAILURE_REASONS = ("REJECTED", "CANCELED", "BACKEND", "OTHER")
cdef enum:
    MAX_QUANTILES = 64
    MAX_BOUNDS = 512

SUMMARIES = (*PHASES, "cache_hit", "cache_miss")
RESPONSE_FIELDS = ("compute_infer", "compute_output", "success", "fail", "empty_response", "cancel")
BREAK_REASONS = ("max", "preferred", "delay", "shape", "order", "empty")


cdef extern from *:
    int bit_length "64 - __builtin_clzll" (unsigned long long n) nogil


# First bucket that a duration of so many bits can be in: the bounds lie more than a factor of two apart.
cdef unsigned char[65] FIRST_BUCKET


cdef void fill_first_buckets() noexcept:
    cdef int bits, i = 0
    for bits in range(65):
        while i < N_BOUNDS and (bits == 64 or BOUNDS_NS[i] < (<int64_t>1 << bits) >> 1):
            i += 1
        FIRST_BUCKET[bits] = i


fill_first_buckets()


cdef inline int bucket_of(int64_t ns) noexcept nogil:
    cdef int i = FIRST_BUCKET[bit_length(<unsigned long long>ns | 1)]
    return i + (i < N_BOUNDS and ns > BOUNDS_NS[i])


cdef inline void add_phase(Stats* s, int p, int64_t ns) noexcept nogil:
    s.ns[p] += ns
    s.us[p] += ns // 1000
    s.hist[p][bucket_of(ns)] += 1


cdef void summarise(Stats* s, int64_t* phase_ns, int n) noexcept nogil:
    cdef int64_t now = now_ns()
    cdef int p
    for p in range(n):
        summary_add(&s.summaries[p], phase_ns[p] // 1000, now)


cdef void stats_success(Stats* s, int64_t* phase_ns) noexcept nogil:
    cdef int p
    s.success += 1
    for p in range(N_PHASES):
        add_phase(s, p, phase_ns[p])
    if s.summaries != NULL:
        summarise(s, phase_ns, N_PHASES)


cdef void stats_cached(Stats* s, int64_t* phase_ns, int64_t hit_ns) noexcept nogil:
    tf_lock(&s.lock)
    s.success += 1
    add_phase(s, PHASE_REQUEST, phase_ns[PHASE_REQUEST])
    add_phase(s, PHASE_QUEUE, phase_ns[PHASE_QUEUE])
    s.cache_hits += 1
    s.cache_hit_ns += hit_ns
    s.cache_hit_us += hit_ns // 1000
    if s.summaries != NULL:
        summarise(s, phase_ns, PHASE_QUEUE + 1)
        summary_add(&s.summaries[SUMMARY_HIT], hit_ns // 1000, now_ns())
    tf_unlock(&s.lock)


cdef void stats_missed(Stats* s, int64_t n, int64_t ns) noexcept nogil:
    tf_lock(&s.lock)
    s.cache_misses += n
    s.cache_miss_ns += ns
    s.cache_miss_us += ns // 1000
    tf_unlock(&s.lock)


cdef void stats_miss_slow(Stats* s, int64_t ns) noexcept nogil:
    tf_lock(&s.lock)
    summary_add(&s.summaries[SUMMARY_MISS], ns // 1000, now_ns())
    tf_unlock(&s.lock)


cdef void stats_first_slow(Stats* s, int64_t began, int64_t first_at, int64_t ended) noexcept nogil:
    cdef FirstResponse* f = s.first
    cdef int64_t ms = ((first_at if first_at else ended) - began) // 1000000
    cdef int32_t lo = 0, hi = f.n, mid
    while lo < hi:
        mid = (lo + hi) >> 1
        if f.bounds_ms[mid] < ms:
            lo = mid + 1
        else:
            hi = mid
    f.counts[lo] += 1
    f.sum_ms += ms


cdef void stats_response(Stats* s, int64_t index, int kind, int64_t infer_ns, int64_t output_ns) noexcept nogil:
    cdef ResponseStat* grown
    cdef ResponseStat* one
    cdef int32_t n
    if index >= MAX_RESPONSES:
        index = MAX_RESPONSES - 1
    tf_lock(&s.lock)
    if index >= s.n_responses:
        n = <int32_t>index + 1 if index >= 2 * s.n_responses else 2 * s.n_responses
        n = MAX_RESPONSES if n > MAX_RESPONSES else n
        grown = <ResponseStat*>realloc(s.responses, <size_t>n * sizeof(ResponseStat))
        if grown == NULL:
            tf_unlock(&s.lock)
            return
        memset(&grown[s.n_responses], 0, <size_t>(n - s.n_responses) * sizeof(ResponseStat))
        s.responses = grown
        s.n_responses = n
    one = &s.responses[index]
    one.count[kind] += 1
    one.ns[kind] += infer_ns + output_ns
    if kind != RESPONSE_CANCEL:
        one.count[RESPONSE_INFER] += 1
        one.ns[RESPONSE_INFER] += infer_ns
        if kind != RESPONSE_EMPTY:
            one.count[RESPONSE_OUTPUT] += 1
            one.ns[RESPONSE_OUTPUT] += output_ns
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
    cdef int32_t i
    free(s.batches)
    free(s.responses)
    if s.summaries != NULL:
        for i in range(N_SUMMARIES):
            summary_clear(&s.summaries[i])
        free(s.summaries)
    free(s.first)
    memset(s, 0, sizeof(Stats))


cdef int stats_measure(Stats* s, double error, object bounds_ms) except -1:
    cdef FirstResponse* f
    cdef Py_ssize_t i, n
    if error > 0 and s.summaries == NULL:
        s.summaries = <Summary*>calloc(N_SUMMARIES, sizeof(Summary))
        if s.summaries == NULL:
            raise MemoryError
        for i in range(N_SUMMARIES):
            s.summaries[i].error = error
    if bounds_ms is not None and s.first == NULL:
        n = len(bounds_ms)
        if n > MAX_BOUNDS:
            raise ValueError(f"at most {MAX_BOUNDS} buckets, got {n}")
        f = <FirstResponse*>calloc(1, sizeof(FirstResponse) + <size_t>(2 * n + 1) * sizeof(int64_t))
        if f == NULL:
            raise MemoryError
        f.bounds_ms = <int64_t*>(f + 1)
        f.counts = f.bounds_ms + n
        for i in range(n):
            try:
                f.bounds_ms[i] = bounds_ms[i]
            except (OverflowError, TypeError):
                free(f)
                raise
        f.n = <int32_t>n
        s.first = f
    return 0


# A settled copy, made under the lock in memory got outside it. NULL: there is none.
cdef Entry* copy_summary(Stats* s, int which, Summary* to) noexcept nogil:
    cdef Entry* room = NULL
    cdef int64_t size = 64, needed
    while True:
        room = <Entry*>malloc(<size_t>size * sizeof(Entry))
        if room == NULL:
            return NULL
        tf_lock(&s.lock)
        summary_settle(&s.summaries[which], now_ns())
        needed = summary_size(&s.summaries[which])
        if needed <= size:
            summary_copy(&s.summaries[which], to, room)
            tf_unlock(&s.lock)
            return room
        tf_unlock(&s.lock)
        free(room)
        size = 2 * needed


cdef dict stats_summaries(Stats* s, object quantiles):
    cdef double[MAX_QUANTILES] asked
    cdef int64_t[MAX_QUANTILES] found
    cdef Py_ssize_t i, n = len(quantiles)
    cdef Summary copy
    cdef Entry* room
    cdef int which
    if n > MAX_QUANTILES:
        raise ValueError(f"at most {MAX_QUANTILES} quantiles, got {n}")
    if s.summaries == NULL:
        return {}
    for i in range(n):
        asked[i] = quantiles[i]
    taken = {}
    for which in range(N_SUMMARIES):
        with nogil:
            room = copy_summary(s, which, &copy)
            if room != NULL:
                for i in range(n):
                    found[i] = summary_quantile(&copy, asked[i])
                free(room)
        if room == NULL:
            raise MemoryError
        taken[SUMMARIES[which]] = (
            copy.count, copy.sum_us, [None if found[i] < 0 else found[i] for i in range(n)]
        )
    return taken


# What stats_response counted, by index, without what nobody sent; locked, as the table may move.
cdef dict responses_of(Stats* s):
    cdef ResponseStat one
    cdef int32_t i = 0
    taken = {}
    while True:
        tf_lock(&s.lock)
        if i >= s.n_responses:
            tf_unlock(&s.lock)
            return taken
        one = s.responses[i]
        tf_unlock(&s.lock)
        if (one.count[RESPONSE_SUCCESS] + one.count[RESPONSE_FAIL] + one.count[RESPONSE_EMPTY]
                + one.count[RESPONSE_CANCEL]):
            taken[i] = {RESPONSE_FIELDS[k]: (one.count[k], one.ns[k]) for k in range(N_RESPONSE_FIELDS)}
        i += 1


# (bounds in ms, count of each bucket, sum in ms), or None.
cdef object first_of(FirstResponse* f):
    cdef int32_t i
    if f == NULL:
        return None
    return (
        tuple([f.bounds_ms[i] for i in range(f.n)]), tuple([f.counts[i] for i in range(f.n + 1)]), f.sum_ms
    )


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
                PHASES[i]: (tuple([copy.hist[i][b] for b in range(N_BOUNDS + 1)]), copy.ns[i])
                for i in range(N_PHASES)
            },
            "cache": (copy.cache_hits, copy.cache_hit_ns, copy.cache_misses, copy.cache_miss_ns),
            "cache_us": (copy.cache_hit_us, copy.cache_miss_us),
            "first_response": first_of(s.first),
            "responses": responses_of(s) if copy.n_responses else {},
            "breaks": {BREAK_REASONS[i]: copy.breaks[i] for i in range(N_BREAKS)},
            "batches": [
                (batches[i].size, batches[i].count, batches[i].ns[0], batches[i].ns[1], batches[i].ns[2])
                for i in range(copy.n_batches)
            ],
        }
    finally:
        free(batches)


def bench(int n, *, bint summaries=False):
    """Count n executions of one request each, as a runner does (bench/micro only); return how many."""
    cdef Stats s
    cdef int64_t[N_PHASES] phase
    cdef int _i
    cdef int p
    cdef int64_t count
    memset(&s, 0, sizeof(Stats))
    stats_measure(&s, 0.001 if summaries else 0, None)
    for _i in range(n):
        for p in range(N_PHASES):
            phase[p] = 2000 * (p + 1) + (_i * 7919) % 1000000
        tf_lock(&s.lock)
        stats_execution(&s, 1, &phase[PHASE_INPUT])
        stats_success(&s, phase)
        tf_unlock(&s.lock)
    count = s.success
    stats_clear(&s)
    return count
