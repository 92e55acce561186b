# See outgoing.pxd.
from libc.stdint cimport uint8_t

from triton_fast._native.core.memory cimport Block, block_ref, block_unref
from triton_fast._native.core.native cimport tf_buf_free
from triton_fast._native.net.write cimport block_view, iovec, send_pieces

cdef enum:
    KEEP_BUFFER = 2097152       # a buffer that grew larger is given back


cdef void outgoing_ref(Outgoing* o, const uint8_t* ptr, size_t n, Block* block) noexcept:
    cdef Ref* ref = &o.refs[o.n_refs]
    block_ref(block)
    ref.at = o.buf.len
    ref.ptr = ptr
    ref.n = n
    ref.block = block
    o.n_refs += 1
    o.ref_bytes += n


cdef int outgoing_write(Outgoing* o, int fd, object transport) except -1:
    cdef iovec[2 * MAX_REFS + 1] iov
    cdef size_t total = o.buf.len + o.ref_bytes, at = 0
    cdef ssize_t sent
    cdef int i, k = 0
    if total == 0:
        return 0
    for i in range(o.n_refs):
        if o.refs[i].at > at:
            iov[k].iov_base = o.buf.data + at
            iov[k].iov_len = o.refs[i].at - at
            at = o.refs[i].at
            k += 1
        iov[k].iov_base = <void*>o.refs[i].ptr
        iov[k].iov_len = o.refs[i].n
        k += 1
    if o.buf.len > at:
        iov[k].iov_base = o.buf.data + at
        iov[k].iov_len = o.buf.len - at
        k += 1
    try:
        if o.buf.failed:
            raise MemoryError
        sent = send_pieces(fd, iov, k, total)
        if sent < 0:
            return 1
        if <size_t>sent < total:
            write_rest(o, transport, <size_t>sent)
    finally:
        outgoing_drop(o)
    return 0


cdef int write_rest(Outgoing* o, object transport, size_t sent) except -1:
    cdef size_t at = 0, n
    cdef int i
    for i in range(o.n_refs + 1):
        n = (o.refs[i].at if i < o.n_refs else o.buf.len) - at
        if sent < n:
            transport.write(o.buf.data[at + sent:at + n])
            sent = 0
        else:
            sent -= n
        at += n
        if i == o.n_refs:
            break
        if sent < o.refs[i].n:
            transport.write(block_view(o.refs[i].block, <uint8_t*>o.refs[i].ptr + sent, o.refs[i].n - sent))
            sent = 0
        else:
            sent -= o.refs[i].n
    return 0


cdef void outgoing_drop(Outgoing* o) noexcept:
    cdef int i
    for i in range(o.n_refs):
        block_unref(o.refs[i].block)
    o.n_refs = 0
    o.ref_bytes = 0
    o.buf.len = 0
    if o.buf.cap > KEEP_BUFFER or o.buf.failed:
        tf_buf_free(&o.buf)
