# The hash of buckets, and the list of those that may hold a whole batch. See lanes.pxd.
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset

from triton_fast._native.core.request cimport Request


cdef int shapes_begin(Shapes* s) noexcept nogil:
    memset(s, 0, sizeof(Shapes))
    s.size = 16
    s.table = <Bucket**>calloc(s.size, sizeof(Bucket*))
    return 0 if s.table != NULL else -1


cdef void shapes_end(Shapes* s) noexcept nogil:
    cdef Bucket* b
    while s.spare != NULL:
        b = s.spare
        s.spare = b.chain
        free(b)
    free(s.table)
    free(s.lanes)


cdef int shapes_lanes(Shapes* s, int32_t n) noexcept nogil:
    cdef Lane* lanes = <Lane*>calloc(<size_t>n, sizeof(Lane))
    cdef int32_t i
    if lanes == NULL:
        return -1
    for i in range(n):
        lanes[i].number = i
        lanes[i].fixed.lane = &lanes[i]
    free(s.lanes)
    s.lanes = lanes
    s.words = (n + 63) >> 6
    return 0


cdef void grow(Shapes* s) noexcept nogil:
    cdef uint64_t old = s.size, i, slot
    cdef Bucket** was = s.table
    cdef Bucket** table = <Bucket**>calloc(old * 2, sizeof(Bucket*))
    cdef Bucket* b
    cdef Bucket* after
    if table == NULL:
        return              # longer chains, nothing worse
    s.table = table
    s.size = old * 2
    for i in range(old):
        b = was[i]
        while b != NULL:
            after = b.chain
            slot = shapes_slot(s, b.lane, b.key)
            b.chain = table[slot]
            table[slot] = b
            b = after
    free(was)


cdef Bucket* bucket_make(Shapes* s, Lane* lane, uint64_t key) noexcept nogil:
    cdef uint64_t slot
    cdef Bucket* b = s.spare
    if b != NULL:
        s.spare = b.chain
    else:
        b = <Bucket*>malloc(sizeof(Bucket))
        if b == NULL:
            return NULL
    memset(b, 0, sizeof(Bucket))
    b.key = key
    b.lane = lane
    if s.n >= s.size:
        grow(s)
    slot = shapes_slot(s, lane, key)
    b.chain = s.table[slot]
    s.table[slot] = b
    s.n += 1
    return b


cdef void bucket_drop(Shapes* s, Bucket* b) noexcept nogil:
    cdef Bucket** link = &s.table[shapes_slot(s, b.lane, b.key)]
    while link[0] != b:
        link = &link[0].chain
    link[0] = b.chain
    s.n -= 1
    b.chain = s.spare
    s.spare = b


cdef void ready_add(Shapes* s, Bucket* b) noexcept nogil:
    b.in_ready = True
    b.ready_next = NULL
    b.ready_prev = s.ready_tail
    if s.ready_tail != NULL:
        s.ready_tail.ready_next = b
    else:
        s.ready_head = b
    s.ready_tail = b


cdef void ready_remove(Shapes* s, Bucket* b) noexcept nogil:
    b.in_ready = False
    if b.ready_prev != NULL:
        b.ready_prev.ready_next = b.ready_next
    else:
        s.ready_head = b.ready_next
    if b.ready_next != NULL:
        b.ready_next.ready_prev = b.ready_prev
    else:
        s.ready_tail = b.ready_prev


cdef int64_t volume_of(Request* r) noexcept nogil:
    cdef int64_t n = 0, each
    cdef int32_t i, k
    for i in range(r.n_inputs):
        each = 1
        for k in range(r.inputs[i].ndim):
            each *= r.inputs[i].dims[k]
        n += each
    return n
