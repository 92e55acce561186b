# Bytes of one connection on their way to its socket: a buffer, and pieces of tensors that belong between its bytes.
from libc.stdint cimport uint8_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_buf

cdef enum:
    MAX_REFS = 64

cdef struct Ref:            # to be sent behind buf[0:at]
    size_t at
    const uint8_t* ptr
    size_t n
    Block* block            # one reference

cdef struct Outgoing:
    tf_buf buf
    int n_refs              # at most MAX_REFS
    size_t ref_bytes
    Ref[64] refs


cdef void outgoing_ref(Outgoing* o, const uint8_t* ptr, size_t n, Block* block) noexcept
# Offer all to the socket (fd -1: there is none to write to), give the rest to the transport; empty afterwards.
# Returns 0, or 1 when the connection is broken.
cdef int outgoing_write(Outgoing* o, int fd, object transport) except -1
cdef void outgoing_drop(Outgoing* o) noexcept
