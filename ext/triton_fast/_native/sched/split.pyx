# Cutting, joining, and what may happen between; see split.pxd. Parts have max_batch rows each but for the last, as a
# client would cut them. Knows no queue and no protocol.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy, memset

from triton_fast._native.core.marks cimport (
    FLAG_DEVICE, FLAG_PART, FLAG_REST, REQ_CANCELLED, REQ_DONE, REQ_NEW, REQ_QUEUED, T_COMPUTED, T_COUNT, T_INPUT,
    T_OUTPUT, T_QUEUED, T_STARTED,
)
from triton_fast._native.core.memory cimport Block, block_new, block_ref, block_unref
from triton_fast._native.core.native cimport (
    DT_STRING, MEM_GPU, TF_INTERNAL, TF_OK, TF_UNAVAILABLE, TF_UNSUPPORTED, now_ns, tf_add32, tf_error, tf_fail,
    tf_fence, tf_load32, tf_lock, tf_store32, tf_unlock,
)
from triton_fast._native.core.request cimport (
    Request, Response, Sink, request_alloc, request_free, request_new, response_fail,
)
from triton_fast._native.core.stats cimport (
    FAIL_CANCELED, FAIL_REJECTED, N_PHASES, PHASE_INFER, PHASE_INPUT, PHASE_OUTPUT, PHASE_QUEUE, PHASE_REQUEST,
    stats_failure,
)
from triton_fast._native.core.tensor cimport PARAM_STRING, Param, Tensor, Wanted
from triton_fast._native.sched.fetch cimport fetch_texts
from triton_fast._native.sched.instance cimport request_count
from triton_fast._native.sched.model cimport NativeModel
from triton_fast._native.sched.scheduler cimport SUBMIT_OK, SUBMIT_REFUSED, NativeScheduler, Scheduler, layer_begin

cdef enum:
    ALIGN = 64


cdef inline int64_t rows_of(Split* s, int32_t k) noexcept nogil:
    cdef int64_t most = s.whole.model.max_batch
    return most if k + 1 < s.n else s.whole.batch - most * (s.n - 1)


# ---- cutting

# Where each part of t begins, n + 1 offsets in bytes; NULL: memory ran out or the bytes are not what was validated.
cdef size_t* offsets_of(Split* s, Tensor* t) noexcept nogil:
    cdef size_t* at = <size_t*>request_alloc(s.whole, <size_t>(s.n + 1) * sizeof(size_t))
    cdef size_t row, off = 0
    cdef int64_t each = 1, _
    cdef int32_t k
    cdef uint32_t length = 0
    if at == NULL:
        return NULL
    if t.dtype != DT_STRING:
        row = t.nbytes // <size_t>s.whole.batch
        for k in range(s.n):
            at[k] = row * <size_t>(s.whole.model.max_batch * k)
        at[s.n] = t.nbytes
        return at
    if t.kind == MEM_GPU:
        return NULL
    for k in range(1, t.ndim):
        each *= t.dims[k]
    for k in range(s.n):
        at[k] = off
        for _ in range(each * rows_of(s, k)):
            if t.nbytes - off < 4:
                return NULL
            memcpy(&length, t.ptr + off, 4)
            if length > t.nbytes - off - 4:
                return NULL
            off += 4 + <size_t>length
    at[s.n] = off
    return at


cdef const char* copy_text(Request* r, const char* text, size_t n) noexcept nogil:
    cdef char* copy = <char*>request_alloc(r, n + 1)
    if copy != NULL and n:
        memcpy(copy, text, n)
    return copy


cdef int copy_lent(Split* s) noexcept nogil:
    cdef Request* w = s.whole
    cdef int32_t i
    s.id = copy_text(w, w.id, w.id_len)
    s.correlation_text = copy_text(w, w.correlation_text, w.correlation_len)
    s.wanted = <Wanted*>request_alloc(w, <size_t>(w.n_wanted + 1) * sizeof(Wanted))
    if s.id == NULL or s.correlation_text == NULL or s.wanted == NULL:
        return -1
    for i in range(w.n_wanted):
        s.wanted[i] = w.wanted[i]
        s.wanted[i].name = w.model.outputs[w.wanted[i].index].name
    return 0


# The request of part k, with inputs[i] cut at offsets[i]. It borrows what the whole borrows.
cdef Request* make_part(Split* s, int32_t k, size_t** offsets) noexcept nogil:
    cdef Request* w = s.whole
    cdef Request* r = request_new(w.model)
    cdef Tensor* t
    cdef int32_t i
    if r == NULL:
        return NULL
    r.inputs = <Tensor*>request_alloc(r, <size_t>(w.n_inputs + 1) * sizeof(Tensor))
    r.by_index = <Tensor**>request_alloc(r, <size_t>(w.model.n_all_inputs + 1) * sizeof(Tensor*))
    if r.inputs == NULL or r.by_index == NULL:
        request_free(r)
        return NULL
    memset(r.by_index, 0, <size_t>(w.model.n_all_inputs + 1) * sizeof(Tensor*))
    for i in range(w.n_inputs):
        t = &r.inputs[i]
        t[0] = w.inputs[i]
        t.name = w.model.inputs[t.index].name
        t.dims = <int64_t*>request_alloc(r, <size_t>t.ndim * sizeof(int64_t))
        if t.dims == NULL:
            request_free(r)
            return NULL
        memcpy(t.dims, w.inputs[i].dims, <size_t>t.ndim * sizeof(int64_t))
        t.dims[0] = rows_of(s, k)
        if t.ptr != NULL:
            t.ptr += offsets[i][k]
        t.nbytes = offsets[i][k + 1] - offsets[i][k]
        if t.block != NULL:
            block_ref(t.block)
        r.n_inputs = i + 1
        r.by_index[t.index] = t
    if w.body != NULL:
        block_ref(w.body)
        r.body = w.body
    memcpy(r.stamps, w.stamps, sizeof(r.stamps))
    for i in range(T_STARTED, T_COUNT):
        r.stamps[i] = 0
    r.id = s.id
    r.id_len = w.id_len
    r.flags = w.flags | FLAG_PART | (FLAG_REST if k else 0)
    r.correlation = w.correlation
    r.correlation_text = s.correlation_text
    r.correlation_len = w.correlation_len
    r.n_wanted = w.n_wanted
    r.wanted = s.wanted
    r.binary_default = w.binary_default
    r.batch = rows_of(s, k)
    r.shape_key = w.shape_key
    r.priority = w.priority
    r.timeout_us = w.timeout_us
    r.params = w.params
    r.trace = w.trace
    r.trace_len = w.trace_len
    r.sink = &s.parts[k].sink
    return r


cdef void free_parts(Split* s) noexcept nogil:
    cdef int32_t k
    for k in range(s.n):
        if s.parts[k].request != NULL:
            request_free(s.parts[k].request)
            s.parts[k].request = NULL


# All parts of r, made and not submitted; NULL: memory ran out, or an input can not be read from here.
cdef Split* cut(Scheduler* layer, Request* r) noexcept nogil:
    cdef Split* s = <Split*>request_alloc(r, sizeof(Split))
    cdef size_t** offsets = <size_t**>request_alloc(r, <size_t>(r.n_inputs + 1) * sizeof(size_t*))
    cdef int32_t i, k
    if s == NULL or offsets == NULL:
        return NULL
    memset(s, 0, sizeof(Split))
    s.layer = layer
    s.whole = r
    s.n = <int32_t>((r.batch + r.model.max_batch - 1) // r.model.max_batch)
    s.parts = <Part*>request_alloc(r, <size_t>s.n * sizeof(Part))
    if s.parts == NULL or copy_lent(s) != 0:
        return NULL
    memset(s.parts, 0, <size_t>s.n * sizeof(Part))
    for i in range(r.n_inputs):
        offsets[i] = offsets_of(s, &r.inputs[i])
        if offsets[i] == NULL:
            return NULL
    for k in range(s.n):
        s.parts[k].sink.deliver = part_deliver
        s.parts[k].split = s
        s.parts[k].request = make_part(s, k, offsets)
        if s.parts[k].request == NULL:
            free_parts(s)
            return NULL
    return s


# ---- joining

# "output 'X' of model 'm' <what>"
cdef int fail_output(Split* s, Tensor* t, const char* what, tf_error* e) noexcept nogil:
    cdef const char* name = b"?"
    cdef int n = 1
    if 0 <= t.index < s.whole.model.n_outputs:
        name = s.whole.model.outputs[t.index].name
        n = <int>min(s.whole.model.outputs[t.index].name_len, <uint32_t>256)
    return tf_fail(e, TF_UNSUPPORTED, "the request was cut into parts of at most %lld rows, and output '%.*s' of model "
                   "'%.*s' %s", <long long>s.whole.model.max_batch, n, name,
                   <int>min(s.whole.model.name_len, <uint32_t>256), s.whole.model.name, what)


# Whether output i of all parts is one tensor, cut: fills its shape (of which dims[0] is the sum) and bytes.
cdef int agree(Split* s, int32_t i, Tensor* out, tf_error* e) noexcept nogil:
    cdef Tensor* model = &s.parts[0].request.response.outputs[i]
    cdef Tensor* t
    cdef int32_t k, d
    out.nbytes = 0
    out.dims[0] = 0
    for k in range(s.n):
        t = &s.parts[k].request.response.outputs[i]
        if t.index != model.index or t.dtype != model.dtype or t.ndim != model.ndim:
            return fail_output(s, t, b"differs between the parts in datatype or rank", e)
        if t.ndim < 1 or t.dims[0] != s.parts[k].request.batch:
            return fail_output(s, t, b"does not have one row for each row of the part", e)
        if t.kind == MEM_GPU:
            return fail_output(s, t, b"lies in GPU memory", e)
        for d in range(1, t.ndim):
            if t.dims[d] != model.dims[d]:
                return fail_output(s, t, b"has another shape for one part than for another: all dimensions but the "
                                   b"first must agree", e)
        out.dims[0] += t.dims[0]
        out.nbytes += t.nbytes
    return 0


cdef inline size_t aligned(size_t n) noexcept nogil:
    return (n + ALIGN - 1) & ~<size_t>(ALIGN - 1)


cdef int copy_params(Request* r, Param* p) noexcept nogil:
    cdef Param** link = &r.response.params
    cdef Param* q
    while p != NULL:
        q = <Param*>request_alloc(r, sizeof(Param) + p.key_len + p.text_len)
        if q == NULL:
            return -1
        q[0] = p[0]
        q.next = NULL
        q.key = <char*>q + sizeof(Param)
        memcpy(<char*>q.key, p.key, p.key_len)
        if p.kind == PARAM_STRING and p.text_len:
            q.text = q.key + p.key_len
            memcpy(<char*>q.text, p.text, p.text_len)
        link[0] = q
        link = &q.next
        p = p.next
    return 0


# Fill the whole's response from the parts': all outputs in one block, copied once.
cdef int join_parts(Split* s, tf_error* e) noexcept nogil:
    cdef Request* r = s.whole
    cdef Response* first = &s.parts[0].request.response
    cdef int32_t i, k, n = first.n_outputs
    cdef Tensor* out = <Tensor*>request_alloc(r, <size_t>n * sizeof(Tensor))
    cdef Tensor* t
    cdef size_t total = 0
    cdef Block* block
    cdef uint8_t* at
    if out == NULL or copy_params(r, first.params) != 0:
        return tf_fail(e, TF_UNAVAILABLE, "out of memory")
    for k in range(s.n):
        if s.parts[k].request.response.n_outputs != n:
            return tf_fail(e, TF_INTERNAL, "the parts of a request that was cut have different numbers of outputs")
    for i in range(n):
        out[i] = first.outputs[i]
        out[i].name = NULL
        out[i].name_len = 0
        out[i].block = NULL
        out[i].dims = <int64_t*>request_alloc(r, <size_t>(out[i].ndim + 1) * sizeof(int64_t))
        if out[i].dims == NULL:
            return tf_fail(e, TF_UNAVAILABLE, "out of memory")
        memcpy(out[i].dims, first.outputs[i].dims, <size_t>out[i].ndim * sizeof(int64_t))
        if agree(s, i, &out[i], e) != 0:
            return -1
        total += aligned(out[i].nbytes)     # all of it is in memory already
    block = block_new(total)
    if block == NULL:
        return tf_fail(e, TF_UNAVAILABLE, "out of memory")
    at = block.data
    for i in range(n):
        out[i].ptr = at
        out[i].block = block
        out[i].kind = block.kind
        out[i].device = block.device
        block_ref(block)
        for k in range(s.n):
            t = &s.parts[k].request.response.outputs[i]
            if t.nbytes:
                memcpy(at, t.ptr, t.nbytes)
            at += t.nbytes
        at = out[i].ptr + aligned(out[i].nbytes)
    block_unref(block)
    r.response.outputs = out
    r.response.n_outputs = n
    return 0


# ---- ends. Each is reached once: by whoever set `ended`.

# From the first part's start to the last one's end.
cdef void stamp(Split* s) noexcept nogil:
    cdef Request* r = s.whole
    cdef int64_t* p
    cdef int32_t k
    memcpy(&r.stamps[T_STARTED], &s.parts[0].request.stamps[T_STARTED], 3 * sizeof(int64_t))
    for k in range(1, s.n):
        p = s.parts[k].request.stamps
        r.stamps[T_STARTED] = min(r.stamps[T_STARTED], p[T_STARTED])
        r.stamps[T_INPUT] = min(r.stamps[T_INPUT], p[T_INPUT])
        r.stamps[T_COMPUTED] = max(r.stamps[T_COMPUTED], p[T_COMPUTED])


cdef void deliver_whole(Request* r) noexcept nogil:
    tf_store32(&r.state, REQ_DONE)
    r.response.next = NULL
    r.sink.deliver(r.sink, &r.response, &r.response)


# Make the whole's response; it is delivered later.
cdef void succeed(Split* s) noexcept nogil:
    cdef Request* r = s.whole
    cdef int64_t[N_PHASES] phase
    cdef tf_error e
    cdef int64_t done
    if join_parts(s, &e) != 0:
        response_fail(&r.response, e.code, e.text, e.len)
    stamp(s)
    done = now_ns()
    r.stamps[T_OUTPUT] = done
    phase[PHASE_REQUEST] = done - r.stamps[T_QUEUED]
    phase[PHASE_QUEUE] = r.stamps[T_STARTED] - r.stamps[T_QUEUED]
    phase[PHASE_INPUT] = r.stamps[T_INPUT] - r.stamps[T_STARTED]
    phase[PHASE_INFER] = r.stamps[T_COMPUTED] - r.stamps[T_INPUT]
    phase[PHASE_OUTPUT] = done - r.stamps[T_COMPUTED]
    tf_lock(&s.layer.stats.lock)
    request_count(s.layer.stats, r, phase)
    tf_unlock(&s.layer.stats.lock)


# reason: FAIL_REJECTED for what never ran; -1: by the error's code.
cdef void fail(Split* s, int32_t code, const char* text, size_t n, int reason) noexcept nogil:
    cdef Request* r = s.whole
    cdef int64_t[N_PHASES] phase
    response_fail(&r.response, code, text, n)
    memset(phase, 0, sizeof(phase))
    phase[PHASE_REQUEST] = now_ns() - r.stamps[T_QUEUED]
    if reason >= 0:
        stats_failure(s.layer.stats, reason, phase[PHASE_REQUEST])
    else:
        tf_lock(&s.layer.stats.lock)
        request_count(s.layer.stats, r, phase)
        tf_unlock(&s.layer.stats.lock)
    deliver_whole(r)


cdef bint end(Split* s) noexcept nogil:
    cdef bint mine
    tf_lock(&s.lock)
    mine = not s.ended
    tf_store32(&s.ended, True)
    tf_unlock(&s.lock)
    return mine


# n parts are back, or a thread has done its work; the last to go cleans up.
cdef void let_go(Split* s, int32_t n) noexcept nogil:
    cdef Request* whole = s.whole
    cdef bint is_last, mine
    tf_lock(&s.lock)
    s.left -= n
    is_last = s.left == 0
    mine = is_last and not s.ended
    if mine:
        tf_store32(&s.ended, True)
    tf_unlock(&s.lock)
    if not is_last:
        return
    if mine:
        succeed(s)
    # Before the answer: what its client does next, to a region say, finds the request's memory free.
    free_parts(s)
    request_free(whole)     # our hold; the last one if the answer went before
    if mine:
        deliver_whole(whole)


# Take a part back that nobody needs any more, or tell who runs it. How many came back: 0 or 1.
cdef inline int32_t withdraw(Split* s, Part* p) noexcept nogil:
    cdef Scheduler* inner = s.layer.inner
    if not tf_load32(&p.submitted) or tf_load32(&p.arrived) or not inner.cancel(inner, p.request, True):
        return 0
    tf_store32(&p.arrived, True)
    return 1


# After `ended` was set. The caller is a thread at work, so that this never lets the last one go.
cdef void withdraw_all(Split* s) noexcept nogil:
    cdef int32_t k, n = 0
    tf_fence()              # a part that is not seen as submitted will see that it has ended
    for k in range(s.n):
        n += withdraw(s, &s.parts[k])
    tf_lock(&s.lock)
    s.left -= n
    tf_unlock(&s.lock)


cdef void part_deliver(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Part* p = <Part*>sink
    cdef Split* s = p.split
    tf_store32(&p.arrived, True)
    if last.code != TF_OK and end(s):
        fail(s, last.code, last.text, last.text_len, FAIL_REJECTED if p.request.stamps[T_STARTED] == 0 else -1)
        withdraw_all(s)
    let_go(s, 1)


# ---- the layer

cdef int split_submit(Scheduler* layer, Request* r, bint* wake, tf_error* e) noexcept nogil:
    cdef Scheduler* inner = layer.inner
    cdef Split* s
    cdef Part* p
    cdef bint more = False
    cdef int32_t k = 0, status
    r.cut = NULL
    if r.batch <= r.model.max_batch:
        return inner.submit(inner, r, wake, e)
    wake[0] = False
    # A text's length tells where the next one begins.
    if r.flags & FLAG_DEVICE and fetch_texts(r, e) != 0:
        return SUBMIT_REFUSED
    s = cut(layer, r)
    if s == NULL:
        tf_fail(e, TF_UNAVAILABLE, "the request can not be cut into parts: out of memory, or a string input is not "
                "in memory that the server can read")
        return SUBMIT_REFUSED
    if r.stamps[T_QUEUED] == 0:
        r.stamps[T_QUEUED] = now_ns()
    tf_add32(&r.holds, 1)
    s.left = s.n + 1        # this thread too
    r.cut = s
    tf_store32(&r.state, REQ_QUEUED)
    while k < s.n and not tf_load32(&s.ended):
        p = &s.parts[k]
        p.request.stamps[T_QUEUED] = r.stamps[T_QUEUED]
        status = inner.submit(inner, p.request, &more, e)
        if more:
            wake[0] = True
        if status != SUBMIT_OK and k == 0:
            # Nothing has begun: the request is refused as any other.
            free_parts(s)
            r.cut = NULL
            tf_store32(&r.state, REQ_NEW)
            tf_add32(&r.holds, -1)
            return status
        if status != SUBMIT_OK:
            if end(s):
                fail(s, e.code, e.text, e.len, FAIL_REJECTED)
                withdraw_all(s)
            break
        k += 1
        tf_store32(&p.submitted, True)
        tf_fence()
        if tf_load32(&s.ended) and withdraw(s, p):
            let_go(s, 1)
    let_go(s, 1 + s.n - k)
    return SUBMIT_OK


cdef bint all_queued(Split* s) noexcept nogil:
    cdef int32_t k
    for k in range(s.n):
        if not tf_load32(&s.parts[k].submitted) or tf_load32(&s.parts[k].request.state) != REQ_QUEUED:
            return False
    return True


# Told that nobody wants it, a request is given up although some of its parts run: they end unseen.
cdef bint split_cancel(Scheduler* layer, Request* r, bint tell) noexcept nogil:
    cdef Split* s = <Split*>r.cut
    if s == NULL:
        return layer.inner.cancel(layer.inner, r, tell)
    tf_lock(&s.lock)
    if s.ended or not (tell or all_queued(s)):
        tf_unlock(&s.lock)
        return False
    tf_store32(&s.ended, True)
    s.left += 1             # this thread
    tf_unlock(&s.lock)
    withdraw_all(s)
    tf_store32(&r.state, REQ_CANCELLED)
    stats_failure(layer.stats, FAIL_CANCELED, now_ns() - r.stamps[T_QUEUED])
    let_go(s, 1)
    return True


cdef class SplitLayer(NativeScheduler):
    """Lets a model take requests of up to ``max_rows`` rows: what is over its largest batch is cut and joined again.

    At most 16384 parts come of one request, whatever ``max_rows`` says. The model must have a batch dimension, one
    response for each request, and no ragged inputs. Tell it to ``NativeModel.add_layer``.
    """

    def __init__(self, NativeModel model not None, int64_t max_rows):
        if model.ptr.max_batch < 1 or model.ptr.decoupled:
            raise ValueError("only batches of models with one response for each request can be split")
        if max_rows <= model.ptr.max_batch:
            raise ValueError(f"max_rows must be over the largest batch, {model.ptr.max_batch}, got {max_rows}")
        layer_begin(&self.layer)
        self.layer.submit = split_submit
        self.layer.cancel = split_cancel
        self.ptr = &self.layer
        model.ptr.split_rows = min(max_rows, model.ptr.max_batch * MAX_PARTS)
