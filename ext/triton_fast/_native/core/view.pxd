# A Python buffer over native memory that lives as long as any view of it.
from libc.stdint cimport uint8_t

from triton_fast._native.core.memory cimport Block


cdef class BlockView:
    cdef Block* block           # one reference
    cdef uint8_t* data
    cdef Py_ssize_t size
    cdef bint fixed             # read-only
