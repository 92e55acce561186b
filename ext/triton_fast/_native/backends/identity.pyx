# The identity backend's instance: output i is input i, by reference, without a copy. For measuring the server itself
# and for tests. A delay per execution may be asked for.
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, strlen
from posix.time cimport timespec

from triton_fast._native.core.memory cimport block_new, block_ref
from triton_fast._native.core.native cimport TF_INTERNAL, TF_INVALID_ARG, now_ns
from triton_fast._native.core.outputs cimport request_needs
from triton_fast._native.core.request cimport Request, response_fail, response_outputs
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.sched.instance cimport Batch, NativeInstance


cdef extern from "<time.h>" nogil:
    int nanosleep(const timespec* wanted, timespec* left)


cdef struct State:
    int64_t delay_ns


cdef void answer(Request* r) noexcept nogil:
    cdef int32_t k, n = 0
    cdef Tensor* t
    cdef Tensor* source
    cdef const char* text = b"the optional input of a wanted output was not given"
    for k in range(r.model.n_all_outputs):
        if request_needs(r, k):
            n += 1
    t = response_outputs(&r.response, n)
    if t == NULL:
        response_fail(&r.response, TF_INTERNAL, b"out of memory", 13)
        return
    for k in range(r.model.n_all_outputs):
        if not request_needs(r, k):
            continue
        source = r.by_index[k] if k < r.model.n_all_inputs else NULL
        if source == NULL:
            response_fail(&r.response, TF_INVALID_ARG, text, strlen(text))
            return
        t[0] = source[0]
        t.index = k
        # The memory is the input's own block, or the body that the input borrows from. What lies in the request's
        # arena (small JSON tensors) dies with the request and is copied.
        if t.block == NULL and r.body != NULL and r.body.data <= t.ptr < r.body.data + r.body.cap:
            t.block = r.body
        if t.block != NULL:
            block_ref(t.block)
        elif t.nbytes:
            t.block = block_new(t.nbytes)
            if t.block == NULL:
                response_fail(&r.response, TF_INTERNAL, b"out of memory", 13)
                return
            memcpy(t.block.data, t.ptr, t.nbytes)
            t.ptr = t.block.data
        t += 1


cdef int execute(void* state, Batch* batch) noexcept nogil:
    cdef State* s = <State*>state
    cdef timespec ts
    cdef int32_t i
    batch.t_input = now_ns()
    if s.delay_ns:
        ts.tv_sec = s.delay_ns // 1000000000
        ts.tv_nsec = s.delay_ns % 1000000000
        nanosleep(&ts, NULL)
    batch.t_computed = now_ns()
    for i in range(batch.n):
        answer(batch.requests[i])
    return 0


cdef class IdentityInstance(NativeInstance):
    """An instance that hands inputs back. ``delay_ns``: how long each execution takes at least."""

    def __init__(self, str name="", int64_t delay_ns=0):
        cdef State* s = <State*>calloc(1, sizeof(State))
        if s == NULL:
            raise MemoryError
        s.delay_ns = delay_ns
        self.name = name
        self.execute = execute
        self.copies_from = 1
        self.state = s

    def __dealloc__(self):
        free(self.state)
