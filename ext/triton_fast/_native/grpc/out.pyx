# See out.pxd. Everything here runs on the loop's thread.
from cpython.bytes cimport PyBytes_FromStringAndSize
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from triton_fast._native.core.request cimport Request, Response, request_free
from triton_fast._native.grpc.message cimport PREFIX, message_prefix

cdef int64_t live_outs = 0


cdef Out* out_new(const char* head, size_t n, Response* p, const size_t* cut, Request* request, bint keep) noexcept:
    global live_outs
    cdef int32_t i, k = 0, n_tensors = 0
    cdef size_t at = 0, tensors = 0, room
    cdef Out* out
    cdef char* copy
    if p != NULL:
        for i in range(p.n_outputs):
            if p.outputs[i].nbytes:
                tensors += p.outputs[i].nbytes
                n_tensors += 1
    room = n + (tensors if tensors <= COPY_TENSORS else 0)
    out = <Out*>malloc(sizeof(Out) + (2 * <size_t>n_tensors + 1) * sizeof(Segment) + room)
    if out == NULL:
        if request != NULL:
            request_free(request)
        return NULL
    memset(out, 0, sizeof(Out))
    live_outs += 1
    out.left = n + tensors
    out.segments = <Segment*>(out + 1)
    copy = <char*>(out.segments + 2 * n_tensors + 1)
    if tensors <= COPY_TENSORS:
        out.segments[0].ptr = <uint8_t*>copy
        out.segments[0].n = out.left
        out.segments[0].block = NULL
        out.n_segments = 1
        if n_tensors:
            for i in range(p.n_outputs):
                if p.outputs[i].nbytes == 0:
                    continue
                memcpy(copy, head + at, cut[i] - at)
                copy += cut[i] - at
                at = cut[i]
                memcpy(copy, p.outputs[i].ptr, p.outputs[i].nbytes)
                copy += p.outputs[i].nbytes
        memcpy(copy, head + at, n - at)
        if keep:
            out.request = request
        elif request != NULL:
            request_free(request)
        return out
    memcpy(copy, head, n)
    for i in range(p.n_outputs):
        if p.outputs[i].nbytes == 0:
            continue
        out.segments[k].ptr = <uint8_t*>copy + at
        out.segments[k].n = cut[i] - at
        out.segments[k].block = NULL
        at = cut[i]
        out.segments[k + 1].ptr = p.outputs[i].ptr
        out.segments[k + 1].n = p.outputs[i].nbytes
        out.segments[k + 1].block = p.outputs[i].block
        k += 2
    if at < n:
        out.segments[k].ptr = <uint8_t*>copy + at
        out.segments[k].n = n - at
        out.segments[k].block = NULL
        k += 1
    out.n_segments = k
    out.request = request
    return out


cdef void out_free(Out* out) noexcept:
    global live_outs
    if out.request != NULL:
        request_free(out.request)
    live_outs -= 1
    free(out)


cdef void chain_put(Out** head, Out** tail, Out* out) noexcept:
    out.next = NULL
    if tail[0] != NULL:
        tail[0].next = out
    else:
        head[0] = out
    tail[0] = out


cdef void chain_free(Out* out) noexcept:
    cdef Out* after
    while out != NULL:
        after = out.next
        out_free(out)
        out = after


cdef bytes bytes_of(Out* out):
    cdef int32_t i
    cdef bytes whole = PyBytes_FromStringAndSize(NULL, out.left)
    cdef char* to = whole
    for i in range(out.n_segments):
        memcpy(to, out.segments[i].ptr, out.segments[i].n)
        to += out.segments[i].n
    return whole[PREFIX:]


cdef Out* out_of(bytes data, bint packed) except NULL:
    cdef Out* out
    cdef size_t n = len(data)
    cdef bytes whole = PyBytes_FromStringAndSize(NULL, n + PREFIX)
    cdef char* to = whole
    message_prefix(<uint8_t*>to, packed, n)
    memcpy(to + PREFIX, <const char*>data, n)
    out = out_new(to, n + PREFIX, NULL, NULL, NULL, False)
    if out == NULL:
        raise MemoryError
    return out


cdef int64_t outs_alive() noexcept:
    return live_outs
