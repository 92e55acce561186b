# Messages on their way out, and chains of them. No calls, no HTTP/2.
from libc.stdint cimport int32_t, int64_t, uint8_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.request cimport Request, Response

cdef enum:
    COPY_TENSORS = 4096     # tensor bytes of a message up to which they are copied behind its head, to be sent at once

cdef struct Segment:
    const uint8_t* ptr
    size_t n
    Block* block            # NULL: bytes of the message's own memory; else kept by request

# One message on its way out, prefix included. Memory of its own: the struct, the segments, the head's bytes.
cdef struct Out:
    Out* next
    size_t left             # bytes not yet handed to HTTP/2
    int32_t n_segments
    int32_t at              # segment in hand, and how far it went
    size_t offset
    Segment* segments
    Request* request        # lends the tensors; freed with the message. NULL: nothing is borrowed


# A message whose bytes before, between and behind the tensors are head[0:n], prefix included; cut[i] says where in it
# the bytes of p.outputs[i] belong. Takes over request (which p belongs to, or NULL with p NULL): it is freed now when
# the tensors are few bytes and keep is not asked for, else with the message. NULL when memory ran out; then request is
# freed, too.
cdef Out* out_new(const char* head, size_t n, Response* p, const size_t* cut, Request* request, bint keep) noexcept
cdef void out_free(Out* out) noexcept
cdef void chain_put(Out** head, Out** tail, Out* out) noexcept
cdef void chain_free(Out* head) noexcept
# A message's bytes without its prefix, before any of them was sent; and a message of such bytes.
cdef bytes bytes_of(Out* out)
cdef Out* out_of(bytes data, bint packed) except NULL
cdef int64_t outs_alive() noexcept      # debug counter
