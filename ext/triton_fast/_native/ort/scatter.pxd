# Outputs of a batch: memory given to ORT before the run where the size is known, views after it, slices to responses.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.request cimport Request
from triton_fast._native.ort.state cimport OrtRun


# Choose the outputs that some request wants; fill out_names, out_values, out_blocks, out_index, place and n_out.
# bind: allocate those whose size is known. Returns 0, or -1 with s.error filled; release_outputs in either case.
cdef int plan(OrtRun* s, Request** requests, int32_t n, int64_t rows, bint bind) noexcept nogil
# After a run: one view per output. Returns 0, or -1 with s.error filled.
cdef int read_outputs(OrtRun* s, Request** requests, int64_t rows) noexcept nogil
# Give every request its slices, or its own error.
cdef void scatter(OrtRun* s, Request** requests, int32_t n, int64_t rows) noexcept nogil
cdef void release_outputs(OrtRun* s) noexcept nogil
