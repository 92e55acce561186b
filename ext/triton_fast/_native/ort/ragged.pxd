# Ragged batches: requests whose shapes differ share a run. Their elements are put one after another into a tensor of
# one dimension; batch inputs tell the model where each begins, batch outputs are cut by the shapes of an input.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.request cimport Request
from triton_fast._native.ort.state cimport OrtRun, View


# Kinds of batch inputs, by their numbers in the config.
cdef enum:
    ELEMENT_COUNT = 0
    ACCUMULATED = 1
    ACCUMULATED_WITH_ZERO = 2
    MAX_AS_SHAPE = 3
    ITEM_SHAPE = 4
    ITEM_SHAPE_FLATTEN = 5


# Elements of input i in all requests together, or -1 when the sum overflows.
cdef int64_t ragged_count(OrtRun* s, Request** requests, int32_t n, int32_t i) noexcept nogil
# Append the batch inputs to in_names, in_values, in_blocks. Returns 0, or -1 with s.error filled.
cdef int add_batch_inputs(OrtRun* s, Request** requests, int32_t n) noexcept nogil
# The part of r in output i, which is cut by the shapes of an input: its full shape into dims, the rank into *ndim.
# Returns its elements, or -1 with s.error filled.
cdef int64_t part_of(OrtRun* s, Request* r, int32_t i, int64_t* dims, int32_t* ndim) noexcept nogil
