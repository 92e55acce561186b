# Inputs of a batch as ORT values: borrowed where one request is the batch, else copied together.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.request cimport Request
from triton_fast._native.ort.state cimport OrtRun


# Fill in_names, in_values, in_blocks and n_in. Returns 0, or -1 with s.error filled; release_inputs in either case.
cdef int gather(OrtRun* s, Request** requests, int32_t n, int64_t rows) noexcept nogil
cdef void release_inputs(OrtRun* s) noexcept nogil
