# Zeroed memory for those who hold the GIL: what a model or an instance keeps for its life. Inlines only.
from libc.stdlib cimport calloc


# n elements and one more, so that none at all is no NULL; to be freed with free.
cdef inline void* room(size_t n, size_t size) except NULL:
    cdef void* p = calloc(n + 1, size)
    if p == NULL:
        raise MemoryError
    return p
