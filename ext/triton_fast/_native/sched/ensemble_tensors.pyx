# See ensemble_tensors.pxd.
# Memory that others may still write to, a client's or that of a Python model's worker, is passed on like any other:
# whoever looks at it more than once gets a copy (NativeInstance.copies_from). Sizes and shapes are the server's own,
# and strings, whose lengths lie among the data, were copied when they came.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from triton_fast._native.core.marks cimport (
    FLAG_DEVICE, FLAG_LENT, FLAG_SEQUENCE_END, FLAG_SEQUENCE_START, T_DECODED, T_RECEIVED, WATCH_TRACE,
)
from triton_fast._native.core.memory cimport Block, block_new, block_ref
from triton_fast._native.core.native cimport MEM_CLIENT, TF_INVALID_ARG, TF_UNAVAILABLE, tf_error, tf_fail
from triton_fast._native.core.model cimport IoSpec, Model
from triton_fast._native.core.outputs cimport request_wants
from triton_fast._native.core.request cimport (
    Request, Response, request_alloc, request_free, request_new, response_outputs,
)
from triton_fast._native.core.tensor cimport PARAM_BOOL, PARAM_INT, PARAM_STRING, PARAM_UINT, Param, Tensor, Wanted
from triton_fast._native.core.tracing cimport trace_child
from triton_fast._native.core.validate cimport request_validate
from triton_fast._native.sched.ensemble_plan cimport Member, PlanStep
from triton_fast._native.sched.ensemble_run cimport Exec, Frame, Run
from triton_fast._native.sched.ensemble_slot cimport Mark, Slot


cdef bint agree(const int64_t* config, int32_t n_config, const int64_t* dims, int32_t n) noexcept nogil:
    cdef int32_t i
    if n != n_config:
        return False
    for i in range(n):
        if config[i] != dims[i] and config[i] >= 0 and dims[i] >= 0:
            return False
    return True


# Give t dims of its own, in r's memory. Between a model with a batch dimension and one without, a dimension of 1 is put
# before dims that fit as they are, or taken from dims that do not. -1: memory ran out.
cdef int set_dims(Request* r, Tensor* t, const int64_t* config, int32_t n_config, bint batching,
                  int64_t rows) noexcept nogil:
    cdef const int64_t* given = t.dims
    cdef int32_t n = t.ndim
    cdef int64_t* dims
    dims = <int64_t*>request_alloc(r, (<size_t>n + 1) * sizeof(int64_t))
    if dims == NULL:
        return -1
    t.dims = dims
    if config != NULL and batching and rows == 0 and agree(config, n_config, given, n):
        dims[0] = 1
        dims += 1
        t.ndim = n + 1
    elif config != NULL and not batching and rows == 1 and n > 0 and given[0] == 1 \
            and not agree(config, n_config, given, n):
        given += 1
        n -= 1
        t.ndim = n
    if n:
        memcpy(dims, given, <size_t>n * sizeof(int64_t))
    return 0


# The block that keeps t's memory, not counted anew; NULL: it lies in the arena of what made it.
cdef Block* block_of(Tensor* t, Request* owner) noexcept nogil:
    if t.block != NULL:
        return t.block
    if t.nbytes and owner.body != NULL and owner.body.data <= t.ptr < owner.body.data + owner.body.cap:
        return owner.body
    return NULL


cdef inline Request* owner_of(Run* run, Slot* slot) noexcept nogil:
    return slot.owner if slot.owner != NULL else run.request


# --- steps ------------------------------------------------------------------------------------------------------------

# The sequence that x belongs to: the client's, unless an input comes from a step that said otherwise. The first says.
cdef void set_mark(Exec* x, PlanStep* s) noexcept nogil:
    cdef Request* r = x.run.request
    cdef Slot* slot
    cdef int32_t i
    for i in range(s.n_takes):
        slot = slot_of(x.run, x.frame, s.takes[i])
        if slot.marked:
            x.mark = slot.mark
            return
    x.mark.correlation = r.correlation
    x.mark.text = r.correlation_text
    x.mark.text_len = r.correlation_len
    x.mark.flags = r.flags & (FLAG_SEQUENCE_START | FLAG_SEQUENCE_END)


# One input of a step's request.
cdef int add_input(Exec* x, PlanStep* s, Member* m, Request* c, int32_t i) noexcept nogil:
    cdef Slot* slot = slot_of(x.run, x.frame, s.input_tensor[i])
    cdef IoSpec* spec = &m.model.inputs[m.inputs[i]] if m.inputs[i] >= 0 else NULL
    cdef Tensor* t
    if slot.tensor == NULL:
        return 0
    t = &c.inputs[c.n_inputs]
    t[0] = slot.tensor[0]
    t.name = s.inputs[i].text
    t.name_len = s.inputs[i].len
    t.index = -1
    # What has no block lies in the memory of a request that lives until this one is back.
    t.block = block_of(slot.tensor, owner_of(x.run, slot))
    if t.block != NULL:
        block_ref(t.block)
        if t.block.kind == MEM_CLIENT:      # the ensemble's client's, or that of the worker that made it
            c.flags |= FLAG_LENT
    c.n_inputs += 1
    return set_dims(c, t, spec.dims if spec != NULL else NULL, spec.ndim if spec != NULL else 0,
                    m.model.max_batch > 0, slot.rows)


cdef int add_wanted(PlanStep* s, Request* c) noexcept nogil:
    cdef int32_t i
    c.wanted = <Wanted*>request_alloc(c, (<size_t>s.n_outputs + 1) * sizeof(Wanted))
    if c.wanted == NULL:
        return -1
    for i in range(s.n_outputs):
        c.wanted[i].name = s.outputs[i].text
        c.wanted[i].name_len = s.outputs[i].len
        c.wanted[i].index = -1
        c.wanted[i].binary = -1
        c.wanted[i].classes = 0
    c.n_wanted = s.n_outputs
    return 0


# How many responses of x may be on their way to where they are used up; 0: any number.
cdef int32_t stream_limit(Exec* x, Member* m) noexcept nogil:
    cdef int32_t most = x.run.request.max_responses, other = x.run.ensemble.max_inflight
    if m.loops:
        return 0
    if most == 0 or (other != 0 and other < most):
        most = other
    return most


cdef Request* child_new(Exec* x, Member* m, tf_error* e) noexcept nogil:
    cdef Request* r = x.run.request
    cdef PlanStep* s = &x.run.ensemble.plan.steps[x.step]
    cdef Request* c = request_new(m.model)
    cdef int32_t i, status = 0
    if c == NULL:
        tf_fail(e, TF_UNAVAILABLE, b"out of memory")
        return NULL
    set_mark(x, s)
    c.sink = &x.sink
    c.ctx = x
    c.stamps[T_RECEIVED] = r.stamps[T_RECEIVED]
    c.stamps[T_DECODED] = r.stamps[T_DECODED]
    # Texts and parameters are the ensemble's request's, which is answered after all of its steps.
    c.id = r.id
    c.id_len = r.id_len
    c.params = r.params
    c.priority = r.priority
    c.timeout_us = r.timeout_us
    c.correlation = x.mark.correlation
    c.correlation_text = x.mark.text
    c.correlation_len = x.mark.text_len
    c.flags = x.mark.flags | (r.flags & FLAG_DEVICE)
    if s.opens >= 0:
        c.max_responses = stream_limit(x, m)
    c.inputs = <Tensor*>request_alloc(c, (<size_t>s.n_inputs + 1) * sizeof(Tensor))
    if c.inputs == NULL:
        status = -1
    for i in range(s.n_inputs):
        if status == 0:
            status = add_input(x, s, m, c, i)
    if status == 0 and not m.all_outputs:
        status = add_wanted(s, c)
    if status != 0:
        tf_fail(e, TF_UNAVAILABLE, b"out of memory")
    elif request_validate(c, e) == 0:
        if r.watch & WATCH_TRACE:
            trace_child(r, c)
        return c
    request_free(c)
    return NULL


# --- sequences --------------------------------------------------------------------------------------------------------

cdef inline bint named(Param* q, const char* name, size_t n) noexcept nogil:
    return q.key_len == n and memcmp(q.key, name, n) == 0


cdef int read_flag(Param* q, Mark* mark, uint32_t flag, const char* name, tf_error* e) noexcept nogil:
    if q.kind != PARAM_BOOL:
        return tf_fail(e, TF_INVALID_ARG, b"expect parameter '%s' to be TRITONSERVER_PARAMETER_BOOL", name)
    if q.integer:
        mark.flags |= flag
    return 0


cdef int read_mark(Response* p, Mark* mark, tf_error* e) noexcept nogil:
    cdef Param* q = p.params
    cdef Mark told = mark[0]
    cdef int found = 0
    told.flags = 0
    while q != NULL:
        if named(q, b"sequence_id", 11):
            found = 1
            if q.kind == PARAM_STRING:
                told.text = q.text
                told.text_len = q.text_len
                told.correlation = 0
            elif q.kind == PARAM_INT or q.kind == PARAM_UINT:
                told.text = NULL
                told.text_len = 0
                told.correlation = <uint64_t>q.integer
            else:
                return tf_fail(e, TF_INVALID_ARG, b"expected parameter 'sequence_id' to be "
                               b"TRITONSERVER_PARAMETER_INT or TRITONSERVER_PARAMETER_STRING")
        elif named(q, b"sequence_start", 14):
            found = 1
            if read_flag(q, &told, FLAG_SEQUENCE_START, b"sequence_start", e) != 0:
                return -1
        elif named(q, b"sequence_end", 12):
            found = 1
            if read_flag(q, &told, FLAG_SEQUENCE_END, b"sequence_end", e) != 0:
                return -1
        q = q.next
    if found:
        mark[0] = told
    return found


# --- the answer -------------------------------------------------------------------------------------------------------

cdef int say_mark(Response* p, Mark* mark) noexcept nogil:
    cdef Param* q = <Param*>request_alloc(p.request, 3 * sizeof(Param))
    cdef char* text
    if q == NULL:
        return -1
    memset(q, 0, 3 * sizeof(Param))
    p.params = q
    q[0].next = &q[1]
    q[1].next = &q[2]
    q[0].key = b"sequence_id"
    q[0].key_len = 11
    q[0].kind = PARAM_INT
    q[0].integer = <int64_t>mark.correlation
    if mark.text != NULL:
        text = <char*>request_alloc(p.request, mark.text_len)
        if text == NULL:
            return -1
        memcpy(text, mark.text, mark.text_len)
        q[0].kind = PARAM_STRING
        q[0].text = text
        q[0].text_len = mark.text_len
    q[1].key = b"sequence_start"
    q[1].key_len = 14
    q[1].kind = PARAM_BOOL
    q[1].integer = mark.flags & FLAG_SEQUENCE_START != 0
    q[2].key = b"sequence_end"
    q[2].key_len = 12
    q[2].kind = PARAM_BOOL
    q[2].integer = mark.flags & FLAG_SEQUENCE_END != 0
    return 0


cdef int add_output(Run* run, Slot* slot, Response* p, Tensor* t, int32_t k) noexcept nogil:
    cdef Model* model = run.request.model
    cdef IoSpec* spec = &model.outputs[k]
    cdef Request* owner = owner_of(run, slot)
    t[0] = slot.tensor[0]
    t.index = k
    t.name = spec.name
    t.name_len = spec.name_len
    t.block = block_of(slot.tensor, owner)
    if t.block != NULL:
        block_ref(t.block)
    elif t.nbytes:          # a small tensor in an arena, which is gone soon
        t.block = block_new(t.nbytes)
        if t.block == NULL:
            return -1
        memcpy(t.block.data, t.ptr, t.nbytes)
        t.ptr = t.block.data
    if spec.reshape_ndim >= 0:
        return set_dims(p.request, t, spec.reshape, spec.reshape_ndim, model.max_batch > 0, slot.rows)
    return set_dims(p.request, t, spec.dims, spec.ndim, model.max_batch > 0, slot.rows)


cdef int fill_answer(Run* run, Frame* frame, Response* p) noexcept nogil:
    cdef Request* r = run.request
    cdef int32_t k, n = 0
    cdef bint marked = False
    cdef Slot* slot
    cdef Tensor* t = response_outputs(p, r.model.n_outputs)
    if t == NULL:
        return -1
    p.n_outputs = 0
    for k in range(r.model.n_outputs):
        if not request_wants(r, k):
            continue
        slot = slot_of(run, frame, run.ensemble.plan.output_tensor[k])
        if slot.tensor == NULL:
            continue
        p.n_outputs = n + 1
        if add_output(run, slot, p, &t[n], k) != 0:
            return -1
        n += 1
        if slot.marked and not marked:
            marked = True
            if say_mark(p, &slot.mark) != 0:
                return -1
    return 0
