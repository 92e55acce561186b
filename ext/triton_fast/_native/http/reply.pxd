# Response heads, and memory of a block as a Python buffer for what the socket did not take at once.
from libc.stdint cimport int32_t, uint8_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_buf


# Append a response head. extra: header lines, each with its CR LF, that replace Content-Type and
# Inference-Header-Content-Length; NULL: those of an infer reply whose JSON part has body_len bytes and whose binary
# part has binary_len.
cdef void reply_head(tf_buf* out, int32_t status, const char* extra, size_t body_len, size_t binary_len,
                     bint keep_alive, bint http10) noexcept
cdef const char* status_of(int32_t status) noexcept


cdef class BlockView:
    cdef Block* block
    cdef uint8_t* ptr
    cdef size_t n

    @staticmethod
    cdef BlockView make(Block* block, uint8_t* ptr, size_t n)
