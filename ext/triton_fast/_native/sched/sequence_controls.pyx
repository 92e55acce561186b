# See sequence_controls.pxd. All that is added lies in the request's own memory, which outlives scheduler and model.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from triton_fast._native.core.marks cimport (
    FLAG_PADDING, FLAG_SEQUENCE_END, FLAG_SEQUENCE_START, REQ_RUNNING, T_QUEUED, T_STARTED,
)
from triton_fast._native.core.memory cimport block_new, block_ref, block_unref
from triton_fast._native.core.native cimport (
    DT_STRING, MEM_CPU, TF_INVALID_ARG, dtype_name, tf_error, tf_fail,
)
from triton_fast._native.core.model cimport IoSpec
from triton_fast._native.core.request cimport Request, request_alloc, request_free, request_new
from triton_fast._native.core.tensor cimport Tensor, Wanted
from triton_fast._native.sched.sequence_state cimport states_entry_begin, states_entry_size
from triton_fast._native.sched.sequence_types cimport (
    CONTROL_CORRID, CONTROL_END, CONTROL_READY, CONTROL_START, Control, Entry, MAX_ID, Seat, Sequences,
)

cdef enum:
    VALUE = 8               # bytes of a control, but for a text id

cdef extern from "<stdio.h>" nogil:
    int snprintf(char* target, size_t room, const char* format, ...)


cdef Entry* entry_new(Sequences* q, Request* r) noexcept nogil:
    cdef int32_t i, n = q.model.n_all_inputs, more = q.model.n_all_inputs - q.model.n_inputs
    cdef size_t tensors = <size_t>(r.n_inputs + more) * sizeof(Tensor), places = <size_t>(n + 1) * sizeof(Tensor*)
    cdef size_t values = <size_t>q.n_controls * VALUE + 4 + MAX_ID + 4 if q.n_controls else 0
    cdef char* at = <char*>request_alloc(
        r, sizeof(Entry) + states_entry_size(q) + tensors + places + 2 * sizeof(int64_t) + values)
    cdef Entry* e = <Entry*>at
    cdef Tensor* t
    cdef IoSpec* spec
    if at == NULL:
        return NULL
    e.owner = q
    e.sequence = NULL
    at += sizeof(Entry)
    states_entry_begin(q, e, at)
    at += states_entry_size(q)
    e.inputs = <Tensor*>at
    e.by_index = <Tensor**>(at + tensors)
    e.dims = <int64_t*>(at + tensors + places)
    e.values = <uint8_t*>(e.dims + 2)
    e.n_inputs = r.n_inputs + more
    e.dims[0] = 1
    e.dims[1] = 1
    if r.n_inputs:
        memcpy(e.inputs, r.inputs, <size_t>r.n_inputs * sizeof(Tensor))
    memset(e.by_index, 0, places)
    for i in range(e.n_inputs):
        t = &e.inputs[i]
        if i >= r.n_inputs:
            memset(t, 0, sizeof(Tensor))
            t.index = q.model.n_inputs + i - r.n_inputs
            spec = &q.model.inputs[t.index]
            t.name = spec.name
            t.name_len = spec.name_len
            t.dtype = spec.dtype
            t.ndim = spec.ndim + (1 if q.model.max_batch > 0 else 0)
            t.dims = e.dims         # of states: another when they are filled
            t.kind = MEM_CPU
        e.by_index[t.index] = t
    return e


cdef void entry_use(Request* r, Entry* e) noexcept nogil:
    r.inputs = e.inputs
    r.by_index = e.by_index
    r.n_inputs = e.n_inputs
    r.sched = e


cdef int controls_check(Sequences* q, Request* r, tf_error* e) noexcept nogil:
    cdef int32_t i
    if r.correlation_len == 0:
        return 0
    for i in range(q.n_controls):
        if q.controls[i].kind == CONTROL_CORRID and q.controls[i].dtype != DT_STRING:
            return tf_fail(
                e, TF_INVALID_ARG, b"sequence batching control '%s' data-type is '%s', but model '%s' expects '%s'",
                q.model.inputs[q.controls[i].input].name, dtype_name(DT_STRING), q.model.name,
                dtype_name(q.controls[i].dtype))
    return 0


# The id in wire form at `at`, with room for it; how many bytes.
cdef size_t put_id(Request* r, uint8_t* at) noexcept nogil:
    cdef uint32_t n = r.correlation_len
    if n:
        memcpy(at + 4, r.correlation_text, n)
    elif r.correlation:
        n = <uint32_t>snprintf(<char*>at + 4, MAX_ID, b"%llu", <unsigned long long>r.correlation)
    memcpy(at, &n, 4)
    return 4 + n


cdef void controls_fill(Sequences* q, Request* r) noexcept nogil:
    cdef Entry* e = <Entry*>r.sched
    cdef Control* c
    cdef Tensor* t
    cdef uint8_t* at = e.values
    cdef bint on
    cdef int32_t i
    for i in range(q.n_controls):
        c = &q.controls[i]
        t = r.by_index[c.input]
        t.dims = e.dims
        if c.kind == CONTROL_CORRID:
            # Numbers are cut to the control's size, as Triton does.
            if c.dtype == DT_STRING:
                t.ptr = e.values + <size_t>q.n_controls * VALUE
                t.nbytes = put_id(r, t.ptr)
                continue
            memcpy(at, &r.correlation, 8)
        else:
            on = ((c.kind == CONTROL_READY and not r.flags & FLAG_PADDING)
                  or (c.kind == CONTROL_START and r.flags & FLAG_SEQUENCE_START)
                  or (c.kind == CONTROL_END and r.flags & FLAG_SEQUENCE_END))
            memcpy(at, &c.on[0] if on else &c.off[0], VALUE)
        t.ptr = at
        t.nbytes = <size_t>c.size
        at += VALUE


# ---- padding

# At least n zero bytes.
cdef int need_zeros(Seat* seat, size_t n) noexcept nogil:
    if seat.zeros != NULL and seat.zeros.cap >= n:
        return 0
    block_unref(seat.zeros)     # padding that is still about has its own reference
    seat.zeros = block_new(n)
    if seat.zeros == NULL:
        return -1
    memset(seat.zeros.data, 0, seat.zeros.cap)
    return 0


# Bytes of a tensor of these dims without content: a length for each string.
cdef inline size_t empty_size(const Tensor* t) noexcept nogil:
    cdef size_t n = 4
    cdef int32_t i
    if t.dtype != DT_STRING:
        return t.nbytes
    for i in range(t.ndim):
        n *= <size_t>t.dims[i]      # no more than the bytes that are there
    return n


cdef Request* padding_new(Sequences* q, Seat* seat, Request* like, int64_t now) noexcept nogil:
    cdef Request* r = request_new(q.model)
    cdef Entry* e
    cdef Tensor* t
    cdef int64_t* dims
    cdef size_t most = 8
    cdef int32_t i, ranks = 0
    if r == NULL:
        return NULL
    for i in range(like.n_inputs):
        t = &like.inputs[i]
        most = max(most, empty_size(t))
        ranks += t.ndim
    # Of `like` only what the client sent is copied: its added tensors are at the end.
    r.inputs = like.inputs
    r.n_inputs = like.n_inputs - (q.model.n_all_inputs - q.model.n_inputs)
    e = entry_new(q, r)
    r.inputs = NULL
    r.n_inputs = 0
    dims = <int64_t*>request_alloc(r, <size_t>ranks * sizeof(int64_t))
    if e == NULL or dims == NULL or need_zeros(seat, most) != 0:
        request_free(r)
        return NULL
    for i in range(e.n_inputs):
        t = &e.inputs[i]
        t.block = NULL
        t.kind = MEM_CPU
        t.device = 0
        t.ptr = seat.zeros.data
        t.nbytes = empty_size(&like.inputs[i])
        memcpy(dims, like.inputs[i].dims, <size_t>t.ndim * sizeof(int64_t))
        t.dims = dims
        dims += t.ndim
    block_ref(seat.zeros)
    r.body = seat.zeros
    entry_use(r, e)
    r.flags = FLAG_PADDING
    r.batch = like.batch
    r.shape_key = like.shape_key
    r.state = REQ_RUNNING
    r.sink = &q.drop
    r.stamps[T_QUEUED] = now
    r.stamps[T_STARTED] = now
    r.n_wanted = like.n_wanted
    r.binary_default = like.binary_default
    if like.n_wanted:
        r.wanted = <Wanted*>request_alloc(r, <size_t>like.n_wanted * sizeof(Wanted))
        if r.wanted == NULL:
            r.n_wanted = 0
        else:
            memcpy(r.wanted, like.wanted, <size_t>like.n_wanted * sizeof(Wanted))
    controls_fill(q, r)
    return r
