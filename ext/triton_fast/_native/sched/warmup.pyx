# Warm-up: requests of a model that are executed by one given instance, past the scheduler, before it takes others.
# Knows neither configs nor files; what a sample holds is the caller's.
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from triton_fast._native.core.marks cimport REQ_RUNNING, T_QUEUED, T_STARTED
from triton_fast._native.core.native cimport DT_STRING, TF_OK, dtype_size, now_ns
from triton_fast._native.core.pthread cimport (
    pthread_cond_destroy, pthread_cond_init, pthread_cond_signal, pthread_cond_t, pthread_cond_wait,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)
from triton_fast._native.core.model cimport IoSpec, Model
from triton_fast._native.core.request cimport Request, Response, Sink, request_alloc, request_free
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.sched.inprocess cimport make_request
from triton_fast._native.sched.instance cimport NativeInstance
from triton_fast._native.sched.model cimport NativeModel, run_once
from triton_fast._native.sched.policy cimport MAX_TAKE

cdef enum:
    MAX_ELEMENTS = 1 << 30      # of one tensor that is added


# Of one warm-up; it outlives its requests, for its owner waits for their ends.
cdef struct Collector:
    Sink sink               # first
    pthread_mutex_t lock
    pthread_cond_t ended
    int32_t left            # requests whose final response has not come
    Response* first         # responses that are errors, in the order in which they came
    Response* last


cdef void collect(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Collector* c = <Collector*>sink
    cdef Response* p = first
    cdef Response* after
    last.next = NULL
    pthread_mutex_lock(&c.lock)
    while p != NULL:
        after = p.next
        if p.is_final:
            c.left -= 1
        if p.code == TF_OK:
            request_free(p.request)
        else:
            p.next = NULL
            if c.last != NULL:
                c.last.next = p
            else:
                c.first = p
            c.last = p
        p = after
    if c.left == 0:
        pthread_cond_signal(&c.ended)
    pthread_mutex_unlock(&c.lock)


# What the scheduler would add to r (controls, states): as given, else zeros, a variable dimension being 1. The data
# lies in r's own memory.
cdef int add_inputs(Request* r, dict given) except -1:
    cdef Model* m = r.model
    cdef Tensor** by_index
    cdef Tensor* t
    cdef IoSpec* spec
    cdef int32_t i, k
    cdef int64_t count
    cdef bint batched = m.max_batch > 0
    if m.n_all_inputs == m.n_inputs:
        return 0
    by_index = <Tensor**>request_alloc(r, <size_t>(m.n_all_inputs + 1) * sizeof(Tensor*))
    t = <Tensor*>request_alloc(r, <size_t>(m.n_all_inputs - m.n_inputs) * sizeof(Tensor))
    if by_index == NULL or t == NULL:
        raise MemoryError
    memset(t, 0, <size_t>(m.n_all_inputs - m.n_inputs) * sizeof(Tensor))
    memcpy(by_index, r.by_index, <size_t>m.n_inputs * sizeof(Tensor*))
    for i in range(m.n_inputs, m.n_all_inputs):
        spec = &m.inputs[i]
        shape, data = given.get(spec.name[:spec.name_len].decode(), (None, None))
        if shape is None:
            shape = [1] * batched + [max(1, spec.dims[k]) for k in range(spec.ndim)]
        t.name = spec.name
        t.name_len = spec.name_len
        t.index = i
        t.dtype = spec.dtype
        t.ndim = <int32_t>len(shape)
        t.dims = <int64_t*>request_alloc(r, (len(shape) + 1) * sizeof(int64_t))
        if t.dims == NULL:
            raise MemoryError
        count = 1
        for k in range(t.ndim):
            t.dims[k] = shape[k]
            if t.dims[k] > MAX_ELEMENTS // count:
                raise MemoryError
            count = max(1, count * t.dims[k])
        if data is not None:
            t.nbytes = len(data)
        else:
            t.nbytes = <size_t>(count * (4 if t.dtype == DT_STRING else dtype_size(t.dtype)))
        t.ptr = <unsigned char*>request_alloc(r, t.nbytes + 1)
        if t.ptr == NULL:
            raise MemoryError
        if data is not None:
            memcpy(t.ptr, <const char*>data, t.nbytes)
        else:
            memset(t.ptr, 0, t.nbytes)
        by_index[i] = t
        t += 1
    r.by_index = by_index
    return 0


def added_inputs(NativeModel model not None):
    """Return what the scheduler adds to requests of a model: [(name, DataType number, dims)]."""
    cdef int32_t i, k
    found = []
    for i in range(model.ptr.n_inputs, model.ptr.n_all_inputs):
        spec = model.ptr.inputs[i]
        found.append((spec.name[:spec.name_len].decode(), spec.dtype, [spec.dims[k] for k in range(spec.ndim)]))
    return found


def execute(NativeModel model not None, NativeInstance instance not None, inputs, int32_t n, dict added=None):
    """Have an instance whose thread was not started execute n equal requests as one batch, and wait for their ends.

    Parameters
    ----------
    inputs : sequence of (name, DataType, shape, bytes)
        Of each request; see ``inprocess.InferCall``.
    added : dict of name to (shape, bytes)
        Of what the scheduler adds; zeros for the rest.

    Returns
    -------
    list of str
        The errors of the responses, in the order in which they came.

    Raises
    ------
    ServerError
        The requests are not valid.
    """
    cdef Collector c
    cdef Request** requests
    cdef Response* p
    cdef Response* after
    cdef int32_t i, made = 0
    cdef int64_t now
    if not 1 <= n <= MAX_TAKE:
        raise ValueError(f"a batch has 1 to {MAX_TAKE} requests, got {n}")
    requests = <Request**>calloc(n, sizeof(Request*))
    if requests == NULL:
        raise MemoryError
    memset(&c, 0, sizeof(Collector))
    c.sink.deliver = collect
    c.left = n
    try:
        while made < n:
            requests[made] = make_request(model, inputs, (), "", 0, 0, 0, 0, (), "")
            made += 1
            add_inputs(requests[made - 1], added or {})
    except BaseException:
        for i in range(made):
            request_free(requests[i])
        free(requests)
        raise
    pthread_mutex_init(&c.lock, NULL)
    pthread_cond_init(&c.ended, NULL)
    now = now_ns()
    for i in range(n):
        requests[i].sink = &c.sink
        requests[i].state = REQ_RUNNING
        requests[i].stamps[T_QUEUED] = now
        requests[i].stamps[T_STARTED] = now
    run_once(model, instance, requests, n)
    with nogil:
        pthread_mutex_lock(&c.lock)
        while c.left:
            pthread_cond_wait(&c.ended, &c.lock)
        pthread_mutex_unlock(&c.lock)
    pthread_cond_destroy(&c.ended)
    pthread_mutex_destroy(&c.lock)
    free(requests)
    errors = []
    p = c.first
    while p != NULL:
        after = p.next
        errors.append(p.text[:p.text_len].decode("utf-8", "replace") if p.text_len else "")
        request_free(p.request)
        p = after
    return errors
