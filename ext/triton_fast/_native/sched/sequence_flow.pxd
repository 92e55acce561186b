# How sequences move: ready, executed, idle, gone; from the backlog to a slot; and the reaper, which frees the slots of
# idle ones and refuses those that wait too long.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.native cimport now_ns
from triton_fast._native.core.request cimport Request
from triton_fast._native.sched.sequence_types cimport Seat, Sequence, Sequences


# Requests that no instance will get, in order, linked by q_next.
cdef struct Refused:
    Request* head
    Request* tail

# ---- hold the lock

# r is its sequence's last request, or with `first` its next one.
cdef void queue_add(Sequences* q, Sequence* s, Request* r, bint first) noexcept nogil
# The sequence's next request, which is executed from now on.
cdef Request* queue_start(Sequences* q, Sequence* s) noexcept nogil
cdef void become_ready(Sequences* q, Sequence* s, int64_t now) noexcept nogil
# Its request was executed: it is ready for the next, idle, or gone.
cdef void settle(Sequences* q, Sequence* s, int64_t now) noexcept nogil
# Its queued requests are refused, later ones do not belong to it; it goes at once, unless it is busy.
cdef void give_up(Sequences* q, Sequence* s, int32_t state, Refused* refused, int64_t now) noexcept nogil
# Whoever waits at a seat looks again.
cdef void wake_all(Sequences* q) noexcept nogil
# Something is due at this time.
cdef void reap_soon(Sequences* q, int64_t at) noexcept nogil
# Do what is due; the time of what is next, 0 for none.
cdef int64_t reap(Sequences* q, int64_t now, Refused* refused) noexcept nogil

# ---- do not

cdef void refuse(Sequences* q, Refused* refused) noexcept nogil
cdef void sequences_unref(Sequences* q) noexcept nogil
# The thread that calls reap; -1 when there can be none. Ended once, by whoever comes first.
cdef int reaper_start(Sequences* q) noexcept nogil
cdef void reaper_end(Sequences* q) noexcept nogil


cdef inline int64_t clock_of(Sequences* q) noexcept nogil:
    return q.fake_now if q.faked else now_ns()
