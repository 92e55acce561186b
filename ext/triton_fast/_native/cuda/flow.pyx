# See flow.pxd.
from libc.stdint cimport int32_t
from libc.string cimport memset

from triton_fast._native.core.native cimport tf_lock, tf_unlock
from triton_fast._native.cuda.copies cimport (
    cuda_copy_in, cuda_copy_out, cuda_copy_peer, cuda_wait, stream_close, stream_open,
)

cdef enum:
    KEPT_STREAMS = 32           # of a device

cdef struct Kept:
    int32_t lock
    int32_t count
    tf_cu_handle[KEPT_STREAMS] streams

cdef Kept[MAX_DEVICES] kept

memset(kept, 0, sizeof(kept))


cdef tf_cu_handle take(int device) noexcept nogil:
    cdef tf_cu_handle stream = NULL
    tf_lock(&kept[device].lock)
    if kept[device].count:
        kept[device].count -= 1
        stream = kept[device].streams[kept[device].count]
    tf_unlock(&kept[device].lock)
    return stream


cdef void give(int device, tf_cu_handle stream) noexcept nogil:
    cdef tf_error e
    tf_lock(&kept[device].lock)
    if kept[device].count < KEPT_STREAMS:
        kept[device].streams[kept[device].count] = stream
        kept[device].count += 1
        stream = NULL
    tf_unlock(&kept[device].lock)
    if stream != NULL:
        stream_close(device, stream, &e)


# The flow's stream on a device; NULL with e filled.
cdef tf_cu_handle stream_of(Flow* flow, int device, tf_error* e) noexcept nogil:
    cdef tf_cu_handle stream
    if 0 <= device <= flow.highest and flow.streams[device] != NULL:
        return flow.streams[device]
    stream = take(device) if 0 <= device < MAX_DEVICES else NULL
    if stream == NULL and stream_open(device, &stream, e) != 0:
        return NULL
    while flow.highest < device:
        flow.highest += 1
        flow.streams[flow.highest] = NULL
    flow.streams[device] = stream
    return stream


cdef int flow_out(Flow* flow, int device, void* dst, const void* src, size_t n, tf_error* e) noexcept nogil:
    cdef tf_cu_handle stream = stream_of(flow, device, e)
    return -1 if stream == NULL else cuda_copy_out(device, dst, src, n, stream, e)


cdef int flow_in(Flow* flow, int device, void* dst, const void* src, size_t n, tf_error* e) noexcept nogil:
    cdef tf_cu_handle stream = stream_of(flow, device, e)
    return -1 if stream == NULL else cuda_copy_in(device, dst, src, n, stream, e)


cdef int flow_between(Flow* flow, int to, void* dst, int origin, const void* src, size_t n, tf_error* e) noexcept nogil:
    cdef tf_cu_handle stream = stream_of(flow, to, e)
    return -1 if stream == NULL else cuda_copy_peer(to, dst, to, src, origin, n, stream, e)


cdef int flow_end(Flow* flow, tf_error* e) noexcept nogil:
    cdef tf_error later
    cdef int device, status = 0
    for device in range(flow.highest + 1):
        if flow.streams[device] == NULL:
            continue
        if cuda_wait(device, flow.streams[device], e if status == 0 else &later) != 0:
            status = -1
        give(device, flow.streams[device])
    flow.highest = -1
    return status


def trim():
    cdef tf_error e
    cdef tf_cu_handle stream
    cdef int device
    for device in range(MAX_DEVICES):
        stream = take(device)
        while stream != NULL:
            stream_close(device, stream, &e)
            stream = take(device)
