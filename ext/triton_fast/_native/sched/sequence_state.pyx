# See sequence_state.pxd. A slice of a batch's block keeps the whole block: what is much smaller is copied out of it.
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memcmp, memcpy, memset

from triton_fast._native.core.marks cimport FLAG_SEQUENCE_START
from triton_fast._native.core.memory cimport Block, block_new, block_ref, block_unref
from triton_fast._native.core.native cimport (
    DT_STRING, MEM_CLIENT, MEM_GPU, TF_INTERNAL, TF_OK, TF_UNAVAILABLE, dtype_size, tf_error, tf_fail,
)
from triton_fast._native.core.outputs cimport request_wants
from triton_fast._native.core.request cimport Request, Response, response_fail_error
from triton_fast._native.core.shape cimport mul_overflow
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.sched.sequence_types cimport Entry, Sequence, Sequences, State, StateSpec

cdef enum:
    PINS = 4                # times its own size that a state may keep
    SMALL = 256             # bytes that are not worth a copy


cdef size_t states_size(Sequences* q) noexcept nogil:
    return <size_t>q.n_states * sizeof(State) + <size_t>q.state_ranks * sizeof(int64_t)


# n_states states, then the dims of each.
cdef State* lay_out(Sequences* q, char* at) noexcept nogil:
    cdef State* states = <State*>at
    cdef int64_t* dims = <int64_t*>(at + <size_t>q.n_states * sizeof(State))
    cdef int32_t k
    memset(states, 0, <size_t>q.n_states * sizeof(State))
    for k in range(q.n_states):
        states[k].dims = dims
        dims += q.states[k].ndim
    return states


cdef void states_begin(Sequences* q, Sequence* s) noexcept nogil:
    s.states = lay_out(q, <char*>(s + 1))


cdef size_t states_entry_size(Sequences* q) noexcept nogil:
    return states_size(q) + <size_t>q.state_ranks * sizeof(int64_t)


cdef void states_entry_begin(Sequences* q, Entry* e, char* at) noexcept nogil:
    e.brought = lay_out(q, at)
    e.state_dims = <int64_t*>(at + states_size(q))


cdef inline void let_go(State* state) noexcept nogil:
    block_unref(state.block)
    state.block = NULL
    state.ptr = NULL
    state.nbytes = 0


cdef void states_clear(Sequences* q, Sequence* s) noexcept nogil:
    cdef int32_t k
    for k in range(q.n_states):
        let_go(&s.states[k])


cdef void states_reset(Sequences* q, Sequence* s) noexcept nogil:
    cdef StateSpec* spec
    cdef State* state
    cdef int32_t k
    for k in range(q.n_states):
        spec = &q.states[k]
        state = &s.states[k]
        block_unref(state.block)
        block_ref(spec.first)
        state.block = spec.first
        state.ptr = spec.first.data
        state.nbytes = spec.first_bytes
        memcpy(state.dims, spec.first_dims, <size_t>spec.ndim * sizeof(int64_t))


cdef inline const int64_t* next_dims(Sequences* q, Sequence* s, int32_t k) noexcept nogil:
    return q.states[k].first_dims if s.head.flags & FLAG_SEQUENCE_START else s.states[k].dims


cdef bint states_alike(Sequences* q, Sequence* one, Sequence* other) noexcept nogil:
    cdef int32_t k
    for k in range(q.n_states if q.states_vary else 0):
        if memcmp(next_dims(q, one, k), next_dims(q, other, k), <size_t>q.states[k].ndim * sizeof(int64_t)) != 0:
            return False
    return True


cdef void states_fill(Sequences* q, Sequence* s, Request* r) noexcept nogil:
    cdef int64_t* dims = (<Entry*>r.sched).state_dims
    cdef StateSpec* spec
    cdef Tensor* t
    cdef int32_t k
    for k in range(q.n_states):
        spec = &q.states[k]
        t = r.by_index[spec.input]
        block_unref(t.block)        # of its execution before, if it comes again
        t.block = s.states[k].block
        block_ref(t.block)
        t.ptr = s.states[k].ptr
        t.nbytes = s.states[k].nbytes
        t.dims = dims
        memcpy(dims, s.states[k].dims, <size_t>spec.ndim * sizeof(int64_t))
        dims += spec.ndim


# Whether the output may be a state: then it is this many bytes at least. 0, or -1.
cdef int check(StateSpec* spec, Tensor* t) noexcept nogil:
    cdef int64_t count = 1
    cdef int32_t i
    if t.dtype != spec.dtype or t.ndim != spec.ndim or t.kind == MEM_GPU:
        return -1
    for i in range(t.ndim):
        if t.dims[i] < 0 or (spec.dims[i] >= 0 and t.dims[i] != spec.dims[i]) or mul_overflow(count, t.dims[i], &count):
            return -1
    if spec.dtype == DT_STRING:
        return 0
    return 0 if not mul_overflow(count, dtype_size(spec.dtype), &count) and <size_t>count == t.nbytes else -1


# The tensor's memory for a state: its own block, or a copy where it has none or keeps too much. NULL: out of memory.
cdef Block* keep(Tensor* t) noexcept nogil:
    cdef Block* block
    # Not memory that its client may still write.
    if t.block != NULL and t.block.kind != MEM_CLIENT and (
            t.block.cap <= SMALL or t.block.cap // PINS <= t.nbytes):
        block_ref(t.block)
        return t.block
    block = block_new(t.nbytes)
    if block != NULL and t.nbytes:
        memcpy(block.data, t.ptr, t.nbytes)
    return block


cdef int take_one(Sequences* q, Entry* e, Response* p, StateSpec* spec, State* state, Tensor* t) noexcept nogil:
    cdef tf_error error
    cdef Request* r = e.tap.request
    cdef Block* block
    if check(spec, t) != 0:
        tf_fail(&error, TF_INTERNAL, b"state output '%s' of model '%s' does not have the data type and shape that its "
                b"configuration gives it", r.model.outputs[spec.output].name, r.model.name)
        response_fail_error(p, &error)
        return -1
    block = keep(t)
    if block == NULL:
        tf_fail(&error, TF_UNAVAILABLE, b"out of memory for state output '%s'", r.model.outputs[spec.output].name)
        response_fail_error(p, &error)
        return -1
    let_go(state)
    state.block = block
    state.ptr = t.ptr if block == t.block else block.data
    state.nbytes = t.nbytes
    memcpy(state.dims, t.dims, <size_t>spec.ndim * sizeof(int64_t))
    return 0


cdef void states_take(Sequences* q, Entry* e, Response* p) noexcept nogil:
    cdef Request* r = e.tap.request
    cdef Tensor* t
    cdef int32_t i, k, n = 0
    if p.code != TF_OK:
        return
    for i in range(p.n_outputs):
        t = &p.outputs[i]
        for k in range(q.n_states):
            if q.states[k].output == t.index:
                if take_one(q, e, p, &q.states[k], &e.brought[k], t) != 0:
                    return
    for i in range(p.n_outputs):
        t = &p.outputs[i]
        if r.model.outputs[t.index].kept and (t.index >= r.model.n_outputs or not request_wants(r, t.index)):
            block_unref(t.block)
            continue
        p.outputs[n] = t[0]
        n += 1
    p.n_outputs = n


cdef void states_commit(Sequences* q, Sequence* s, Entry* e) noexcept nogil:
    cdef int32_t k
    cdef State* state
    for k in range(q.n_states):
        state = &e.brought[k]
        if state.block == NULL:
            continue
        block_unref(s.states[k].block)
        s.states[k].block = state.block
        s.states[k].ptr = state.ptr
        s.states[k].nbytes = state.nbytes
        memcpy(s.states[k].dims, state.dims, <size_t>q.states[k].ndim * sizeof(int64_t))
        state.block = NULL


cdef void states_drop(Sequences* q, Entry* e) noexcept nogil:
    cdef int32_t k
    for k in range(q.n_states):
        let_go(&e.brought[k])
