# JSON text of plain values, appended to a tf_buf. See json_reply for tensors and whole replies.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from triton_fast._native.core.native cimport tf_buf


# The count elements at src (any alignment), comma-separated; BOOL as true/false. -1 when memory ran out, or for
# datatypes that have no JSON number (FP16, BF16, STRING).
cdef int json_put_numbers(tf_buf* out, int32_t dtype, const uint8_t* src, int64_t count) noexcept nogil
# The count elements of a STRING tensor's wire form as JSON strings; -1 when memory ran out, -2 when the left bytes are
# not exactly that many elements.
cdef int json_put_strings(tf_buf* out, const uint8_t* src, size_t left, int64_t count) noexcept nogil
# Memory trouble shows in out.failed.
cdef void json_put_int(tf_buf* out, int64_t v) noexcept nogil
cdef void json_put_uint(tf_buf* out, uint64_t v) noexcept nogil
cdef void json_put_double(tf_buf* out, double v) noexcept nogil
cdef void json_quote(tf_buf* out, const char* text, size_t n) noexcept nogil
