# Requests from Python code in this process: warm-up, tests, later the in-process API. One call, one condition variable.
# InferCall has one answer, StreamCall any number. Copies tensors in and out; network front ends do not come this way.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset
from posix.time cimport timespec

from triton_fast._native.core.marks cimport REQ_QUEUED
from triton_fast._native.core.memory cimport block_new
from triton_fast._native.core.native cimport TF_INTERNAL, TF_OK, now_ns, tf_add32, tf_error, tf_load32
from triton_fast._native.core.pthread cimport (
    cond_init_monotonic, pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_t, pthread_cond_timedwait,
    pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock,
)
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport (
    Request, Response, Sink, request_alloc, request_free, request_new, sink_end,
)
from triton_fast._native.core.tensor cimport PARAM_BOOL, PARAM_INT, PARAM_STRING, Param, Tensor, Wanted
from triton_fast._native.core.tracing cimport trace_adopt
from triton_fast._native.core.validate cimport request_validate
from triton_fast._native.sched.ensemble_look cimport ensemble_refuse, ensemble_waits
from triton_fast._native.sched.model cimport NativeModel
from triton_fast._native.sched.scheduler cimport (
    SUBMIT_OK, scheduler_cancel, scheduler_submit, scheduler_wake, scheduler_withdraw,
)

from triton_fast.errors import Cancelled, Unsupported, make


MAX_WAIT_S = 1e9        # what is longer waits for ever as far as anybody can tell, and fits in ns


# Shared by the caller and the delivering thread; whoever drops the last reference frees it.
cdef struct Waiter:
    Sink sink               # first
    int32_t refs
    pthread_mutex_t lock
    pthread_cond_t cond
    Response* first         # what has come and was not taken
    Response* last
    void* runner            # key of the Python instance that executes it, NULL: not known
    bint cancelled          # nothing will come
    bint dropped            # nobody will take what comes


cdef void free_chain(Response* p) noexcept nogil:
    cdef Response* after
    while p != NULL:
        after = p.next
        request_free(p.request)
        p = after


cdef void waiter_unref(Waiter* w) noexcept nogil:
    if tf_add32(&w.refs, -1) == 0:
        free_chain(w.first)
        pthread_cond_destroy(&w.cond)
        pthread_mutex_destroy(&w.lock)
        free(w)


cdef void waiter_deliver(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Waiter* w = <Waiter*>sink
    cdef bint is_final = last.is_final      # it may be gone once the lock is
    last.next = NULL
    pthread_mutex_lock(&w.lock)
    if w.dropped:
        free_chain(first)
    elif w.first == NULL:
        w.first = first
        w.last = last
    else:
        w.last.next = first
        w.last = last
    pthread_cond_broadcast(&w.cond)
    pthread_mutex_unlock(&w.lock)
    if is_final:
        waiter_unref(w)


cdef void note_runner(Request* r, void* runner) noexcept nogil:
    cdef Sink* sink = sink_end(r.sink)
    if sink != NULL and sink.deliver == waiter_deliver:
        (<Waiter*>sink).runner = runner


# Wait until there is a response: the first, which is taken off if `take`. NULL: cancelled, or not within timeout_s.
cdef Response* waiter_look(Waiter* w, object timeout_s, bint take) except? NULL:
    cdef int64_t until = now_ns() + <int64_t>(min(timeout_s, MAX_WAIT_S) * 1e9) if timeout_s is not None else 0
    cdef timespec ts
    cdef Response* p
    cdef int rc = 0
    ts.tv_sec = until // 1000000000
    ts.tv_nsec = until % 1000000000
    with nogil:
        pthread_mutex_lock(&w.lock)
        while w.first == NULL and not w.cancelled and rc == 0:
            if until:
                rc = pthread_cond_timedwait(&w.cond, &w.lock, &ts)
            else:
                pthread_cond_wait(&w.cond, &w.lock)
        p = w.first
        if take and p != NULL:
            w.first = p.next
        pthread_mutex_unlock(&w.lock)
    return p


# The request of one call. The caller owns it.
cdef Request* make_request(NativeModel model, object inputs, object outputs, str id, int64_t priority,
                           int64_t timeout_us, uint32_t flags, object correlation, object params,
                           str trace) except NULL:
    cdef Request* r = request_new(model.ptr)
    cdef Tensor* t
    cdef tf_error e
    cdef Py_ssize_t i, k
    cdef const uint8_t[::1] view
    if r == NULL:
        raise MemoryError
    try:
        r.id = <const char*>copy_bytes(r, id.encode())
        r.id_len = <unsigned int>len(id.encode())
        r.priority = priority
        r.timeout_us = timeout_us
        r.flags = flags
        if isinstance(correlation, str):
            encoded = correlation.encode()
            r.correlation_text = <const char*>copy_bytes(r, encoded)
            r.correlation_len = <unsigned int>len(encoded)
        else:
            r.correlation = correlation
        if trace:
            encoded = trace.encode()
            r.trace = <const char*>copy_bytes(r, encoded)
            r.trace_len = <unsigned int>len(encoded)
        params_from(r, &r.params, params)
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
            raise error_of(&e)
        if r.trace_len:
            trace_adopt(r)
    except BaseException:
        request_free(r)
        raise
    return r


cdef int params_from(Request* r, Param** link, object params) except -1:
    cdef Param* p
    for key, value in params:
        p = <Param*>request_alloc(r, sizeof(Param))
        if p == NULL:
            raise MemoryError
        memset(p, 0, sizeof(Param))
        encoded = key.encode()
        p.key = <const char*>copy_bytes(r, encoded)
        p.key_len = <unsigned int>len(encoded)
        if isinstance(value, str):
            encoded = value.encode()
            p.kind = PARAM_STRING
            p.text = <const char*>copy_bytes(r, encoded)
            p.text_len = <unsigned int>len(encoded)
        else:
            p.kind = PARAM_BOOL if isinstance(value, bool) else PARAM_INT
            p.integer = value
        link[0] = p
        link = &p.next
    return 0


cdef object error_of(tf_error* e):
    return make(e.code, e.text[:e.len].decode("utf-8", "replace"))


# Queue r, which this takes over, with a new waiter as its sink; the caller has one of the waiter's two references.
cdef Waiter* submit(NativeModel model, Request* r) except NULL:
    cdef tf_error e
    cdef bint wake = False
    cdef int status
    cdef Waiter* w = <Waiter*>calloc(1, sizeof(Waiter))
    if w == NULL:
        request_free(r)
        raise MemoryError
    w.refs = 2
    w.sink.deliver = waiter_deliver
    pthread_mutex_init(&w.lock, NULL)
    cond_init_monotonic(&w.cond)
    r.sink = &w.sink
    status = scheduler_submit(model.ptr.scheduler, r, &wake, &e)
    if wake:
        scheduler_wake(model.ptr.scheduler)
    if status != SUBMIT_OK:
        request_free(r)
        w.refs = 1
        waiter_unref(w)
        raise error_of(&e)
    return w


# Take a queued request back: True, and it is gone with its reference of the waiter. False: an instance has it; with
# `tell` it is told.
cdef bint take_back(NativeModel model, Waiter* w, Request* r, bint tell) noexcept:
    if tell:
        if not scheduler_cancel(model.ptr.scheduler, r):
            return False
    elif not scheduler_withdraw(model.ptr.scheduler, r):
        return False
    request_free(r)
    pthread_mutex_lock(&w.lock)
    w.cancelled = True
    pthread_cond_broadcast(&w.cond)
    pthread_mutex_unlock(&w.lock)
    waiter_unref(w)
    return True


# The outputs as Python objects; raises the response's error.
cdef dict result_of(Response* p):
    cdef Model* model = p.request.model
    cdef Tensor* t
    cdef int32_t i, k
    if p.code != TF_OK:
        raise make(p.code, p.text[:p.text_len].decode("utf-8", "replace"))
    result = {}
    for i in range(p.n_outputs):
        t = &p.outputs[i]
        spec = model.outputs[t.index]
        result[spec.name[:spec.name_len].decode()] = (
            t.dtype, tuple([t.dims[k] for k in range(t.ndim)]), (<char*>t.ptr)[:t.nbytes] if t.nbytes else b"")
    return result


# The parameters of a response that a model may set.
cdef dict params_of(Response* p):
    cdef Param* q = p.params
    found = {}
    while q != NULL:
        key = q.key[:q.key_len].decode("utf-8", "replace")
        if q.kind == PARAM_STRING:
            found[key] = q.text[:q.text_len].decode("utf-8", "replace") if q.text_len else ""
        elif q.kind == PARAM_BOOL:
            found[key] = bool(q.integer)
        elif q.kind == PARAM_INT:
            found[key] = q.integer
        q = q.next
    return found


cdef void* copy_bytes(Request* r, bytes text) except NULL:
    cdef void* p = request_alloc(r, len(text) + 1)
    if p == NULL:
        raise MemoryError
    memcpy(p, <const char*>text, len(text) + 1)
    return p


cdef class Call:
    """What calls of both kinds are: one request on its way. Made as one of them."""

    cdef NativeModel model
    cdef Waiter* waiter
    cdef Request* request       # NULL after its end
    cdef readonly dict parameters

    def __dealloc__(self):
        if self.waiter != NULL:
            waiter_unref(self.waiter)

    @property
    def queued(self):
        """Whether no instance has it yet."""
        return self.request != NULL and tf_load32(&self.request.state) == REQ_QUEUED

    @property
    def model_key(self):
        """A number that names the model, as Python instances have it."""
        return <size_t>self.model.ptr if self.model is not None else 0

    @property
    def runner(self):
        """Key of the Python instance that has it, 0 when that is not known."""
        return <size_t>self.waiter.runner if self.waiter != NULL else 0

    @property
    def waits(self):
        """Of an ensemble, what it waits for: (model's key, "queued", "running" or "waiting", runner's key or 0), ..."""
        cdef Request* r = self.request
        if r == NULL or not r.model.composed:
            return ()
        tf_add32(&r.holds, 1)
        try:
            return ensemble_waits(r)
        finally:
            with nogil:
                request_free(r)

    def refuse(self, str text, int32_t code=TF_INTERNAL):
        """Of an ensemble: fail it, with a step's request that no instance has; return whether there was one."""
        cdef Request* r = self.request
        cdef bint done
        encoded = text.encode("utf-8", "replace")
        cdef const char* data = encoded
        cdef size_t n = len(encoded)
        if r == NULL:
            return False
        tf_add32(&r.holds, 1)
        with nogil:
            done = ensemble_refuse(r, code, data, n)
            request_free(r)
        return bool(done)


cdef class InferCall(Call):
    """One request on its way. ``wait`` returns its outputs; ``cancel`` takes it back if no instance has it yet.

    Parameters
    ----------
    model : NativeModel
        Not decoupled.
    inputs : sequence of (name, DataType, shape, bytes)
        STRING data in wire form (uint32 LE length + bytes per element).
    outputs : sequence of str
        Names wanted; empty for all.
    flags : int
        1 sequence start, 2 sequence end.
    correlation : int or str
    params : sequence of (key, bool, int or str)
    trace : str
        Context of a trace, for the model.

    Raises
    ------
    ServerError
        What validation or the queue answered.
    """

    def __cinit__(self, NativeModel model not None, inputs, outputs=(), *, str id="", int64_t priority=0,
                  int64_t timeout_us=0, uint32_t flags=0, correlation=0, params=(), str trace=""):
        cdef Request* r
        if model.ptr.decoupled:
            raise Unsupported(f"model '{model.name}' is decoupled: it has no single answer, ask for a stream of them")
        self.model = model
        r = make_request(model, inputs, outputs, id, priority, timeout_us, flags, correlation, params, trace)
        self.waiter = submit(model, r)
        self.request = r

    def cancel(self, *, bint tell=True):
        """Take the request back. Returns False when an instance already has it, which learns of it unless not tell."""
        if self.request == NULL or not take_back(self.model, self.waiter, self.request, tell):
            return False
        self.request = NULL
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
        cdef Response* p
        if self.request == NULL:
            raise Cancelled("the request was cancelled")
        p = waiter_look(self.waiter, timeout_s, False)
        if p == NULL and self.request == NULL:
            raise Cancelled("the request was cancelled")
        if p == NULL:
            raise TimeoutError(f"no response within {timeout_s} s")
        self.parameters = params_of(p)
        return result_of(p)


cdef class StreamCall(Call):
    """One request on its way that may have any number of responses; an iterator of ``(outputs, is_final)``.

    Parameters
    ----------
    model, inputs, outputs, id, priority, timeout_us, flags, correlation, params, trace
        See ``InferCall``.
    max_responses : int
        Responses that may wait to be taken; the model waits with the next. 0 = any number.
    """

    cdef bint cancelled

    def __cinit__(self, NativeModel model not None, inputs, outputs=(), *, str id="", int64_t priority=0,
                  int64_t timeout_us=0, uint32_t flags=0, correlation=0, params=(), str trace="",
                  int32_t max_responses=0):
        cdef Request* r
        self.model = model
        r = make_request(model, inputs, outputs, id, priority, timeout_us, flags, correlation, params, trace)
        r.max_responses = max_responses
        self.waiter = submit(model, r)
        self.request = r

    def __del__(self):
        # Nobody will take what is still to come, so the model need not make it. Here and not in __dealloc__: the
        # garbage collector calls it while the reference of the model is still whole.
        cdef Response* left
        if self.waiter == NULL:
            return
        if self.request != NULL:
            take_back(self.model, self.waiter, self.request, True)
            self.request = NULL
        pthread_mutex_lock(&self.waiter.lock)
        self.waiter.dropped = True
        left = self.waiter.first
        self.waiter.first = NULL
        pthread_mutex_unlock(&self.waiter.lock)
        free_chain(left)

    @property
    def over(self):
        """Whether the final response was taken, or nothing comes."""
        return self.request == NULL

    def __iter__(self):
        return self

    def __next__(self):
        taken = self.take()
        if taken is None:
            raise StopIteration
        return taken

    def take(self, timeout_s=None):
        """Wait for the next response and return ``(outputs, is_final)``; None after the final one.

        A response that is an error is raised; if it was not the final one, the next call goes on after it.
        """
        cdef Response* p
        if self.cancelled:
            raise Cancelled("the request was cancelled")
        if self.request == NULL:
            return None
        p = waiter_look(self.waiter, timeout_s, True)
        if p == NULL and self.cancelled:
            raise Cancelled("the request was cancelled")
        if p == NULL and self.request == NULL:
            return None         # another thread took the final one
        if p == NULL:
            raise TimeoutError(f"no response within {timeout_s} s")
        is_final = bool(p.is_final)
        if is_final:
            self.request = NULL
        try:
            self.parameters = params_of(p)
            return result_of(p), is_final
        finally:
            request_free(p.request)

    def cancel(self, *, bint tell=True):
        """Take the request back: True. If an instance has it, tell it to stop: False, and its end is still to come."""
        if self.request == NULL or not take_back(self.model, self.waiter, self.request, tell):
            return False
        self.request = NULL
        self.cancelled = True
        return True


def infer(model, inputs, outputs=(), *, timeout_s=None, **options):
    """Submit and wait: see ``InferCall``."""
    return InferCall(model, inputs, outputs, **options).wait(timeout_s)
