# Carriers: forked from a request, sent, counted while they are on their way. See respond.pxd.
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memcpy

from triton_fast._native.core.marks cimport FLAG_DEVICE, FLAG_LENT, REQ_DONE, REQ_RUNNING, T_OUTPUT, T_SENT, WATCH_TRACE
from triton_fast._native.core.native cimport (
    TF_OK, now_ns, tf_add32, tf_cas32, tf_load32, tf_load64, tf_lock, tf_store32, tf_store64, tf_unlock,
)
from triton_fast._native.core.park cimport park_begin, park_end, park_wait, park_wake
from triton_fast._native.core.request cimport (
    Request, Response, Sink, request_alloc, request_free, request_new, response_fail,
)

from triton_fast._native.core.request import stats


cdef int32_t words_lock = 0


cdef Request* request_fork(Request* r) noexcept nogil:
    cdef Request* c
    if r.parent != NULL:
        r = r.parent
    c = request_new(r.model)
    if c == NULL:
        return NULL
    c.state = REQ_RUNNING
    c.sink = r.sink
    c.ctx = r.ctx
    memcpy(c.stamps, r.stamps, sizeof(r.stamps))
    c.id = r.id
    c.id_len = r.id_len
    c.flags = r.flags
    c.correlation = r.correlation
    c.correlation_text = r.correlation_text
    c.correlation_len = r.correlation_len
    c.n_wanted = r.n_wanted
    c.binary_default = r.binary_default
    c.wanted = r.wanted
    c.batch = r.batch
    c.params = r.params
    c.watch = r.watch & WATCH_TRACE
    c.record = r.record
    c.response.is_final = False
    c.parent = r
    # Its inputs could not be had: nothing that is made of the zeros in their place counts.
    if r.flags & (FLAG_DEVICE | FLAG_LENT) and r.response.code != TF_OK:
        response_fail(&c.response, r.response.code, r.response.text, r.response.text_len)
    tf_add32(&r.holds, 1)
    return c


# One more carrier on its way, if the limit allows it.
cdef bint take_place(Request* r) noexcept nogil:
    cdef int32_t n = tf_load32(&r.unsent)
    while n < r.max_responses:
        if tf_cas32(&r.unsent, n, n + 1):
            return True
        n = tf_load32(&r.unsent)
    return False


cdef int wait_for_place(Request* r) noexcept nogil:
    cdef int status
    park_begin(&r.waiting)
    while True:
        if tf_load32(&r.cancelled):
            status = -1
            break
        if take_place(r):
            status = 0
            break
        park_wait(&r.waiting, 0)
    park_end(&r.waiting)
    return status


cdef inline int hand_over(Request* carrier) noexcept nogil:
    carrier.stamps[T_OUTPUT] = now_ns()
    if tf_load64(&carrier.parent.stamps[T_SENT]) == 0:
        tf_store64(&carrier.parent.stamps[T_SENT], carrier.stamps[T_OUTPUT])
    carrier.state = REQ_DONE        # request_free gives its place back
    carrier.response.next = NULL
    carrier.sink.deliver(carrier.sink, &carrier.response, &carrier.response)
    return 0


cdef int response_send(Request* carrier) noexcept nogil:
    cdef Request* r = carrier.parent
    if tf_load32(&r.cancelled) or (r.max_responses > 0 and not take_place(r) and wait_for_place(r) != 0):
        request_free(carrier)
        return -1
    return hand_over(carrier)


cdef int response_try_send(Request* carrier) noexcept nogil:
    cdef Request* r = carrier.parent
    if tf_load32(&r.cancelled):
        request_free(carrier)
        return -1
    if r.max_responses > 0 and not take_place(r):
        return 1
    return hand_over(carrier)


cdef void response_push(Request* carrier) noexcept nogil:
    if carrier.parent.max_responses > 0:
        tf_add32(&carrier.parent.unsent, 1)
    hand_over(carrier)


cdef void request_cancel(Request* r) noexcept nogil:
    tf_store32(&r.cancelled, 1)
    park_wake(&r.waiting)
    tf_lock(&words_lock)        # a word is written or taken away, never both at a time
    if r.cancel_word != NULL:
        tf_store32(<int32_t*>r.cancel_word, <int32_t>r.cancel_value)
    tf_unlock(&words_lock)


cdef void request_cancel_word(Request* r, uint32_t* word, uint32_t value) noexcept nogil:
    tf_lock(&words_lock)
    r.cancel_word = word
    r.cancel_value = value
    if word != NULL and tf_load32(&r.cancelled):
        tf_store32(<int32_t*>word, <int32_t>value)
    tf_unlock(&words_lock)


cdef int request_sleep(Request* r, int64_t until) noexcept nogil:
    if tf_load32(&r.cancelled) == 0 and now_ns() < until:
        park_begin(&r.waiting)
        while tf_load32(&r.cancelled) == 0 and now_ns() < until:
            park_wait(&r.waiting, until)
        park_end(&r.waiting)
    return -1 if tf_load32(&r.cancelled) else 0


cdef void discard(Sink* sink, Response* first, Response* last) noexcept nogil:
    request_free(first.request)


def bench(int n, int32_t max_responses=0):
    """Fork, send and free n carriers of one request; return how many were delivered (bench/micro only)."""
    cdef Sink sink
    cdef Request* r = request_new(NULL)
    cdef Request* c
    cdef int _i, sent = 0
    if r == NULL:
        raise MemoryError
    sink.deliver = discard
    r.sink = &sink
    r.max_responses = max_responses
    for _i in range(n):
        c = request_fork(r)
        if c != NULL and response_send(c) == 0:
            sent += 1
    request_free(r)
    return sent


def _family(int n, order):
    """Make a request with n carriers and free them in this order, 0 = the request itself (tests only).

    Returns how many are alive after each step, and the id that each carrier showed just before it was freed.
    """
    cdef Request* r = request_new(NULL)
    cdef int i
    base = stats()["live_requests"] - 1
    if r == NULL:
        raise MemoryError
    r.id = <const char*>request_alloc(r, 8)
    memcpy(<char*>r.id, b"the-id", 6)
    r.id_len = 6
    carriers = {0: <size_t>r}
    for i in range(1, n + 1):
        r = request_fork(r)         # of a carrier: one more for the request that it answers
        if r == NULL:
            raise MemoryError
        carriers[i] = <size_t>r
    alive, ids = [], []
    for i in order:
        r = <Request*><size_t>carriers.pop(i)
        if i:
            ids.append(r.id[:r.id_len])
        request_free(r)
        alive.append(stats()["live_requests"] - base)
    for address in carriers.values():
        request_free(<Request*><size_t>address)
    return alive, ids
