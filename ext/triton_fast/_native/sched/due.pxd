# A heap of queued requests by deadline: for those whose own timeout is shorter than their level's. The others are due
# in the order in which they came and need none. Under the queue's lock; Request.sched is a request's place in it.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.request cimport Request


cdef enum:
    N_LATE = 8

cdef struct Due:
    Request** heap          # the first is due before all others, or came before those that are due when it is
    int32_t n
    int32_t room
    int64_t[8] late         # atomic; how long after their deadline requests were refused


# Room for one more: 0, or -1 when memory ran out.
cdef int due_reserve(Due* d) noexcept nogil
# There is room for r.
cdef void due_add(Due* d, Request* r) noexcept nogil
# r is in it.
cdef void due_remove(Due* d, Request* r) noexcept nogil
cdef void due_clear(Due* d) noexcept nogil
# Count one that was refused so long after its deadline. No lock is needed, here and in the next.
cdef void due_late(Due* d, int64_t ns) noexcept nogil
# [(upper bound in ns, or None, how many)]
cdef object due_histogram(Due* d)


cdef inline bint due_has(const Request* r) noexcept nogil:
    return r.sched != NULL


cdef inline bint due_before(const Request* a, const Request* b) noexcept nogil:
    return a.deadline < b.deadline or (a.deadline == b.deadline and a.order < b.order)
