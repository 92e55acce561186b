# Requests from Python code in this process: warm-up, tests, later the in-process API. One call, one condition variable.
# Copies tensors in and out; the network front ends do not come this way.
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.time cimport timespec

from triton_fast._native.core.memory cimport block_new
from triton_fast._native.core.native cimport TF_OK, now_ns, tf_add32, tf_error
from triton_fast._native.core.pthread cimport (
    cond_init_monotonic, pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_t, pthread_cond_timedwait,
    pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock,
)
from triton_fast._native.core.request cimport (
    Request, Response, Sink, Tensor, Wanted, request_alloc, request_free, request_new,
)
from triton_fast._native.core.validate cimport request_validate
from triton_fast._native.sched.model cimport NativeModel
from triton_fast._native.sched.queue cimport (
    SUBMIT_OK, queue_cancel, queue_submit, queue_wake,
)

from triton_fast.errors import Cancelled, make


MAX_WAIT_S = 1e9        # what is longer waits for ever as far as anybody can tell, and fits in ns


# Shared by the caller and the delivering thread; whoever drops the last reference frees it.
cdef struct Waiter:
    Sink sink               # first
    int32_t refs
    pthread_mutex_t lock
    pthread_cond_t cond
    Response* done
    bint cancelled          # nothing will come


cdef void waiter_unref(Waiter* w) noexcept nogil:
    if tf_add32(&w.refs, -1) == 0:
        if w.done != NULL:
            request_free(w.done.request)
        pthread_cond_destroy(&w.cond)
        pthread_mutex_destroy(&w.lock)
        free(w)


cdef void waiter_deliver(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Waiter* w = <Waiter*>sink
    pthread_mutex_lock(&w.lock)
    w.done = first
    pthread_cond_broadcast(&w.cond)
    pthread_mutex_unlock(&w.lock)
    waiter_unref(w)


cdef class InferCall:
    """One request on its way. ``wait`` returns its outputs; ``cancel`` takes it back if no instance has it yet.

    Parameters
    ----------
    model : NativeModel
    inputs : sequence of (name, DataType, shape, bytes)
        STRING data in wire form (uint32 LE length + bytes per element).
    outputs : sequence of str
        Names wanted; empty for all.

    Raises
    ------
    ServerError
        What validation or the queue answered.
    """

    cdef NativeModel model
    cdef Waiter* waiter
    cdef Request* request

    def __cinit__(self, NativeModel model not None, inputs, outputs=(), *, str id="", int64_t priority=0,
                  int64_t timeout_us=0):
        cdef Request* r
        cdef Tensor* t
        cdef tf_error e
        cdef Py_ssize_t i, k
        cdef int status
        cdef bint wake = False
        cdef const uint8_t[::1] view
        self.model = model
        r = request_new(model.ptr)
        if r == NULL:
            raise MemoryError
        try:
            r.id = <const char*>copy_bytes(r, id.encode())
            r.id_len = <unsigned int>len(id.encode())
            r.priority = priority
            r.timeout_us = timeout_us
            r.inputs = <Tensor*>request_alloc(r, (len(inputs) + 1) * sizeof(Tensor))
            if r.inputs == NULL:
                raise MemoryError
            for i, (name, dtype, shape, data) in enumerate(inputs):
                t = &r.inputs[i]
                encoded = name.encode()
                t.name = <const char*>copy_bytes(r, encoded)
                t.name_len = <unsigned int>len(encoded)
                t.index = -1
                t.dtype = int(dtype)
                t.ndim = <int32_t>len(shape)
                t.dims = <int64_t*>request_alloc(r, (len(shape) + 1) * sizeof(int64_t))
                if t.dims == NULL:
                    raise MemoryError
                for k in range(len(shape)):
                    t.dims[k] = shape[k]
                t.kind = 0
                t.device = 0
                t.block = block_new(len(data))
                if t.block == NULL:
                    raise MemoryError
                r.n_inputs = <int32_t>(i + 1)
                t.ptr = t.block.data
                t.nbytes = len(data)
                if len(data):
                    view = data
                    memcpy(t.ptr, &view[0], len(data))
            r.wanted = <Wanted*>request_alloc(r, (len(outputs) + 1) * sizeof(Wanted))
            if r.wanted == NULL:
                raise MemoryError
            for i, name in enumerate(outputs):
                encoded = name.encode()
                r.wanted[i].name = <const char*>copy_bytes(r, encoded)
                r.wanted[i].name_len = <unsigned int>len(encoded)
                r.wanted[i].index = -1
                r.wanted[i].binary = -1
                r.wanted[i].classes = 0
                r.n_wanted = <int32_t>(i + 1)
            if request_validate(r, &e) != 0:
                raise make(e.code, e.text[:e.len].decode("utf-8", "replace"))
            self.waiter = <Waiter*>calloc(1, sizeof(Waiter))
            if self.waiter == NULL:
                raise MemoryError
            self.waiter.refs = 2
            self.waiter.sink.deliver = waiter_deliver
            pthread_mutex_init(&self.waiter.lock, NULL)
            cond_init_monotonic(&self.waiter.cond)
            r.sink = &self.waiter.sink
            status = queue_submit(model.queue, r, &wake, &e)
            if wake:
                queue_wake(model.queue)
            if status != SUBMIT_OK:
                self.waiter.refs = 1
                raise make(e.code, e.text[:e.len].decode("utf-8", "replace"))
            self.request = r
            r = NULL
        finally:
            if r != NULL:
                request_free(r)

    def __dealloc__(self):
        if self.waiter != NULL:
            waiter_unref(self.waiter)

    def cancel(self):
        """Take the request back. Returns False when an instance already has it."""
        cdef Waiter* w = self.waiter
        if self.request == NULL or not queue_cancel(self.model.queue, self.request):
            return False
        request_free(self.request)
        self.request = NULL
        pthread_mutex_lock(&w.lock)
        w.cancelled = True
        pthread_cond_broadcast(&w.cond)
        pthread_mutex_unlock(&w.lock)
        waiter_unref(w)
        return True

    def wait(self, timeout_s=None):
        """Return {output name: (DataType number, shape, bytes)}.

        Raises
        ------
        TimeoutError
            Not finished within timeout_s; the request goes on.
        Cancelled
            ``cancel`` took the request back, before the call or during it.
        ServerError
            The model's or the queue's error.
        """
        cdef Waiter* w = self.waiter
        cdef int64_t until = now_ns() + <int64_t>(min(timeout_s, MAX_WAIT_S) * 1e9) if timeout_s is not None else 0
        cdef timespec ts
        cdef Response* p
        cdef Tensor* t
        cdef int rc = 0
        cdef int32_t i
        if self.request == NULL:
            raise Cancelled("the request was cancelled")
        ts.tv_sec = until // 1000000000
        ts.tv_nsec = until % 1000000000
        with nogil:
            pthread_mutex_lock(&w.lock)
            while w.done == NULL and not w.cancelled and rc == 0:
                if until:
                    rc = pthread_cond_timedwait(&w.cond, &w.lock, &ts)
                else:
                    pthread_cond_wait(&w.cond, &w.lock)
            p = w.done
            pthread_mutex_unlock(&w.lock)
        if p == NULL and self.request == NULL:
            raise Cancelled("the request was cancelled")
        if p == NULL:
            raise TimeoutError(f"no response within {timeout_s} s")
        if p.code != TF_OK:
            raise make(p.code, p.text[:p.text_len].decode("utf-8", "replace"))
        result = {}
        for i in range(p.n_outputs):
            t = &p.outputs[i]
            spec = self.model.ptr.outputs[t.index]
            result[spec.name[:spec.name_len].decode()] = (
                t.dtype, tuple([t.dims[k] for k in range(t.ndim)]), (<char*>t.ptr)[:t.nbytes] if t.nbytes else b"")
        return result


cdef void* copy_bytes(Request* r, bytes text) except NULL:
    cdef void* p = request_alloc(r, len(text) + 1)
    if p == NULL:
        raise MemoryError
    memcpy(p, <const char*>text, len(text) + 1)
    return p


def infer(model, inputs, outputs=(), *, timeout_s=None, **options):
    """Submit and wait: see ``InferCall``."""
    return InferCall(model, inputs, outputs, **options).wait(timeout_s)
