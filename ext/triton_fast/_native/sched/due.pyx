# A binary heap of requests, each of which knows its place. See due.pxd.
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdlib cimport free, realloc

from triton_fast._native.core.native cimport tf_add64, tf_load64
from triton_fast._native.core.request cimport Request

cdef enum:
    MAX_ROOM = 1 << 30

cdef int64_t[7] LATE_NS = [100000, 250000, 500000, 1000000, 2500000, 5000000, 10000000]


cdef inline void put(Due* d, int32_t i, Request* r) noexcept nogil:
    d.heap[i] = r
    r.sched = <void*><uintptr_t>(i + 1)


# r goes to place i or above, or below.
cdef void settle(Due* d, int32_t i, Request* r) noexcept nogil:
    cdef int32_t k
    while i > 0 and due_before(r, d.heap[(i - 1) >> 1]):
        k = (i - 1) >> 1
        put(d, i, d.heap[k])
        i = k
    while True:
        k = 2 * i + 1
        if k >= d.n:
            break
        if k + 1 < d.n and due_before(d.heap[k + 1], d.heap[k]):
            k += 1
        if not due_before(d.heap[k], r):
            break
        put(d, i, d.heap[k])
        i = k
    put(d, i, r)


cdef int due_reserve(Due* d) noexcept nogil:
    cdef Request** grown
    cdef int32_t room
    if d.n < d.room:
        return 0
    if d.room >= MAX_ROOM:
        return -1
    room = d.room * 2 if d.room else 64
    grown = <Request**>realloc(d.heap, <size_t>room * sizeof(Request*))
    if grown == NULL:
        return -1
    d.heap = grown
    d.room = room
    return 0


cdef void due_add(Due* d, Request* r) noexcept nogil:
    d.n += 1
    settle(d, d.n - 1, r)


cdef void due_remove(Due* d, Request* r) noexcept nogil:
    cdef int32_t i = <int32_t><uintptr_t>r.sched - 1
    cdef Request* last
    r.sched = NULL
    d.n -= 1
    last = d.heap[d.n]
    if last != r:
        settle(d, i, last)


cdef void due_clear(Due* d) noexcept nogil:
    free(d.heap)
    d.heap = NULL
    d.n = 0
    d.room = 0


cdef void due_late(Due* d, int64_t ns) noexcept nogil:
    cdef int i = 0
    while i < N_LATE - 1 and ns > LATE_NS[i]:
        i += 1
    tf_add64(&d.late[i], 1)


cdef object due_histogram(Due* d):
    return [(LATE_NS[i] if i < N_LATE - 1 else None, tf_load64(&d.late[i])) for i in range(N_LATE)]
