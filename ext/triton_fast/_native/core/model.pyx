# Making and freeing models; counted, so that tests can see that every one goes.
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from triton_fast._native.core.native cimport tf_add32, tf_add64, tf_load64

from triton_fast.errors import InvalidArg

cdef int64_t live_models = 0


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


# Backends have room for so many dimensions of what a config says, and a batch dimension.
cdef int check_rank(object io) except -1:
    for dims in (io.dims, io.reshape or ()):
        if len(dims) > MAX_RANK:
            raise InvalidArg(f"'{io.name}' has {len(dims)} dimensions, the limit is {MAX_RANK}")
    return 0


cdef int fill_spec(IoSpec* s, object io) except -1:
    name = io.name.encode()
    check_rank(io)
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
    """Return the debug counter live_models."""
    return {"live_models": tf_load64(&live_models)}
