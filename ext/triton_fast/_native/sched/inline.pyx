# A scheduler that answers within submit, as a cache does: output k is input k, by reference. For tests of what must not
# need a stack, and for counting instructions without threads.
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free

from triton_fast._native.core.marks cimport REQ_DONE, T_OUTPUT, T_QUEUED, T_STARTED
from triton_fast._native.core.memory cimport block_ref
from triton_fast._native.core.native cimport TF_INTERNAL, TF_UNAVAILABLE, now_ns, tf_error, tf_fail, tf_store32
from triton_fast._native.core.outputs cimport request_wants
from triton_fast._native.core.request cimport Request, response_fail, response_outputs
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.sched.scheduler cimport SUBMIT_OK, SUBMIT_STOPPED, NativeScheduler, Scheduler


cdef void answer(Request* r) noexcept nogil:
    cdef int32_t k, n = 0
    cdef Tensor* t = response_outputs(&r.response, r.model.n_outputs)
    if t == NULL:
        response_fail(&r.response, TF_INTERNAL, b"out of memory", 13)
        return
    for k in range(r.model.n_outputs):
        if k >= r.model.n_inputs or r.by_index[k] == NULL or not request_wants(r, k):
            continue
        t[n] = r.by_index[k][0]
        t[n].index = k
        if t[n].block == NULL and r.body != NULL and r.body.data <= t[n].ptr < r.body.data + r.body.cap:
            t[n].block = r.body
        if t[n].block != NULL:
            block_ref(t[n].block)
        n += 1
    r.response.n_outputs = n


cdef int inline_submit(Scheduler* s, Request* r, bint* wake, tf_error* e) noexcept nogil:
    wake[0] = False
    if s.stopping:
        tf_fail(e, TF_UNAVAILABLE, "stopped")
        return SUBMIT_STOPPED
    r.stamps[T_QUEUED] = now_ns()
    r.stamps[T_STARTED] = r.stamps[T_QUEUED]
    answer(r)
    r.stamps[T_OUTPUT] = now_ns()
    tf_store32(&r.state, REQ_DONE)
    r.response.next = NULL
    r.sink.deliver(r.sink, &r.response, &r.response)
    return SUBMIT_OK


cdef void inline_wake(Scheduler* s) noexcept nogil:
    return


cdef bint inline_cancel(Scheduler* s, Request* r, bint tell) noexcept nogil:
    return False


cdef void inline_stop(Scheduler* s, bint abort) noexcept nogil:
    tf_store32(&s.stopping, True)


cdef int32_t inline_pending(Scheduler* s) noexcept nogil:
    return 0


cdef class InlineEcho(NativeScheduler):
    """Answers each request within its submit: output k is input k."""

    def __cinit__(self):
        self.ptr = <Scheduler*>calloc(1, sizeof(Scheduler))
        if self.ptr == NULL:
            raise MemoryError
        self.ptr.submit = inline_submit
        self.ptr.wake = inline_wake
        self.ptr.cancel = inline_cancel
        self.ptr.stop = inline_stop
        self.ptr.pending = inline_pending

    def __dealloc__(self):
        free(self.ptr)
