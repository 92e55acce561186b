# Streams, events and copies between host and device; Python classes over them for tests and for backends in Python.
# A wait looks for a moment, then sleeps: its event has the flag for it, since a stream's own wait spins on a core that
# instances need, while waking up costs some 50 us, more than a small copy.
import os

from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.string cimport memset

from triton_fast._native.core.native cimport now_ns, tf_add64, tf_load64, tf_lock, tf_unlock
from triton_fast._native.cuda.driver cimport (
    MAX_DEVICES, TF_CU_EVENT_BLOCKING_SYNC, TF_CU_EVENT_DISABLE_TIMING, TF_CU_NOT_READY, TF_CU_STREAM_NON_BLOCKING,
    TF_CU_SUCCESS, cuda_api, cuda_check, cuda_context, cuda_count, cuda_enter, cuda_error, cuda_fail, tf_cu_ptr,
)

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    KEPT_EVENTS = 64            # of a device

cdef struct Kept:
    int32_t lock
    int32_t count
    tf_cu_handle[KEPT_EVENTS] events

cdef Kept[MAX_DEVICES] kept
cdef int64_t live_streams = 0
cdef int64_t look_ns = 100_000 if len(os.sched_getaffinity(0)) > 1 else 0
cdef int64_t live_events = 0

memset(kept, 0, sizeof(kept))


cdef int stream_open(int device, tf_cu_handle* out, tf_error* e) noexcept nogil:
    if cuda_enter(device, e):
        return -1
    if cuda_check(e, cuda_api().StreamCreate(out, TF_CU_STREAM_NON_BLOCKING), device, b"failed to create a stream"):
        return -1
    tf_add64(&live_streams, 1)
    return 0


cdef int stream_open_ranked(int device, int priority, tf_cu_handle* out, tf_error* e) noexcept nogil:
    cdef int least = 0
    cdef int greatest = 0
    if priority == 0 or cuda_api() == NULL or cuda_api().StreamCreateWithPriority == NULL \
            or cuda_api().CtxGetStreamPriorityRange == NULL:
        return stream_open(device, out, e)
    if cuda_enter(device, e):
        return -1
    if cuda_check(e, cuda_api().CtxGetStreamPriorityRange(&least, &greatest), device, b"failed to create a stream") \
            or cuda_check(e, cuda_api().StreamCreateWithPriority(
                out, TF_CU_STREAM_NON_BLOCKING, greatest if priority < 0 else least), device,
                b"failed to create a stream"):
        return -1
    tf_add64(&live_streams, 1)
    return 0


cdef int stream_close(int device, tf_cu_handle stream, tf_error* e) noexcept nogil:
    if cuda_enter(device, e):
        return -1
    tf_add64(&live_streams, -1)
    return cuda_check(e, cuda_api().StreamDestroy(stream), device, b"failed to close a stream")


cdef int cuda_copy_in(int device, void* dst, const void* src, size_t n, tf_cu_handle stream,
                      tf_error* e) noexcept nogil:
    if n == 0:
        return 0
    if cuda_enter(device, e):
        return -1
    return cuda_check(e, cuda_api().MemcpyHtoDAsync(<tf_cu_ptr><uintptr_t>dst, src, n, stream), device,
                      b"failed to copy to device memory")


cdef int cuda_copy_out(int device, void* dst, const void* src, size_t n, tf_cu_handle stream,
                       tf_error* e) noexcept nogil:
    if n == 0:
        return 0
    if cuda_enter(device, e):
        return -1
    return cuda_check(e, cuda_api().MemcpyDtoHAsync(dst, <tf_cu_ptr><uintptr_t>src, n, stream), device,
                      b"failed to copy from device memory")


cdef int cuda_copy_device(int device, void* dst, const void* src, size_t n, tf_cu_handle stream,
                          tf_error* e) noexcept nogil:
    if n == 0:
        return 0
    if cuda_enter(device, e):
        return -1
    return cuda_check(
        e, cuda_api().MemcpyDtoDAsync(<tf_cu_ptr><uintptr_t>dst, <tf_cu_ptr><uintptr_t>src, n, stream), device,
        b"failed to copy within device memory")


cdef int cuda_copy_peer(int device, void* dst, int to, const void* src, int origin, size_t n, tf_cu_handle stream,
                        tf_error* e) noexcept nogil:
    if to == origin:
        return cuda_copy_device(device, dst, src, n, stream, e)
    if n == 0:
        return 0
    # Entering makes a context that is not there yet.
    if cuda_enter(to, e) or cuda_enter(origin, e) or cuda_enter(device, e):
        return -1
    return cuda_check(
        e, cuda_api().MemcpyPeerAsync(<tf_cu_ptr><uintptr_t>dst, cuda_context(to), <tf_cu_ptr><uintptr_t>src,
                                      cuda_context(origin), n, stream),
        device, b"failed to copy between devices")


cdef int cuda_fill(int device, void* dst, int value, size_t n, tf_cu_handle stream, tf_error* e) noexcept nogil:
    if n == 0:
        return 0
    if cuda_enter(device, e):
        return -1
    return cuda_check(e, cuda_api().MemsetD8Async(<tf_cu_ptr><uintptr_t>dst, <unsigned char>value, n, stream), device,
                      b"failed to fill device memory")


# Wait for an event of the device whose context is current; the driver's status.
cdef int event_sleep(tf_cu_handle event) noexcept nogil:
    cdef int64_t end
    cdef int status
    if look_ns:
        end = now_ns() + look_ns
        while now_ns() < end:
            status = cuda_api().EventQuery(event)
            if status != TF_CU_NOT_READY:
                return status
            sched_yield()
    return cuda_api().EventSynchronize(event)


cdef int cuda_wait(int device, tf_cu_handle stream, tf_error* e) noexcept nogil:
    cdef tf_cu_handle event = NULL
    cdef int status
    # Without an event it is waited for all the same: memory that the stream uses is given back behind this.
    if event_take(device, &event, e):
        if cuda_context(device) != NULL:
            cuda_api().StreamSynchronize(stream)
        return -1
    status = event_record(device, event, stream, e)
    if status == 0:
        status = cuda_check(e, event_sleep(event), device, b"failed in a stream")
    else:
        cuda_api().StreamSynchronize(stream)
    event_give(device, event)
    return status


cdef int event_take(int device, tf_cu_handle* out, tf_error* e) noexcept nogil:
    cdef tf_cu_handle event = NULL
    if cuda_enter(device, e):
        return -1
    tf_lock(&kept[device].lock)
    if kept[device].count:
        kept[device].count -= 1
        event = kept[device].events[kept[device].count]
    tf_unlock(&kept[device].lock)
    if event == NULL and cuda_check(
            e, cuda_api().EventCreate(&event, TF_CU_EVENT_BLOCKING_SYNC | TF_CU_EVENT_DISABLE_TIMING), device,
            b"failed to create an event"):
        return -1
    tf_add64(&live_events, 1)
    out[0] = event
    return 0


cdef void event_give(int device, tf_cu_handle event) noexcept nogil:
    tf_add64(&live_events, -1)
    tf_lock(&kept[device].lock)
    if kept[device].count < KEPT_EVENTS:
        kept[device].events[kept[device].count] = event
        kept[device].count += 1
        event = NULL
    tf_unlock(&kept[device].lock)
    if event != NULL:
        cuda_api().EventDestroy(event)


cdef int event_record(int device, tf_cu_handle event, tf_cu_handle stream, tf_error* e) noexcept nogil:
    if cuda_enter(device, e):
        return -1
    return cuda_check(e, cuda_api().EventRecord(event, stream), device, b"failed to record an event")


cdef int event_wait(int device, tf_cu_handle event, tf_error* e) noexcept nogil:
    if cuda_enter(device, e):
        return -1
    return cuda_check(e, event_sleep(event), device, b"failed to wait for an event")


cdef int event_done(int device, tf_cu_handle event, tf_error* e) noexcept nogil:
    cdef int status
    if cuda_enter(device, e):
        return -1
    status = cuda_api().EventQuery(event)
    if status == TF_CU_SUCCESS:
        return 1
    return 0 if status == TF_CU_NOT_READY else cuda_fail(e, status, device, b"failed before an event")


cdef int stream_follow(int device, tf_cu_handle stream, tf_cu_handle event, tf_error* e) noexcept nogil:
    if cuda_enter(device, e):
        return -1
    return cuda_check(e, cuda_api().StreamWaitEvent(stream, event, 0), device,
                      b"failed to have a stream wait for an event")


def stats():
    cdef int i
    cdef int64_t idle = 0
    for i in range(cuda_count()):
        tf_lock(&kept[i].lock)
        idle += kept[i].count
        tf_unlock(&kept[i].lock)
    return {"live_streams": tf_load64(&live_streams), "live_events": tf_load64(&live_events), "kept_events": idle}


def trim():
    cdef int i
    cdef tf_cu_handle event
    cdef tf_error e
    for i in range(cuda_count()):
        if kept[i].count == 0 or cuda_enter(i, &e):
            continue
        while True:
            event = NULL
            tf_lock(&kept[i].lock)
            if kept[i].count:
                kept[i].count -= 1
                event = kept[i].events[kept[i].count]
            tf_unlock(&kept[i].lock)
            if event == NULL:
                break
            cuda_api().EventDestroy(event)


cdef class Event:
    cdef tf_cu_handle event
    cdef int device
    cdef bint timed

    def __init__(self, int device, bint timed=False):
        cdef tf_error e
        cdef int status
        if self.event != NULL:
            raise RuntimeError("the event is made already")
        self.device = device
        self.timed = timed
        if not timed:
            status = event_take(device, &self.event, &e)
        else:
            status = cuda_enter(device, &e)
            if status == 0:
                status = cuda_check(&e, cuda_api().EventCreate(&self.event, TF_CU_EVENT_BLOCKING_SYNC), device,
                                    b"failed to create an event")
        if status:
            raise cuda_error(&e)

    def __dealloc__(self):
        cdef tf_error e
        if self.event == NULL or cuda_api() == NULL:
            return
        if not self.timed:
            event_give(self.device, self.event)
        elif cuda_enter(self.device, &e) == 0:
            cuda_api().EventDestroy(self.event)

    def wait(self):
        cdef tf_error e
        cdef int status
        with nogil:
            status = event_wait(self.device, self.event, &e)
        if status:
            raise cuda_error(&e)

    def done(self):
        cdef tf_error e
        cdef int status = event_done(self.device, self.event, &e)
        if status < 0:
            raise cuda_error(&e)
        return status == 1

    def ms_since(self, Event earlier not None):
        cdef tf_error e
        cdef float ms = 0
        if cuda_enter(self.device, &e) or cuda_check(
                &e, cuda_api().EventElapsedTime(&ms, earlier.event, self.event), self.device,
                b"failed to ask for the time between events"):
            raise cuda_error(&e)
        return ms


def look(int64_t ns):
    global look_ns
    before = look_ns
    look_ns = max(0, ns)
    return before


def wait_stream(int device, uintptr_t stream):
    cdef tf_error e
    cdef int status
    with nogil:
        status = cuda_wait(device, <tf_cu_handle>stream, &e)
    if status:
        raise cuda_error(&e)


cdef class Stream:
    cdef tf_cu_handle stream
    cdef readonly int device

    def __init__(self, int device):
        cdef tf_error e
        if self.stream != NULL:
            raise RuntimeError("the stream is open already")
        self.device = device
        if stream_open(device, &self.stream, &e):
            raise cuda_error(&e)

    def __dealloc__(self):
        cdef tf_error e
        if self.stream != NULL and cuda_api() != NULL:
            with nogil:
                stream_close(self.device, self.stream, &e)

    @property
    def handle(self):
        return <uintptr_t>self.stream

    def copy_in(self, uintptr_t dst, const unsigned char[::1] data not None):
        cdef tf_error e
        cdef int status
        cdef size_t n = data.shape[0]
        cdef const void* src = &data[0] if n else NULL
        with nogil:
            status = cuda_copy_in(self.device, <void*>dst, src, n, self.stream, &e)
        if status:
            raise cuda_error(&e)

    def copy_out(self, unsigned char[::1] into not None, uintptr_t src):
        cdef tf_error e
        cdef int status
        cdef size_t n = into.shape[0]
        cdef void* dst = &into[0] if n else NULL
        with nogil:
            status = cuda_copy_out(self.device, dst, <void*>src, n, self.stream, &e)
        if status:
            raise cuda_error(&e)

    def copy_device(self, uintptr_t dst, uintptr_t src, size_t n):
        cdef tf_error e
        cdef int status
        with nogil:
            status = cuda_copy_device(self.device, <void*>dst, <void*>src, n, self.stream, &e)
        if status:
            raise cuda_error(&e)

    def copy_peer(self, uintptr_t dst, int to, uintptr_t src, int origin, size_t n):
        cdef tf_error e
        cdef int status
        with nogil:
            status = cuda_copy_peer(self.device, <void*>dst, to, <void*>src, origin, n, self.stream, &e)
        if status:
            raise cuda_error(&e)

    def fill(self, uintptr_t dst, int value, size_t n):
        cdef tf_error e
        cdef int status
        with nogil:
            status = cuda_fill(self.device, <void*>dst, value, n, self.stream, &e)
        if status:
            raise cuda_error(&e)

    def record(self, Event event not None):
        cdef tf_error e
        if event_record(self.device, event.event, self.stream, &e):
            raise cuda_error(&e)

    def follow(self, Event event not None):
        cdef tf_error e
        if stream_follow(self.device, self.stream, event.event, &e):
            raise cuda_error(&e)

    def wait(self):
        cdef tf_error e
        cdef int status
        with nogil:
            status = cuda_wait(self.device, self.stream, &e)
        if status:
            raise cuda_error(&e)
