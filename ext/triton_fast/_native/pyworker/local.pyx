# Python models in the server's own process: an instance that calls a Python function with the GIL. Inputs are views of
# the request's own memory, which lives as long as any of them; outputs are copied once, but for large ones that are an
# input or a part of one.
cimport cython
from cpython.buffer cimport PyBUF_SIMPLE, PyBuffer_Release, PyObject_GetBuffer
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from triton_fast._native.core.marks cimport FLAG_PADDING, T_INPUT
from triton_fast._native.core.memory cimport Block, block_new, block_ref
from triton_fast._native.core.native cimport (
    DT_COUNT, DT_STRING, MEM_CPU, TF_INTERNAL, dtype_size, now_ns, tf_add32, tf_buf, tf_buf_free, tf_load32,
)
from triton_fast._native.core.model cimport MAX_RANK, Model
from triton_fast._native.core.outputs cimport request_needs
from triton_fast._native.core.request cimport (
    Request, Response, request_alloc, request_free, response_fail, response_outputs,
)
from triton_fast._native.core.respond cimport request_fork, response_send
from triton_fast._native.core.shape cimport elements_of
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.core.view cimport BlockView
from triton_fast._native.pyworker.calls cimport call_runner
from triton_fast._native.pyworker.decode cimport are_strings, find_output
from triton_fast._native.pyworker.worker cimport Worker
from triton_fast._native.sched.instance cimport Batch, NativeInstance, request_finish
from triton_fast._native.sched.ensemble_look cimport step_runner
from triton_fast._native.sched.inprocess cimport note_runner, params_from
from triton_fast._native.wire.json_reply cimport json_put_params

from triton_fast.errors import Internal, InvalidArg


# Bytes above which an output that is an input, or a part of one, is not copied; and above which the GIL is let go for a
# copy, for others wait for it.
cdef enum:
    LARGE = 32768
    MAX_BASES = 4           # arrays that an array is a view of, one of another


cdef BlockView view_of(Request* r, Tensor* t):
    cdef BlockView view = BlockView.__new__(BlockView)
    cdef Block* block = t.block
    if block == NULL and r.body != NULL and r.body.data <= t.ptr < r.body.data + r.body.cap:
        block = r.body
    if block != NULL:
        block_ref(block)
        view.block = block
        view.data = t.ptr
    else:
        # A small tensor in the request's arena, which does not outlive it.
        view.block = block_new(t.nbytes)
        if view.block == NULL:
            raise MemoryError
        view.data = view.block.data
        if t.nbytes:
            memcpy(view.data, t.ptr, t.nbytes)
    view.size = t.nbytes
    # States and padding are lent to more than one request.
    view.fixed = t.index >= r.model.n_inputs or r.flags & FLAG_PADDING
    return view


@cython.no_gc_clear     # it may end the request when it goes, and needs its instance for that
cdef class LocalRequest:
    """A request that a model in this process has; it is over with ``send(..., final=True)``.

    One that is dropped before fails. Several threads may send; the order is kept within each.
    """

    cdef Request* r
    cdef LocalInstance instance
    cdef int32_t taken          # atomic; the final response is being made, or was

    def __init__(self):
        raise TypeError("made by a LocalInstance only")

    def __dealloc__(self):
        if self.r != NULL and tf_add32(&self.taken, 1) == 1:
            response_fail(&self.r.response, TF_INTERNAL, b"the model ended without a response", 34)
            self.finish()

    cdef int finish(self) noexcept:
        cdef Request* r = self.r
        with nogil:
            request_finish(r)
        tf_add32(&self.instance.n_kept, -1)
        return 0

    def inputs(self):
        """Return a list of (name, DataType number, shape, buffer); shape with the batch dimension."""
        cdef int32_t i
        cdef Tensor* t
        self.check()
        found = []
        for i in range(self.r.n_inputs):
            t = &self.r.inputs[i]
            spec = self.r.model.inputs[t.index]
            found.append((spec.name[:spec.name_len].decode(), t.dtype, [t.dims[k] for k in range(t.ndim)],
                          view_of(self.r, t)))
        return found

    def wanted(self):
        """Return the names of the outputs asked for; all when the client named none."""
        cdef Model* m
        cdef int32_t i
        self.check()
        m = self.r.model
        return [m.outputs[i].name[:m.outputs[i].name_len].decode() for i in range(m.n_all_outputs)
                if request_needs(self.r, i)]

    def facts(self):
        """Return (id, correlation number, its text, flags, timeout in us, priority, parameters as JSON, trace)."""
        cdef tf_buf out
        self.check()
        out.data = NULL
        out.len = out.cap = 0
        out.failed = 0
        if self.r.params != NULL:
            json_put_params(&out, self.r.params)
        params = out.data[:out.len].decode("utf-8", "replace") if out.len and not out.failed else ""
        tf_buf_free(&out)
        return (self.r.id[:self.r.id_len].decode("utf-8", "replace") if self.r.id_len else "", self.r.correlation,
                self.r.correlation_text[:self.r.correlation_len].decode("utf-8", "replace")
                if self.r.correlation_len else "", self.r.flags & 3, self.r.timeout_us, self.r.priority, params,
                self.r.trace[:self.r.trace_len].decode("utf-8", "replace") if self.r.trace_len else "")

    cdef int check(self) except -1:
        if tf_load32(&self.taken):
            raise Internal("the request is over")
        return 0

    @property
    def cancelled(self):
        """Whether nobody wants its responses any more."""
        return tf_load32(&self.taken) == 0 and tf_load32(&self.r.cancelled) != 0

    @property
    def over(self):
        return tf_load32(&self.taken) != 0

    def execute_again(self):
        """Have the request executed again, in a later batch: True. False: its model is not iterative."""
        self.check()
        if not self.r.model.iterative:
            return False
        if tf_add32(&self.taken, 1) != 1:
            raise Internal("the request is over")
        self.r.again = True
        self.finish()
        return True

    def send(self, outputs=None, *, error=None, params=(), bint final=False):
        """Send a response, or with neither outputs nor an error only the end.

        Parameters
        ----------
        outputs : sequence of (name, DataType number, shape, buffer), optional
            Those not asked for are dropped.
        error : (code, text), optional
        params : sequence of (key, bool, int or str)
        final : bool
            It is the last one. Of a model that is not decoupled every response is.

        Returns
        -------
        bool
            False: nobody wants it any more.

        Raises
        ------
        Internal
            The request is over, or an output is not the model's.
        """
        cdef Request* carrier
        cdef int status
        self.check()        # what is over is not looked at
        if final or not self.r.model.decoupled:
            if tf_add32(&self.taken, 1) != 1:
                raise Internal("the request is over")
            try:
                fill(&self.r.response, outputs, error, params)
            except Exception as trouble:
                text = str(trouble).encode("utf-8", "replace")
                response_fail(&self.r.response, TF_INTERNAL, <const char*>text, len(text))
            self.finish()
            return True
        carrier = request_fork(self.r)
        if carrier == NULL:
            raise MemoryError
        try:
            fill(&carrier.response, outputs, error, params)
        except BaseException:
            request_free(carrier)
            raise
        with nogil:
            status = response_send(carrier)
        return status == 0


# The input's memory in which an output lies; None when it is its own.
cdef BlockView owner_of(object data, Py_buffer* view):
    cdef BlockView found
    cdef object base = data
    cdef uint8_t* start = <uint8_t*>view.buf
    cdef int _k
    for _k in range(MAX_BASES):
        base = getattr(base, "base", None)
        if base is None:
            return None
        if type(base) is BlockView:
            found = base
            if found.data <= start and view.len <= found.size and start - found.data <= found.size - view.len:
                return found
            return None
    return None


cdef int fill(Response* p, object outputs, object error, object params) except -1:
    cdef Tensor* t
    cdef Request* r = p.request
    cdef Py_buffer view
    cdef BlockView owner
    cdef int32_t index, k
    cdef int64_t count
    if error is not None:
        code, message = error
        text = message.encode("utf-8", "replace")
        response_fail(p, code, <const char*>text, len(text))
        return 0
    if outputs is None:
        return 0
    t = response_outputs(p, <int32_t>len(outputs))
    if t == NULL:
        raise MemoryError
    p.n_outputs = 0
    for name, dtype, shape, data in outputs:
        encoded = name.encode()
        index = find_output(r.model, <const char*>encoded, <uint32_t>len(encoded))
        if index < 0:
            raise Internal(f"unexpected inference output '{name}' for model "
                           f"'{r.model.name[:r.model.name_len].decode()}'")
        if not request_needs(r, index):
            continue
        if len(shape) > MAX_RANK or not 0 < dtype < DT_COUNT:
            raise InvalidArg(f"output '{name}' has an invalid shape or data type")
        t.index = index
        t.dtype = dtype
        t.ndim = <int32_t>len(shape)
        t.dims = <int64_t*>request_alloc(r, (len(shape) + 1) * sizeof(int64_t))
        if t.dims == NULL:
            raise MemoryError
        for k in range(t.ndim):
            t.dims[k] = shape[k]
        count = elements_of(t.dims, t.ndim)
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if count < 0 or (dtype != DT_STRING and (view.len // dtype_size(dtype) != count or
                                                     view.len % dtype_size(dtype))) or (
                    dtype == DT_STRING and not are_strings(<const uint8_t*>view.buf, view.len, count)):
                raise InvalidArg(f"data size does not match the shape of output '{name}'")
            # What the scheduler keeps must not change any more.
            owner = owner_of(data, &view) if view.len > LARGE and not r.model.outputs[index].kept else None
            if owner is not None:
                t.block = owner.block
                block_ref(t.block)
            else:
                t.block = block_new(view.len)
                if t.block == NULL:
                    raise MemoryError
            p.n_outputs += 1
            t.ptr = t.block.data if owner is None else <uint8_t*>view.buf
            t.nbytes = view.len
            t.kind = MEM_CPU
            if owner is not None:
                pass
            elif view.len > LARGE:
                with nogil:
                    memcpy(t.ptr, view.buf, view.len)
            elif view.len:
                memcpy(t.ptr, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)
        t += 1
    return params_from(r, &p.params, params)


cdef class LocalInstance(NativeInstance):
    """An instance of a Python model in this process.

    Parameters
    ----------
    name : str
    function : callable
        ``function(requests)``: a list of ``LocalRequest``, each of which it answers with ``send``, now or later. What
        leaves it as an exception fails those that are not over. Called on the instance's own thread.
    """

    cdef object function
    cdef int32_t n_kept
    cdef int64_t began
    cdef Model* model

    def __init__(self, str name, function):
        self.name = name
        self.function = function
        self.execute = execute_local
        self.state = <void*>self

    @property
    def in_flight(self):
        """Requests that the model has and that are not over."""
        return tf_load32(&self.n_kept)

    @property
    def executing(self):
        return self.began != 0

    @property
    def key(self):
        """As of ``PythonInstance``."""
        return <size_t><void*>self

    @property
    def model_key(self):
        """As of ``PythonInstance``."""
        return <size_t>self.model


cdef int execute_local(void* state, Batch* batch) noexcept nogil:
    with gil:
        return run(<LocalInstance>state, batch)


cdef int run(LocalInstance self, Batch* batch) noexcept:
    cdef LocalRequest item
    cdef int32_t i
    self.model = batch.requests[0].model
    self.began = batch.t_input = now_ns()
    requests = []
    try:
        for i in range(batch.n):
            item = LocalRequest.__new__(LocalRequest)
            item.instance = self
            requests.append(item)
            item.r = batch.requests[i]
            item.r.stamps[T_INPUT] = batch.t_input
            batch.requests[i] = NULL
            # Only a key to them: who waits for whom.
            call_runner(item.r, <Worker*><void*>self)
            note_runner(item.r, <void*>self)
            step_runner(item.r, <void*>self)
            tf_add32(&self.n_kept, 1)
        self.function(list(requests))
    except BaseException as trouble:
        error = (int(getattr(trouble, "code", TF_INTERNAL)), str(trouble) or type(trouble).__name__)
        for item in requests:
            if item.r != NULL and not tf_load32(&item.taken):
                try:
                    item.send(error=error, final=True)
                except Exception:       # it was over a moment before
                    continue
    batch.t_computed = now_ns()
    self.began = 0
    return -1
