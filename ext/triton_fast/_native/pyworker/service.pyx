# See service.pxd. Never takes the GIL but to look up the name of a model that is called, and waits only for events: a
# response for which there is no place is kept here, and its worker told to hold.
from libc.stdint cimport int32_t, uint32_t
from libc.string cimport memcpy, strlen

from triton_fast._native.core.native cimport (
    TF_INTERNAL, now_ns, tf_add64, tf_load32, tf_store32,
)
from triton_fast._native.core.pthread cimport (
    pthread_cond_broadcast, pthread_cond_wait, pthread_create, pthread_join, pthread_mutex_lock, pthread_mutex_unlock,
    pthread_setname_np,
)
from triton_fast._native.core.request cimport Request, request_free, response_fail
from triton_fast._native.core.respond cimport request_fork, response_try_send
from triton_fast._native.pyworker.calls cimport call_end, call_start, calls_abandon, calls_answer
from triton_fast._native.pyworker.channel cimport (
    Channel, channel_kill, channel_ref, channel_take, channel_taken, channel_unref, channel_wait,
)
from triton_fast._native.pyworker.decode cimport (
    Source, copy_record, decode_response, source_begin, source_end,
)
from triton_fast._native.pyworker.layout cimport (
    EVENT_BLS, EVENT_BLS_CANCEL, EVENT_BLS_CLOSED, EVENT_RESPONSE, HOLD_AT, Message, RECORD_FINAL, RECORD_NONE,
    RING_EVENTS, ResponseRecord,
)
from triton_fast._native.pyworker.worker cimport MAX_REASON, SLOT_SERVICE, Slot, Worker, slot_drop, slot_find
from triton_fast._native.sched.instance cimport request_finish

cdef enum:
    RETRY_NS = 1000000      # how soon to look again for room
    MAX_WAITING = 16384     # responses of a request that wait for room: what can be under way when it is told to hold
    BURST = 256             # events before the calls' answers have their turn


cdef extern from "tf_signals.h" nogil:
    int tf_block_signals()


cdef inline void hold(Channel* c, int32_t slot, uint32_t word) noexcept nogil:
    tf_store32(<int32_t*>(c.region.base + HOLD_AT) + slot, <int32_t>word)


# A response of a decoupled request that is not its last.
cdef int pass_on(Worker* w, Channel* c, Source* s, int32_t k, uint32_t n) noexcept nogil:
    cdef Slot* slot = &w.slots[k]
    cdef Request* carrier = request_fork(slot.request)
    if carrier == NULL:
        return 0            # out of memory: a response is lost, the request goes on
    if decode_response(s, w.record.data, n, &carrier.response) != 0:
        request_free(carrier)
        return -1
    if slot.waiting == NULL and response_try_send(carrier) != 1:
        return 0
    if slot.n_waiting >= MAX_WAITING:
        request_free(carrier)
        return -1           # it was told to hold
    slot.n_waiting += 1
    carrier.q_next = NULL
    if slot.waiting != NULL:
        slot.waiting_last.q_next = carrier
    else:
        slot.waiting = carrier
        slot.next = w.waiting_slot
        w.waiting_slot = k
        hold(c, k, slot.generation)
    slot.waiting_last = carrier
    return 0


cdef int handle_response(Worker* w, Channel* c, Source* s, Message* m) noexcept nogil:
    cdef ResponseRecord head
    cdef Request* r = NULL
    cdef int32_t k
    cdef int status = 0
    cdef bint is_final
    cdef const char* malformed = b"the worker's response is malformed"
    if copy_record(c.region, m.off, sizeof(ResponseRecord), m.len, &w.record) != 0:
        return -1
    source_begin(s, c.region, m.off)
    memcpy(&head, w.record.data, sizeof(ResponseRecord))
    is_final = head.flags & RECORD_FINAL
    pthread_mutex_lock(&w.lock)
    k = slot_find(w, head.slot, head.generation)
    if k < 0 or w.slots[k].is_over:
        pthread_mutex_unlock(&w.lock)
        return 0            # what comes after the end, or of a request that is gone
    if not w.slots[k].request.model.decoupled:
        if head.kind != RECORD_NONE:
            r = slot_drop(w, k)
        pthread_mutex_unlock(&w.lock)
        if r != NULL:
            status = decode_response(s, w.record.data, head.bytes, &r.response)
            if status != 0:
                response_fail(&r.response, TF_INTERNAL, malformed, strlen(malformed))
            request_finish(r)
        return status
    pthread_mutex_unlock(&w.lock)
    # The slot stays this thread's until its turn ends.
    if not is_final:
        return pass_on(w, c, s, k, head.bytes) if head.kind != RECORD_NONE else 0
    r = w.slots[k].request
    if head.kind != RECORD_NONE:
        status = decode_response(s, w.record.data, head.bytes, &r.response)
        if status != 0:
            response_fail(&r.response, TF_INTERNAL, malformed, strlen(malformed))
    pthread_mutex_lock(&w.lock)
    if w.slots[k].waiting == NULL:
        slot_drop(w, k)
    else:
        w.slots[k].is_over = True
        r = NULL
    pthread_mutex_unlock(&w.lock)
    if r != NULL:
        request_finish(r)
    return status


cdef int handle(Worker* w, Channel* c, Message* m) noexcept nogil:
    cdef Source s
    cdef int status
    if m.kind == EVENT_RESPONSE:
        s.off = 0
        s.block = NULL
        pthread_mutex_lock(&w.turn)
        status = handle_response(w, c, &s, m)
        pthread_mutex_unlock(&w.turn)
        source_end(&s)
        return status
    if m.kind == EVENT_BLS:
        return call_start(w, c, m)
    if m.kind == EVENT_BLS_CANCEL or m.kind == EVENT_BLS_CLOSED:
        call_end(w, m.id, m.kind == EVENT_BLS_CANCEL)
        return 0
    return -1


# Send what waits, where there is a place by now. Whether something still waits.
cdef bint send_waiting(Worker* w, Channel* c) noexcept nogil:
    cdef int32_t* link = &w.waiting_slot
    cdef int32_t k
    cdef Slot* slot
    cdef Request* carrier
    cdef Request* r
    while link[0] >= 0:
        k = link[0]
        slot = &w.slots[k]
        while slot.waiting != NULL:
            carrier = slot.waiting
            r = carrier.q_next          # it may be gone once it is sent
            if response_try_send(carrier) == 1:
                break
            slot.waiting = r
            slot.n_waiting -= 1
        if slot.waiting != NULL:
            link = &slot.next
            continue
        link[0] = slot.next
        hold(c, k, 0)
        r = NULL
        pthread_mutex_lock(&w.lock)
        if slot.is_over:
            r = slot_drop(w, k)
        pthread_mutex_unlock(&w.lock)
        if r != NULL:
            request_finish(r)
    return w.waiting_slot >= 0


cdef void* run_service(void* arg) noexcept nogil:
    cdef Worker* w = <Worker*>arg
    cdef Channel* c = w.served
    cdef Message m
    cdef int32_t n
    cdef bint more
    tf_block_signals()
    while not tf_load32(&c.dead):
        n = 0
        while n < BURST and channel_take(c, RING_EVENTS, &m):
            if handle(w, c, &m) != 0:
                tf_store32(&c.broken, 1)
            channel_taken(c, RING_EVENTS)
            tf_add64(&w.events_done, 1)
            n += 1
        more = calls_answer(w, c)
        pthread_mutex_lock(&w.turn)
        more = send_waiting(w, c) or more
        pthread_mutex_unlock(&w.turn)
        if n < BURST:
            channel_wait(c, RING_EVENTS, 0, now_ns() + RETRY_NS if more else 0)
    channel_unref(c)
    return NULL


cdef int service_start(Worker* w, Channel* c) noexcept nogil:
    cdef int status
    pthread_mutex_lock(&w.lock)
    while w.stopping:
        pthread_cond_wait(&w.changed, &w.lock)
    if w.channel != NULL:
        pthread_mutex_unlock(&w.lock)
        return 1
    channel_ref(c)      # w's
    channel_ref(c)      # the thread's
    w.channel = c
    w.served = c
    w.events_done = 0
    w.serving = True
    w.hopeless = False
    w.waiting_slot = -1
    status = pthread_create(&w.service, NULL, run_service, w)
    if status == 0:
        pthread_setname_np(w.service, b"python-service")
        pthread_cond_broadcast(&w.changed)
    else:
        w.channel = NULL
        w.serving = False
        channel_unref(c)
        channel_unref(c)
    pthread_mutex_unlock(&w.lock)
    return -1 if status else 0


# Nobody else knows these requests now.
cdef void fail_kept(Worker* w, int32_t code, const char* text, size_t n) noexcept nogil:
    cdef int32_t k = 0
    cdef Request* r
    cdef Request* carrier
    cdef Request* waiting
    cdef bint is_over
    while True:
        pthread_mutex_lock(&w.lock)
        while k < w.n_slots and w.slots[k].state != SLOT_SERVICE:
            k += 1
        if k == w.n_slots:
            pthread_mutex_unlock(&w.lock)
            return
        waiting = w.slots[k].waiting
        is_over = w.slots[k].is_over
        r = slot_drop(w, k)
        pthread_mutex_unlock(&w.lock)
        while waiting != NULL:
            carrier = waiting
            waiting = carrier.q_next
            request_free(carrier)
        if not is_over:
            response_fail(&r.response, code, text, n)
        request_finish(r)


cdef void service_stop(Worker* w) noexcept nogil:
    cdef Channel* c
    cdef char[MAX_REASON] text      # of this end: another may be told while this one is dealt with
    cdef size_t n
    cdef int32_t code
    pthread_mutex_lock(&w.lock)
    while w.stopping:
        pthread_cond_wait(&w.changed, &w.lock)
    n = w.reason_len
    memcpy(text, w.reason, n)
    code = w.code
    c = w.channel
    w.channel = NULL
    w.serving = False
    w.stopping = c != NULL
    pthread_cond_broadcast(&w.changed)
    pthread_mutex_unlock(&w.lock)
    if c == NULL:
        return
    channel_kill(c)
    pthread_join(w.service, NULL)
    calls_abandon(w)
    pthread_mutex_lock(&w.lock)
    while w.execution_began != 0:
        pthread_cond_wait(&w.changed, &w.lock)
    pthread_mutex_unlock(&w.lock)
    w.waiting_slot = -1
    fail_kept(w, code, text, n)
    pthread_mutex_lock(&w.lock)
    w.stopping = False
    pthread_cond_broadcast(&w.changed)
    pthread_mutex_unlock(&w.lock)
    channel_unref(c)
