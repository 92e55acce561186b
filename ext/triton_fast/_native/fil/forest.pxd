# A model that treelite has read and whose trees were looked at, so that no row can lead outside of its memory.
from libc.stdint cimport int32_t, int64_t


cdef class Forest:
    cdef void* model            # NULL until it is read
    cdef readonly int32_t features
    cdef readonly int32_t width     # numbers that GTIL makes of a row
    cdef readonly bint vector_leaves    # a leaf holds a number for each class
    cdef readonly int32_t task      # 0 binary, 1 regression, 2 multi-class, 3 ranking, 4 isolation forest
    cdef readonly int64_t trees
    cdef readonly str postprocessor
    cdef readonly str threshold_type

    cdef int check(self) except -1
