# Where queued requests stand: in a lane, by arrival, and in its bucket of those whose shapes agree. All under the
# queue's lock. Knows no priority, no policy and no time.
from libc.stdint cimport int32_t, int64_t, uint64_t

from triton_fast._native.core.request cimport Request


# Requests of one lane whose shapes agree, in order of arrival.
cdef struct Bucket:
    uint64_t key
    Lane* lane
    Request* head
    Request* tail
    int64_t rows
    Bucket* chain           # same hash slot
    Bucket* ready_next      # list of buckets that may hold a whole batch
    Bucket* ready_prev
    bint in_ready

# Requests that go before all of later lanes and after all of earlier ones, in order of arrival.
cdef struct Lane:
    Request* head
    Request* tail
    Request* due            # the first whose deadline is not in the heap (due.pxd); none behind it is due before it
    int64_t last_deadline   # of those
    int32_t number
    Bucket fixed            # the bucket of key 0

cdef enum:
    MAX_LANES = 2048

# All lanes with their buckets.
cdef struct Shapes:
    Lane* lanes             # the first goes first
    int32_t words           # of busy that are used
    uint64_t[32] busy       # bits of the lanes that hold requests
    Bucket** table
    uint64_t size           # power of two
    uint64_t n
    Bucket* ready_head
    Bucket* ready_tail
    Bucket* spare

cdef int shapes_begin(Shapes* s) noexcept nogil     # -1: no memory
cdef void shapes_end(Shapes* s) noexcept nogil
# Have n lanes, 1 to MAX_LANES, instead of those there are, which are empty. -1: no memory.
cdef int shapes_lanes(Shapes* s, int32_t n) noexcept nogil
cdef Bucket* bucket_make(Shapes* s, Lane* lane, uint64_t key) noexcept nogil     # NULL: no memory
# b is empty and not its lane's fixed one.
cdef void bucket_drop(Shapes* s, Bucket* b) noexcept nogil
cdef void ready_add(Shapes* s, Bucket* b) noexcept nogil        # it is not there
cdef void ready_remove(Shapes* s, Bucket* b) noexcept nogil     # it is there

# Of all inputs together. Elements are no more than bytes, whose number was checked.
cdef int64_t volume_of(Request* r) noexcept nogil


cdef extern from * nogil:
    int __builtin_ctzll(unsigned long long x)


# The first lane with requests, of those from `number` on; NULL: there is none.
cdef inline Lane* next_lane(const Shapes* s, int32_t number) noexcept nogil:
    cdef int32_t i = number >> 6
    cdef uint64_t word
    if i >= s.words:
        return NULL
    word = s.busy[i] & (~<uint64_t>0 << (number & 63))
    while word == 0:
        i += 1
        if i >= s.words:
            return NULL
        word = s.busy[i]
    return &s.lanes[64 * i + __builtin_ctzll(word)]


cdef inline void lane_busy(Shapes* s, const Lane* lane) noexcept nogil:
    s.busy[lane.number >> 6] |= <uint64_t>1 << (lane.number & 63)


cdef inline void lane_empty(Shapes* s, const Lane* lane) noexcept nogil:
    s.busy[lane.number >> 6] &= ~(<uint64_t>1 << (lane.number & 63))


cdef inline uint64_t shapes_slot(const Shapes* s, const Lane* lane, uint64_t key) noexcept nogil:
    return ((key + <uint64_t>lane.number) * <uint64_t>0x9E3779B97F4A7C15 >> 32) & (s.size - 1)


# The bucket of a lane that holds this key; NULL: there is none.
cdef inline Bucket* bucket_find(Shapes* s, Lane* lane, uint64_t key) noexcept nogil:
    cdef Bucket* b
    if key == 0:
        return &lane.fixed
    b = s.table[shapes_slot(s, lane, key)]
    while b != NULL and (b.key != key or b.lane != lane):
        b = b.chain
    return b
