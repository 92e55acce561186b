# Requests and responses as records for a worker: written to private memory first, then laid into the region with
# their tensors, which are copied once.
from libc.stdint cimport int32_t, uint32_t

from triton_fast._native.core.native cimport tf_buf
from triton_fast._native.core.request cimport Request, Response
from triton_fast._native.pyworker.layout cimport Message
from triton_fast._native.pyworker.region cimport Chunk, Region


cdef struct Encoder:
    tf_buf records
    tf_buf pieces           # tensors to be copied
    tf_buf text
    size_t data             # bytes of tensors so far, each 64-byte aligned


cdef void encoder_free(Encoder* e) noexcept nogil
# The head of an execution of n requests; then put_request for each.
cdef void encoder_execution(Encoder* e, uint32_t n) noexcept nogil
cdef void put_request(Encoder* e, Request* r, uint32_t slot, uint32_t generation) noexcept nogil
# A response of a call, alone in its message; with `text` in place of p an error.
cdef void encoder_answer(Encoder* e, Response* p, int32_t code, const char* text, size_t n,
                         bint is_final) noexcept nogil
# How many bytes of the heap all of it takes; 0: memory ran out.
cdef size_t encoder_size(Encoder* e) noexcept nogil
# Lay all of it into the region and describe it in m (off, len); NULL when the heap is full, or memory ran out.
cdef Chunk* encoder_place(Encoder* e, Region* g, Message* m) noexcept nogil
