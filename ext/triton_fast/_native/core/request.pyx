# Requests come from a slab of fixed chunks: the struct first, the rest of the chunk is the request's arena. What does
# not fit is malloc'd and freed with it. Knows nothing of protocols, queues or backends.
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from triton_fast._native.core.marks cimport REQ_DONE, WATCH_TRACE
from triton_fast._native.core.memory cimport block_unref
from triton_fast._native.core.model cimport model_free
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
cdef release_fn before_release = NULL


cdef void request_on_release(release_fn look) noexcept:
    global before_release
    before_release = look


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


cdef void drop_lent(Lent* lent) noexcept nogil:
    while lent != NULL:
        block_unref(lent.block)
        lent = lent.next


cdef inline void release(Request* r) noexcept nogil:
    cdef int32_t i
    cdef Overflow* o = <Overflow*>r.overflow
    cdef Overflow* after
    if r.watch & WATCH_TRACE and before_release != NULL:
        before_release(r)
    for i in range(r.n_inputs):
        block_unref(r.inputs[i].block)
    drop_outputs(&r.response)
    block_unref(r.body)
    if r.lent != NULL:
        drop_lent(r.lent)
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


def stats():
    """Return the debug counter live_requests."""
    return {"live_requests": tf_load64(&live_requests)}
