# Requests come from a slab of fixed chunks: the struct first, the rest of the chunk is the request's arena. What does
# not fit is malloc'd and freed with it. Knows nothing of protocols, queues or backends.
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from triton_fast._native.core.memory cimport block_unref
from triton_fast._native.core.native cimport (
    TF_OK, tf_add32, tf_add64, tf_error, tf_load32, tf_load64, tf_lock, tf_text_clean, tf_text_cut, tf_unlock,
)
from triton_fast._native.core.park cimport park_wake
from triton_fast._native.core.poison cimport tf_poison, tf_unpoison

cdef enum:
    CHUNK = 4096
    KEEP = 4096             # chunks kept for reuse: 16 MiB

cdef struct Overflow:
    Overflow* next

cdef struct Slab:
    int32_t lock
    int32_t count
    Request* head

cdef Slab slab
cdef int64_t live_requests = 0
cdef int64_t live_models = 0


cdef Request* request_new(Model* model) noexcept nogil:
    cdef Request* r
    tf_lock(&slab.lock)
    r = slab.head
    if r != NULL:
        tf_unpoison(r, CHUNK)
        slab.head = r.q_next
        slab.count -= 1
    tf_unlock(&slab.lock)
    if r == NULL:
        r = <Request*>malloc(CHUNK)
        if r == NULL:
            return NULL
    memset(r, 0, sizeof(Request))
    r.arena = <char*>r + ((sizeof(Request) + 7) & ~<size_t>7)
    r.arena_left = CHUNK - ((sizeof(Request) + 7) & ~<size_t>7)
    r.model = model
    r.batch = 1
    r.holds = 1
    r.response.request = r
    r.response.code = TF_OK
    r.response.is_final = True
    if model != NULL:
        tf_add32(&model.refs, 1)
    tf_add64(&live_requests, 1)
    return r


cdef void drop_outputs(Response* p) noexcept nogil:
    cdef int32_t i
    for i in range(p.n_outputs):
        block_unref(p.outputs[i].block)
    p.n_outputs = 0


cdef inline void release(Request* r) noexcept nogil:
    cdef int32_t i
    cdef Overflow* o = <Overflow*>r.overflow
    cdef Overflow* after
    for i in range(r.n_inputs):
        block_unref(r.inputs[i].block)
    drop_outputs(&r.response)
    block_unref(r.body)
    if r.model != NULL and tf_add32(&r.model.refs, -1) == 0:
        model_free(r.model)
    while o != NULL:
        after = o.next
        free(o)
        o = after
    tf_add64(&live_requests, -1)
    tf_lock(&slab.lock)
    if slab.count < KEEP:
        r.q_next = slab.head
        slab.head = r
        slab.count += 1
        tf_poison(r, CHUNK)
        r = NULL
    tf_unlock(&slab.lock)
    free(r)


cdef void request_free(Request* r) noexcept nogil:
    cdef Request* parent
    cdef bint counted
    while r != NULL:
        # Who sees 1 is alone with r: a plain request costs no atomic write.
        if tf_load32(&r.holds) != 1 and tf_add32(&r.holds, -1) != 0:
            return
        parent = r.parent
        counted = parent != NULL and parent.max_responses > 0 and r.state == REQ_DONE
        release(r)
        if counted:
            tf_add32(&parent.unsent, -1)
            park_wake(&parent.waiting)
        r = parent


cdef void* request_alloc_slow(Request* r, size_t n) noexcept nogil:
    cdef Overflow* o = <Overflow*>malloc(n + 16)
    if o == NULL:
        return NULL
    o.next = <Overflow*>r.overflow
    r.overflow = o
    return <char*>o + 16


cdef void model_free(Model* m) noexcept nogil:
    cdef int32_t i
    for i in range(m.n_all_inputs):
        free(m.inputs[i].name)
        free(m.inputs[i].dims)
        free(m.inputs[i].reshape)
    for i in range(m.n_all_outputs):
        free(m.outputs[i].name)
        free(m.outputs[i].dims)
        free(m.outputs[i].reshape)
    free(m.inputs)
    free(m.outputs)
    free(m.name)
    free(m.version_text)
    free(m)
    tf_add64(&live_models, -1)


cdef void response_fail(Response* p, int32_t code, const char* text, size_t n) noexcept nogil:
    cdef char* copy
    cdef size_t size
    drop_outputs(p)
    p.code = code
    if n > 65536:
        n = tf_text_cut(text, 65536)
    size = tf_text_clean(text, n, NULL)
    copy = <char*>request_alloc(p.request, size)
    if copy == NULL:
        p.text = b"out of memory"
        p.text_len = 13
        return
    tf_text_clean(text, n, copy)
    p.text = copy
    p.text_len = <unsigned int>size


cdef void response_fail_error(Response* p, tf_error* e) noexcept nogil:
    response_fail(p, e.code, e.text, e.len)


cdef Tensor* response_outputs(Response* p, int32_t n) noexcept nogil:
    cdef Tensor* t = <Tensor*>request_alloc(p.request, <size_t>n * sizeof(Tensor))
    if t != NULL:
        memset(t, 0, <size_t>n * sizeof(Tensor))
        p.outputs = t
        p.n_outputs = n
    return t


cdef char* copy_text(bytes text) except NULL:
    cdef char* p = <char*>malloc(len(text) + 1)
    if p == NULL:
        raise MemoryError
    memcpy(p, <const char*>text, len(text) + 1)
    return p


cdef int64_t* copy_dims(object dims) except? NULL:
    cdef Py_ssize_t i, n = len(dims)
    cdef int64_t* p = <int64_t*>malloc((n if n else 1) * sizeof(int64_t))
    if p == NULL:
        raise MemoryError
    for i in range(n):
        p[i] = dims[i]
    return p


cdef int fill_spec(IoSpec* s, object io) except -1:
    name = io.name.encode()
    s.name = copy_text(name)
    s.name_len = <unsigned int>len(name)
    s.dtype = int(io.dtype)
    s.ndim = len(io.dims)
    s.dims = copy_dims(io.dims)
    s.reshape_ndim = -1
    if io.reshape is not None:
        s.reshape = copy_dims(io.reshape)
        s.reshape_ndim = len(io.reshape)
    s.optional = io.optional
    s.ragged = io.ragged
    s.kept = getattr(io, "kept", False)
    return 0


cdef class ModelHandle:
    """Owner of one reference to a native ``Model``.

    Parameters
    ----------
    name, version
        As clients name them.
    max_batch
        0 for models without a batch dimension.
    inputs, outputs
        Sequences of ``config.IoSpec``.
    decoupled
        Whether a request may have other than one response.
    added_inputs, added_outputs
        What the scheduler adds to requests and takes from responses: clients do not see them, instances do, behind the
        others.
    """

    def __cinit__(self, str name, int64_t version, int64_t max_batch, inputs, outputs, bint decoupled=False,
                  *, added_inputs=(), added_outputs=(), **_):
        cdef Model* m = <Model*>malloc(sizeof(Model))
        cdef int32_t i
        cdef Py_ssize_t n_in = len(inputs) + len(added_inputs), n_out = len(outputs) + len(added_outputs)
        if m == NULL:
            raise MemoryError
        memset(m, 0, sizeof(Model))
        tf_add64(&live_models, 1)
        m.refs = 1
        self.ptr = m
        encoded = name.encode()
        m.name = copy_text(encoded)
        m.name_len = <unsigned int>len(encoded)
        version_text = str(version).encode()
        m.version_text = copy_text(version_text)
        m.version_len = <unsigned int>len(version_text)
        m.version = version
        m.max_batch = max_batch
        m.decoupled = decoupled
        m.inputs = <IoSpec*>malloc((n_in + 1) * sizeof(IoSpec))
        m.outputs = <IoSpec*>malloc((n_out + 1) * sizeof(IoSpec))
        if m.inputs == NULL or m.outputs == NULL:
            raise MemoryError
        memset(m.inputs, 0, (n_in + 1) * sizeof(IoSpec))
        memset(m.outputs, 0, (n_out + 1) * sizeof(IoSpec))
        # The counts grow with the filling, so that a failure half-way frees exactly what was made.
        for io in (*inputs, *added_inputs):
            i = m.n_all_inputs
            m.n_all_inputs = i + 1
            fill_spec(&m.inputs[i], io)
            if i >= <int32_t>len(inputs):
                continue
            m.n_inputs = i + 1
            if not m.inputs[i].optional:
                m.n_required += 1
            if m.inputs[i].optional or (not m.inputs[i].ragged and -1 in io.dims):
                m.has_shape_key = True
        for io in (*outputs, *added_outputs):
            m.n_all_outputs += 1
            fill_spec(&m.outputs[m.n_all_outputs - 1], io)
        m.n_outputs = <int32_t>len(outputs)

    def __dealloc__(self):
        if self.ptr != NULL and tf_add32(&self.ptr.refs, -1) == 0:
            model_free(self.ptr)

    @property
    def name(self):
        return self.ptr.name[:self.ptr.name_len].decode()

    @property
    def version(self):
        return self.ptr.version


def stats():
    """Return the debug counters: live_requests, live_models."""
    return {"live_requests": tf_load64(&live_requests), "live_models": tf_load64(&live_models)}
