# See tracing.pxd. Only sampled requests come here, so what is allocated and locked here costs the others nothing.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from triton_fast._native.core.marks cimport REQ_CANCELLED, T_OUTPUT, T_RECEIVED, WATCH_ANSWERED, WATCH_TRACE
from triton_fast._native.core.native cimport (
    DT_STRING, MEM_GPU, TF_CANCELLED, TF_OK, dtype_size, now_ns, tf_add32, tf_add64, tf_load64, tf_lock, tf_unlock,
)
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.pthread cimport (
    pthread_cond_destroy, pthread_cond_signal, pthread_mutex_destroy, pthread_mutex_lock, pthread_mutex_unlock,
)
from triton_fast._native.core.request cimport Request, Response, request_alloc, request_on_release
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.core.trace_context cimport (
    MAX_CARRIER, TRACE_AT, TraceContext, carrier_span, context_carrier, context_given,
)
from triton_fast._native.core.trace_types cimport (
    EVENT_COMPLETE, EVENT_SEND_END, EVENT_SEND_START, FROM_MODEL, MAX_COPIES, MAX_COPY, MAX_EVENTS, MAX_RECORDS,
    TENSOR_MADE, TENSOR_QUEUED, TRACE_TENSORS, Collector, Sampling, Trace, TraceEvent, TracePoint, TraceRecord,
    TraceTensor,
)

import os

cdef enum:
    N_BUCKETS = 256

cdef int64_t live_traces = 0
# Of tensors of all traces that are not written yet.
cdef int64_t waiting_bytes = 0
cdef int64_t max_waiting = 268435456
cdef int64_t last_id = 0
cdef int64_t last_span = 0
cdef uint64_t seed = 0
cdef int32_t table_lock = 0
cdef TraceRecord* table[N_BUCKETS]
seed = int.from_bytes(os.urandom(8), "little")


# --- numbers ----------------------------------------------------------------------------------------------------------

# One that nobody can guess from another, and that does not come twice: a permutation of a counter.
cdef uint64_t random_number() noexcept nogil:
    cdef uint64_t z = seed + <uint64_t>tf_add64(&last_span, 1) * <uint64_t>0x9E3779B97F4A7C15
    z = (z ^ (z >> 30)) * <uint64_t>0xBF58476D1CE4E5B9
    z = (z ^ (z >> 27)) * <uint64_t>0x94D049BB133111EB
    return z ^ (z >> 31)


# Even, so that span | 1 is another, and not 0.
cdef uint64_t span_number() noexcept nogil:
    cdef uint64_t z = 0
    while z == 0:
        z = random_number() & ~<uint64_t>1
    return z


# --- taking a trace ---------------------------------------------------------------------------------------------------

cdef TraceRecord* record_new(Trace* trace, Model* m, int32_t origin) noexcept nogil:
    cdef TraceRecord* t = <TraceRecord*>calloc(1, sizeof(TraceRecord) + m.name_len)
    if t == NULL:
        return NULL
    t.trace = trace
    t.id = <uint64_t>tf_add64(&last_id, 1)
    t.span = span_number()
    t.origin = origin
    t.code = TF_OK
    t.name = <char*>(t + 1)
    t.name_len = m.name_len
    memcpy(t.name, m.name, m.name_len)
    return t


cdef TraceRecord* trace_sample(Model* m, TraceContext* c, int32_t origin) noexcept nogil:
    cdef Sampling* s = (<TracePoint*>m.tracing).now
    cdef TraceRecord* t
    cdef Trace* trace
    cdef uint64_t half
    cdef bint brought = s.spans and c != NULL and context_given(c)
    if not brought:
        if s.rate == 0:
            return NULL
        if s.left > 1:
            s.left -= 1
            return NULL
        s.left = s.rate
        if s.count == 0:
            return NULL
        if s.count > 0:
            s.count -= 1
    trace = <Trace*>calloc(1, sizeof(Trace) + (c.state_len if brought else 0))
    if trace == NULL:
        return NULL
    t = record_new(trace, m, origin)
    if t == NULL:
        free(trace)
        return NULL
    tf_add64(&live_traces, 1)
    trace.refs = 1
    trace.n_records = 1
    trace.level = s.level
    trace.stream = s.stream
    trace.spans = s.spans
    trace.collector = s.collector
    tf_add32(&s.collector.refs, 1)
    trace.root_span = span_number()
    t.parent_span = trace.root_span
    if brought:
        trace.has_parent = True
        memcpy(trace.trace_id, c.trace_id, 16)
        trace.parent_span = c.span
        trace.state = <char*>(trace + 1)
        trace.state_len = c.state_len
        memcpy(trace.state, c.state, c.state_len)
    else:
        half = random_number()
        memcpy(trace.trace_id, &half, 8)
        half = span_number()
        memcpy(&trace.trace_id[8], &half, 8)
    t.received_end = now_ns()
    return t


cdef void put_text(Request* r, const char* text, size_t n) noexcept nogil:
    cdef char* p = <char*>request_alloc(r, n)
    if p != NULL:
        memcpy(p, text, n)
        r.trace = p
        r.trace_len = <uint32_t>n


# What r's model is given, and gives with requests of its own: of spans their context, else only a key.
cdef void tell_model(TraceRecord* t, Request* r) noexcept nogil:
    cdef char[MAX_CARRIER] text
    cdef size_t n
    if t.trace.spans:
        n = context_carrier(text, t.trace.trace_id, t.span, t.trace.state, t.trace.state_len)
    else:
        n = hex_key(text, t.span)
    put_text(r, text, n)


cdef size_t hex_key(char* out, uint64_t span) noexcept nogil:
    cdef const char* digits = b"0123456789abcdef"
    cdef int32_t i
    out[0] = c"#"
    for i in range(16):
        out[i + 1] = digits[(span >> (60 - 4 * i)) & 15]
    return 17


cdef size_t trace_label(Request* r, char* text32) noexcept nogil:
    cdef TraceRecord* t = <TraceRecord*>r.record
    cdef char[MAX_CARRIER] text
    if not t.trace.spans:
        return <size_t>snprintf(text32, 32, b"%llu", <unsigned long long>t.id)
    context_carrier(text, t.trace.trace_id, t.span, NULL, 0)
    memcpy(text32, text + TRACE_AT, 32)
    return 32


cdef void trace_attach(TraceRecord* t, Request* r) noexcept nogil:
    cdef TraceRecord** bucket = &table[(t.span >> 1) % N_BUCKETS]
    cdef int32_t i
    t.began = now_ns()
    t.version = r.model.version     # another than the sampled one, if that has ended meanwhile
    t.composed = r.model.composed
    r.record = t
    r.watch |= WATCH_TRACE
    tell_model(t, r)
    tf_lock(&table_lock)
    t.same = bucket[0]
    bucket[0] = t
    tf_unlock(&table_lock)
    if t.trace.level & TRACE_TENSORS and not t.trace.spans:
        for i in range(r.n_inputs):
            copy_tensor(t, &r.inputs[i], TENSOR_QUEUED)


# Out of the table: no model's request becomes a step of it any more.
cdef void leave_table(TraceRecord* t) noexcept nogil:
    cdef TraceRecord** link = &table[(t.span >> 1) % N_BUCKETS]
    tf_lock(&table_lock)
    while link[0] != NULL and link[0] != t:
        link = &link[0].same
    if link[0] != NULL:
        link[0] = t.same
    tf_unlock(&table_lock)


cdef TraceRecord* trace_detach(Request* r) noexcept nogil:
    cdef TraceRecord* t = <TraceRecord*>r.record
    if r.watch & WATCH_TRACE == 0:
        return NULL
    leave_table(t)
    r.watch &= ~<uint32_t>WATCH_TRACE
    r.record = NULL
    drop_tensors(t)
    return t


cdef void trace_drop(TraceRecord* t) noexcept nogil:
    if t != NULL:
        let_go(t.trace)
        record_free(t)


cdef void trace_refused(TraceRecord* t, int64_t received_ns, int32_t code) noexcept nogil:
    if t == NULL:
        return
    if not t.trace.spans:
        trace_drop(t)
        return
    t.stamps[T_RECEIVED] = received_ns
    t.code = code
    t.began = t.ended = now_ns()
    hand_in(t)


cdef void begin_step(TraceRecord* above, Request* c) noexcept nogil:
    cdef Trace* trace = above.trace
    cdef TraceRecord* t
    # n_records is a bound, not a count to rely on: steps of one trace begin on several threads.
    if tf_add32(&trace.n_records, 1) > MAX_RECORDS:
        return
    t = record_new(trace, c.model, FROM_MODEL)
    if t == NULL:
        return
    tf_add32(&trace.refs, 1)
    t.parent_id = above.id
    t.parent_span = above.span
    trace_attach(t, c)


cdef void trace_child(Request* r, Request* c) noexcept nogil:
    begin_step(<TraceRecord*>r.record, c)


cdef int32_t nibble(char c) noexcept nogil:
    if c"0" <= c <= c"9":
        return c - c"0"
    return c - c"a" + 10 if c"a" <= c <= c"f" else -1


cdef bint key_of(const char* text, size_t n, uint64_t* span) noexcept nogil:
    cdef int32_t i, d
    if n == 0 or text[0] != c"#":
        return carrier_span(text, n, span)
    if n != 17:
        return False
    span[0] = 0
    for i in range(16):
        d = nibble(text[i + 1])
        if d < 0:
            return False
        span[0] = span[0] << 4 | <uint64_t>d
    return True


cdef void trace_adopt(Request* c) noexcept nogil:
    cdef uint64_t span = 0
    cdef TraceRecord* t
    cdef TraceRecord above
    if c.trace_len == 0 or not key_of(c.trace, c.trace_len, &span):
        return
    tf_lock(&table_lock)
    t = table[(span >> 1) % N_BUCKETS]
    while t != NULL and t.span != span:
        t = t.same
    if t != NULL:
        # It may end as soon as the lock is free: what is needed of it is copied, and its trace held.
        above.trace = t.trace
        above.id = t.id
        above.span = t.span
        tf_add32(&t.trace.refs, 1)
    tf_unlock(&table_lock)
    if t == NULL:
        return
    begin_step(&above, c)
    let_go(above.trace)


# --- what is recorded -------------------------------------------------------------------------------------------------

cdef void add_event(TraceRecord* t, int32_t kind, int64_t ns) noexcept nogil:
    cdef TraceEvent* e = <TraceEvent*>malloc(sizeof(TraceEvent))
    if e == NULL:
        return
    e.next = NULL
    e.kind = kind
    e.ns = ns
    tf_lock(&t.trace.lock)
    if t.n_events < MAX_EVENTS:
        t.n_events += 1
        if t.events == NULL:
            t.events = e
        else:
            t.events_last.next = e
        t.events_last = e
        e = NULL
    tf_unlock(&t.trace.lock)
    free(e)


# How many of n bytes are copied: whole elements.
cdef size_t whole_elements(Tensor* x, size_t room) noexcept nogil:
    cdef size_t at = 0, size
    cdef uint32_t length
    if x.dtype != DT_STRING:
        size = <size_t>dtype_size(x.dtype)
        return room - room % size if size else 0
    while at + 4 <= room:
        memcpy(&length, x.ptr + at, 4)
        if length > room - at - 4:
            break
        at += 4 + length
    return at


cdef void copy_tensor(TraceRecord* t, Tensor* x, int32_t kind) noexcept nogil:
    cdef Trace* trace = t.trace
    cdef TraceTensor* copy
    cdef size_t n = x.nbytes, room = MAX_COPY
    if x.ptr == NULL or x.ndim < 0 or x.kind == MEM_GPU:    # nobody waits for a GPU here: its shape is all there is
        n = 0
    tf_lock(&trace.lock)
    if MAX_COPIES - trace.copied < room:
        room = MAX_COPIES - trace.copied
    if n > room:
        n = whole_elements(x, room)
    # A writer that is slower than the requests must not have the server's memory: then only shapes are told.
    if n and tf_add64(&waiting_bytes, <int64_t>n) > max_waiting:
        tf_add64(&waiting_bytes, -<int64_t>n)
        n = 0
    trace.copied += n
    tf_unlock(&trace.lock)
    copy = <TraceTensor*>malloc(sizeof(TraceTensor) + <size_t>x.ndim * sizeof(int64_t) + n + x.name_len)
    if copy == NULL:
        tf_add64(&waiting_bytes, -<int64_t>n)
        return
    copy.next = NULL
    copy.kind = kind
    copy.dtype = x.dtype
    copy.ndim = x.ndim
    copy.nbytes = x.nbytes
    copy.copied = n
    copy.dims = <int64_t*>(copy + 1)
    copy.data = <uint8_t*>(copy.dims + x.ndim)
    copy.name = <char*>copy.data + n
    copy.name_len = x.name_len
    memcpy(copy.dims, x.dims, <size_t>x.ndim * sizeof(int64_t))
    if n:
        memcpy(copy.data, x.ptr, n)
    memcpy(copy.name, x.name, x.name_len)
    tf_lock(&trace.lock)
    if t.tensors == NULL:
        t.tensors = copy
    else:
        t.tensors_last.next = copy
    t.tensors_last = copy
    tf_unlock(&trace.lock)


cdef void copy_outputs(TraceRecord* t, Response* p) noexcept nogil:
    cdef Model* m = p.request.model
    cdef Tensor x
    cdef int32_t i
    if t.trace.level & TRACE_TENSORS == 0 or t.trace.spans or p.code != TF_OK:
        return
    for i in range(p.n_outputs):
        x = p.outputs[i]
        if not 0 <= x.index < m.n_outputs:
            continue            # what a scheduler keeps is not the client's
        x.name = m.outputs[x.index].name
        x.name_len = m.outputs[x.index].name_len
        copy_tensor(t, &x, TENSOR_MADE)


cdef void trace_answer(Response* p) noexcept nogil:
    cdef Request* r = p.request
    cdef TraceRecord* t = <TraceRecord*>r.record
    cdef int64_t now = now_ns()
    r.watch |= WATCH_ANSWERED
    if p.n_outputs == 0 and p.code == TF_OK and p.is_final and r.model.decoupled:
        r.watch &= ~<uint32_t>WATCH_ANSWERED      # only says that there is no more
        return
    add_event(t, EVENT_COMPLETE, r.stamps[T_OUTPUT] if r.stamps[T_OUTPUT] else now)
    add_event(t, EVENT_SEND_START, now)
    copy_outputs(t, p)


# --- ends -------------------------------------------------------------------------------------------------------------

cdef void before_release(Request* r) noexcept nogil:
    cdef TraceRecord* t = <TraceRecord*>r.record
    if r.watch & WATCH_ANSWERED:
        add_event(t, EVENT_SEND_END, now_ns())
    elif t.origin == FROM_MODEL:
        copy_outputs(t, &r.response)
    if r.parent == NULL:
        end_record(t, r)


cdef void end_record(TraceRecord* t, Request* r) noexcept nogil:
    leave_table(t)
    memcpy(t.stamps, r.stamps, sizeof(t.stamps))
    t.code = TF_CANCELLED if r.state == REQ_CANCELLED else r.response.code
    t.ended = r.stamps[T_OUTPUT] if r.stamps[T_OUTPUT] else now_ns()
    t.request_id_len = r.id_len if r.id_len < 65536 else 65536
    t.request_id = <char*>malloc(t.request_id_len + 1)
    if t.request_id == NULL:
        t.request_id_len = 0
    elif t.request_id_len:
        memcpy(t.request_id, r.id, t.request_id_len)
    hand_in(t)


cdef void hand_in(TraceRecord* t) noexcept nogil:
    cdef Trace* trace = t.trace
    tf_lock(&trace.lock)
    t.next = NULL
    if trace.first == NULL:
        trace.first = t
    else:
        trace.last.next = t
    trace.last = t
    tf_unlock(&trace.lock)
    let_go(trace)


cdef void let_go(Trace* trace) noexcept nogil:
    if tf_add32(&trace.refs, -1) != 0:
        return
    if trace.first == NULL:
        trace_free(trace)       # its request came to nothing
    else:
        collect(trace)


cdef void collect(Trace* trace) noexcept nogil:
    cdef Collector* c = trace.collector
    cdef bint wake = False
    pthread_mutex_lock(&c.lock)
    if c.n >= c.most:
        c.dropped += 1
    else:
        wake = c.first == NULL or c.n == c.most // 4
        trace.next = NULL
        if c.first == NULL:
            c.first = trace
        else:
            c.last.next = trace
        c.last = trace
        c.n += 1
        trace = NULL
    if wake:
        pthread_cond_signal(&c.changed)
    pthread_mutex_unlock(&c.lock)
    if trace != NULL:
        trace_free(trace)


cdef void drop_tensors(TraceRecord* t) noexcept nogil:
    cdef TraceTensor* x = t.tensors
    cdef TraceTensor* after
    while x != NULL:
        after = x.next
        tf_add64(&waiting_bytes, -<int64_t>x.copied)
        free(x)
        x = after
    t.tensors = NULL


cdef void record_free(TraceRecord* t) noexcept nogil:
    cdef TraceEvent* e = t.events
    cdef TraceEvent* after
    drop_tensors(t)
    while e != NULL:
        after = e.next
        free(e)
        e = after
    free(t.request_id)
    free(t)


cdef void trace_free(Trace* t) noexcept nogil:
    cdef TraceRecord* one = t.first
    cdef TraceRecord* after
    while one != NULL:
        after = one.next
        record_free(one)
        one = after
    collector_unref(t.collector)
    free(t)
    tf_add64(&live_traces, -1)


cdef void collector_unref(Collector* c) noexcept nogil:
    if tf_add32(&c.refs, -1) == 0:
        pthread_cond_destroy(&c.changed)
        pthread_mutex_destroy(&c.lock)
        free(c)


request_on_release(before_release)


def stats():
    """Return the debug counters live_traces and waiting_bytes, of tensors in them."""
    return {"live_traces": tf_load64(&live_traces), "waiting_bytes": tf_load64(&waiting_bytes)}


def _limit_waiting(int64_t most):
    """Copy tensors for so many bytes at most; return how many it were (tests only)."""
    global max_waiting
    cdef int64_t before = max_waiting
    max_waiting = most
    return before
