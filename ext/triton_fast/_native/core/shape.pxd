# How many elements a shape has. Shapes come from clients, models and other processes: a product is checked before it is
# used. Inlines only.
from libc.stdint cimport int32_t, int64_t


cdef extern from * nogil:
    bint mul_overflow "__builtin_mul_overflow"(int64_t a, int64_t b, int64_t* product)


# Elements of dims[0:n]; -1 when one is negative or the product of those that are not 0 does not fit.
cdef inline int64_t elements_of(const int64_t* dims, int32_t n) noexcept nogil:
    cdef int64_t count = 1
    cdef int32_t i
    cdef bint empty = False
    for i in range(n):
        if dims[i] < 0:
            return -1
        if dims[i] == 0:
            empty = True
        elif mul_overflow(count, dims[i], &count):
            return -1
    return 0 if empty else count


# The same; -1 also when they are more than `most`.
cdef inline int64_t elements_within(const int64_t* dims, int32_t n, int64_t most) noexcept nogil:
    cdef int64_t count = 1
    cdef int32_t i
    for i in range(n):
        if dims[i] < 0 or (dims[i] > 0 and count > most // dims[i]):
            return -1
        count *= dims[i]
    return count
