# An instance whose execute is a Python callable: for backends that have only a Python API, and for tests that must hold
# an instance at a gate. Takes the GIL around the call; inputs are read-only memoryviews of the request's own memory.
from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcpy

from triton_fast._native.core.memory cimport block_new
from triton_fast._native.core.native cimport MEM_CPU, TF_OK, now_ns
from triton_fast._native.core.outputs cimport request_needs
from triton_fast._native.core.request cimport Request, request_alloc, response_fail, response_outputs
from triton_fast._native.core.respond cimport request_fork, response_send
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.sched.instance cimport Batch, NativeInstance, raised_text

from collections.abc import Iterator

from triton_fast.errors import Cancelled, Internal


cdef class PyInstance(NativeInstance):
    """Adapter from a Python callable to an instance.

    Parameters
    ----------
    function : callable
        ``function(requests) -> results``: requests is a list of ``{name: (DataType number, shape, memoryview)}``, valid
        during the execution only; results has one entry per request, either
        ``{name: (DataType number, shape, bytes)}`` or an exception, which fails that request alone. An exception that
        leaves the function fails the whole batch. For a decoupled model an entry may also be a list or an iterator of
        such: each is sent as it comes, and what a generator returns at last is the final response. Of an iterative
        model ``...`` has the request executed again.
    """

    cdef object function

    def __init__(self, function, str name=""):
        self.function = function
        self.name = name
        self.execute = execute_python
        self.state = <void*>self


cdef dict inputs_of(Request* r):
    cdef int32_t i
    cdef Tensor* t
    result = {}
    for i in range(r.model.n_all_inputs):
        t = r.by_index[i]
        if t != NULL:
            view = PyMemoryView_FromMemory(<char*>t.ptr, t.nbytes, PyBUF_READ) if t.nbytes else memoryview(b"")
            result[r.model.inputs[i].name[:r.model.inputs[i].name_len].decode()] = (
                t.dtype, tuple([t.dims[k] for k in range(t.ndim)]), view)
    return result


cdef int answer(Request* r, dict outputs) except -1:
    cdef int32_t i, k
    cdef Tensor* t
    found = []
    for i in range(r.model.n_all_outputs):
        name = r.model.outputs[i].name[:r.model.outputs[i].name_len].decode()
        if request_needs(r, i) and name in outputs:
            found.append((i, outputs[name]))
    t = response_outputs(&r.response, <int32_t>len(found))
    if t == NULL:
        raise MemoryError
    for i, (dtype, shape, data) in found:
        t.index = i
        t.dtype = int(dtype)
        t.ndim = <int32_t>len(shape)
        t.dims = <int64_t*>request_alloc(r, (len(shape) + 1) * sizeof(int64_t))
        if t.dims == NULL:
            raise MemoryError
        for k in range(t.ndim):
            t.dims[k] = shape[k]
        blob = bytes(data)
        t.block = block_new(len(blob))
        if t.block == NULL:
            raise MemoryError
        t.ptr = t.block.data
        t.nbytes = len(blob)
        t.kind = MEM_CPU
        memcpy(t.ptr, <const char*>blob, len(blob))
        t += 1
    return 0


cdef void fail(Request* r, object error) noexcept:
    cdef int32_t code
    cdef bytes text = raised_text(error, &code)
    response_fail(&r.response, code, <const char*>text, len(text))


cdef void fill(Request* r, object result) noexcept:
    if isinstance(result, BaseException):
        fail(r, result)
        return
    if result is ... and r.model.iterative:
        r.again = True
        return
    try:
        answer(r, result)
    except Exception as error:
        fail(r, error)


cdef int send_all(Request* r, object results) except -1:
    cdef Request* carrier
    cdef int status
    if not r.model.decoupled:
        raise Internal("only a decoupled model may give several responses to a request")
    source = iter(results)
    while True:
        try:
            result = next(source)
        except StopIteration as end:
            if end.value is not None:
                fill(r, end.value)
            return 0
        carrier = request_fork(r)
        if carrier == NULL:
            raise MemoryError
        fill(carrier, result)
        with nogil:
            status = response_send(carrier)
        if status != 0:
            if hasattr(source, "close"):
                source.close()
            raise Cancelled("the request was cancelled")


cdef int execute_python(void* state, Batch* batch) noexcept nogil:
    with gil:
        return run(<PyInstance>state, batch)


cdef int run(PyInstance self, Batch* batch) noexcept:
    cdef int32_t i
    try:
        batch.t_input = now_ns()
        results = self.function([inputs_of(batch.requests[i]) for i in range(batch.n)])
        batch.t_computed = now_ns()
        if len(results) != batch.n:
            raise Internal(f"expected {batch.n} results for {batch.n} requests, got {len(results)}")
        for i in range(batch.n):
            if not isinstance(results[i], (list, Iterator)):
                fill(batch.requests[i], results[i])
                continue
            try:
                send_all(batch.requests[i], results[i])
            except Exception as error:
                fail(batch.requests[i], error)
            batch.t_computed = now_ns()
    except BaseException as error:
        for i in range(batch.n):
            if batch.requests[i].response.code == TF_OK:
                fail(batch.requests[i], error)
    return 0
