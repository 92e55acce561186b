# The repeat backend's instance: one response for each element of IN, after a delay of its own. It shows what a
# decoupled model is, and is what tests of streams run. Which tensor is which, the Python side has checked.
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, strlen

from triton_fast._native.core.memory cimport Block, block_new, block_ref, block_unref
from triton_fast._native.core.native cimport (
    DT_INT32, DT_UINT32, MEM_CPU, TF_CANCELLED, TF_INTERNAL, TF_INVALID_ARG, now_ns, tf_error, tf_fail,
)
from triton_fast._native.core.outputs cimport request_wants
from triton_fast._native.core.request cimport (
    Request, request_alloc, response_fail, response_fail_error, response_outputs,
)
from triton_fast._native.core.respond cimport request_fork, request_sleep, response_send
from triton_fast._native.core.stats cimport RESPONSE_CANCEL, RESPONSE_EMPTY, RESPONSE_FAIL, RESPONSE_SUCCESS
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.sched.instance cimport Batch, NativeInstance, response_report

cdef enum:
    WORD = 4                # bytes of an element, of whatever tensor

# Positions among the model's inputs and outputs.
cdef struct State:
    int32_t values
    int32_t delays
    int32_t wait
    int32_t out
    int32_t idx


cdef inline int64_t n_words(Tensor* t) noexcept nogil:
    return <int64_t>(t.nbytes // WORD) if t != NULL else 0


# Element i in ns, of a tensor in ms; 0 where it was not given. Data in a body need not be aligned.
cdef int64_t delay_ns(Tensor* t, int64_t i) noexcept nogil:
    cdef uint32_t ms
    if i >= n_words(t):
        return 0
    memcpy(&ms, t.ptr + i * WORD, WORD)
    return <int64_t>ms * 1000000


# Fill the carrier with element i of IN and with i. -1: memory ran out.
cdef int fill(State* s, Request* carrier, Tensor* values, int64_t i) noexcept nogil:
    cdef bint out = request_wants(carrier, s.out), idx = request_wants(carrier, s.idx)
    cdef uint32_t index = <uint32_t>i
    cdef int64_t* dim = <int64_t*>request_alloc(carrier, sizeof(int64_t))
    cdef Tensor* t = response_outputs(&carrier.response, out + idx)
    cdef Block* block
    cdef int32_t k
    if dim == NULL or t == NULL:
        return -1
    block = block_new(2 * WORD)
    if block == NULL:
        carrier.response.n_outputs = 0
        return -1
    dim[0] = 1
    memcpy(block.data, values.ptr + i * WORD, WORD)
    memcpy(block.data + WORD, &index, WORD)
    for k in range(2):
        if not (out if k == 0 else idx):
            continue
        t.index = s.out if k == 0 else s.idx
        t.dtype = DT_INT32 if k == 0 else DT_UINT32
        t.ndim = 1
        t.dims = dim
        t.ptr = block.data + k * WORD
        t.nbytes = WORD
        t.kind = MEM_CPU
        t.block = block
        block_ref(block)
        t += 1
    block_unref(block)
    return 0


# Send all of r's responses but the final one. -1: the response has been failed, with the reason.
cdef int send_all(State* s, Request* r) noexcept nogil:
    cdef Tensor* values = r.by_index[s.values]
    cdef Tensor* delays = r.by_index[s.delays]
    cdef Request* carrier
    cdef tf_error e
    cdef int kind
    cdef int64_t done
    cdef int64_t i, n = n_words(values), began = now_ns(), computed
    if delays != NULL and n_words(delays) != n:
        tf_fail(&e, TF_INVALID_ARG, "expected IN and DELAY shape to match, got [%lld] and [%lld]", <long long>n,
                <long long>n_words(delays))
        response_fail_error(&r.response, &e)
        return -1
    for i in range(n):
        if request_sleep(r, now_ns() + delay_ns(delays, i)) != 0:
            return cancelled_at(r, i, began)
        carrier = request_fork(r)
        if carrier == NULL:
            response_fail(&r.response, TF_INTERNAL, b"out of memory", 13)
            return -1
        computed = now_ns()
        kind = RESPONSE_SUCCESS
        if fill(s, carrier, values, i) != 0:
            response_fail(&carrier.response, TF_INTERNAL, b"out of memory", 13)
            kind = RESPONSE_FAIL
        # The next response's work begins where this one's ends, so that the times of all add up.
        done = now_ns()
        if response_send(carrier) != 0:
            return cancelled_at(r, i, began)
        response_report(r, i, kind, computed - began, done - computed)
        began = done
    # The end, which carries nothing.
    response_report(r, n, RESPONSE_EMPTY, now_ns() - began, 0)
    return 0


cdef int cancelled(Request* r) noexcept nogil:
    cdef const char* text = b"the request was cancelled"
    response_fail(&r.response, TF_CANCELLED, text, strlen(text))
    return -1


cdef int cancelled_at(Request* r, int64_t index, int64_t began) noexcept nogil:
    response_report(r, index, RESPONSE_CANCEL, now_ns() - began, 0)
    return cancelled(r)


cdef int execute(void* state, Batch* batch) noexcept nogil:
    cdef State* s = <State*>state
    cdef Request* r
    cdef int64_t start
    cdef int32_t i
    batch.t_input = now_ns()
    for i in range(batch.n):
        r = batch.requests[i]
        start = now_ns()
        if send_all(s, r) == 0 and request_sleep(r, start + delay_ns(r.by_index[s.wait], 0)) != 0:
            cancelled(r)
    batch.t_computed = now_ns()
    return 0


cdef class RepeatInstance(NativeInstance):
    """An instance that answers with the elements of IN, one by one.

    ``inputs`` and ``outputs``: the positions of IN, DELAY, WAIT and of OUT, IDX in the model's config.
    """

    def __init__(self, str name="", inputs=(0, 1, 2), outputs=(0, 1)):
        cdef State* s = <State*>calloc(1, sizeof(State))
        if s == NULL:
            raise MemoryError
        free(self.state)
        self.state = s
        s.values, s.delays, s.wait = inputs
        s.out, s.idx = outputs
        self.name = name
        self.execute = execute

    def __dealloc__(self):
        free(self.state)
