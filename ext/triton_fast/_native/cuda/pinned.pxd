# Host memory that GPUs reach by themselves, for the blocks of core/memory. Knows no tensors.
from libc.stdint cimport int64_t


# Bytes that are pinned now, in use or free.
cdef int64_t pinned_bytes() noexcept nogil
