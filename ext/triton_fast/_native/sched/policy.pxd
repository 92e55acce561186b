# The dynamic batcher's decision, pure: sizes of queued requests and times in; how many to take and why, or until when
# to wait, out. No clock, no lock, no queue. Inlines only, and a test entry in sched.queue_driver.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.stats cimport (
    BREAK_DELAY, BREAK_EMPTY, BREAK_MAX, BREAK_ORDER, BREAK_PREFERRED, BREAK_SHAPE,
)

cdef extern from * nogil:
    """
    #define TF_MAX_US 1000000000000000LL
    """
    const int64_t MAX_US "TF_MAX_US"    # 31 years, which still fits when added to a clock in ns

cdef enum:
    MAX_PREFERRED = 64
    MAX_TAKE = 4096         # requests in one batch
    CAN_GROW = -1

cdef struct Policy:
    bint single             # one request per execution (no dynamic batching, or no batch dimension)
    int64_t max_batch       # rows
    int64_t delay_ns
    int64_t max_volume      # elements that the inputs of one batch may have together; 0 = any number
    int32_t n_preferred
    int64_t[64] preferred   # ascending

cdef struct Scan:           # a walk over requests that may share a batch, in the order in which they are to go
    int64_t now
    int64_t oldest          # when the first of them to come was queued
    int64_t rows
    int64_t volume
    int32_t n
    int32_t best_n          # requests that make up the largest preferred size met; 0 = none
    int32_t full            # BREAK_*: nothing more can join; or CAN_GROW


# Microseconds of a config in ns, within bounds.
cdef inline int64_t config_ns(microseconds) except -1:
    return <int64_t>min(max(microseconds, 0), MAX_US) * 1000


cdef inline void scan_begin(Scan* s, int64_t now) noexcept nogil:
    s.now = now
    s.oldest = 0
    s.rows = 0
    s.volume = 0
    s.n = 0
    s.best_n = 0
    s.full = CAN_GROW


# Whether one of them has waited for its batch as long as it may.
cdef inline bint scan_overdue(const Policy* p, const Scan* s) noexcept nogil:
    return p.delay_ns != 0 and s.now - s.oldest >= p.delay_ns


# Offer the next request. True: it joined, go on; False: the walk is over (it may have joined as the last).
cdef inline bint scan_add(const Policy* p, Scan* s, int64_t rows, int64_t volume, int64_t queued) noexcept nogil:
    cdef int32_t i
    if p.single:
        s.rows = rows
        s.n = 1
        s.full = BREAK_MAX
        return False
    if s.n:
        if rows > p.max_batch - s.rows:
            s.full = BREAK_MAX
            return False
        if p.max_volume and volume > p.max_volume - s.volume:
            s.full = BREAK_ORDER
            return False
    if s.n == 0 or queued < s.oldest:
        s.oldest = queued
    s.rows += rows
    s.volume += volume
    s.n += 1
    for i in range(p.n_preferred):
        if p.preferred[i] == s.rows:
            s.best_n = s.n
    # Past its delay a batch is no longer cut to a preferred size: all that fits goes.
    if (s.rows >= p.max_batch or s.n >= MAX_TAKE
            or (p.n_preferred and s.rows >= p.preferred[p.n_preferred - 1] and not scan_overdue(p, s))):
        s.full = BREAK_MAX
        return False
    return True


# How many requests to take now, *why (BREAK_*) being what ends the batch; 0 with *wait_until set when it should still
# grow. `others`: requests wait that can not join it. A preferred size that was met goes at once; a batch that can not
# grow goes at once; else the oldest request's waiting time decides.
cdef inline int32_t scan_decide(const Policy* p, const Scan* s, bint others, int64_t* wait_until,
                                int32_t* why) noexcept nogil:
    cdef bint overdue = scan_overdue(p, s)
    if s.best_n and not overdue:
        why[0] = BREAK_MAX if s.best_n == s.n and s.full == BREAK_MAX else BREAK_PREFERRED
        return s.best_n
    if s.full != CAN_GROW:
        why[0] = s.full
        return s.n
    if p.delay_ns == 0:
        why[0] = BREAK_SHAPE if others else BREAK_EMPTY
        return s.n
    if overdue:
        why[0] = BREAK_DELAY
        return s.n
    wait_until[0] = s.oldest + p.delay_ns
    return 0
