# The dynamic batcher's decision, pure: sizes of queued requests and times in; how many to take, or until when to wait,
# out. No clock, no lock, no queue. Inlines only, and a test entry in sched.queue.
from libc.stdint cimport int32_t, int64_t

cdef enum:
    MAX_PREFERRED = 64
    MAX_TAKE = 4096         # requests in one batch

cdef struct Policy:
    bint single             # one request per execution (no dynamic batching, or no batch dimension)
    int64_t max_batch       # rows
    int64_t delay_ns
    int32_t n_preferred
    int64_t[64] preferred   # ascending

cdef struct Scan:           # a walk over one bucket's requests, oldest first
    int64_t rows
    int32_t n
    int32_t best_n          # requests that make up the largest preferred size met; 0 = none
    bint full               # nothing more can join


cdef inline void scan_begin(Scan* s) noexcept nogil:
    s.rows = 0
    s.n = 0
    s.best_n = 0
    s.full = False


# Offer the next request. True: it joined, go on; False: the walk is over (it may have joined as the last).
cdef inline bint scan_add(const Policy* p, Scan* s, int64_t rows) noexcept nogil:
    cdef int32_t i
    if p.single:
        s.rows = rows
        s.n = 1
        s.full = True
        return False
    if s.n and rows > p.max_batch - s.rows:
        s.full = True
        return False
    s.rows += rows
    s.n += 1
    for i in range(p.n_preferred):
        if p.preferred[i] == s.rows:
            s.best_n = s.n
    if (s.rows >= p.max_batch or s.n >= MAX_TAKE
            or (p.n_preferred and s.rows >= p.preferred[p.n_preferred - 1])):
        s.full = True
        return False
    return True


# How many requests to take now; 0 with *wait_until set when the batch should still grow.
# A preferred size that was met goes at once; a batch that can not grow goes at once; else the oldest request's
# waiting time decides.
cdef inline int32_t scan_decide(const Policy* p, const Scan* s, int64_t oldest_ns, int64_t now,
                                int64_t* wait_until) noexcept nogil:
    if s.best_n:
        return s.best_n
    if s.full or p.delay_ns == 0 or now - oldest_ns >= p.delay_ns:
        return s.n
    wait_until[0] = oldest_ns + p.delay_ns
    return 0
