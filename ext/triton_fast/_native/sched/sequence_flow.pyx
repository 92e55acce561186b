# See sequence_flow.pxd. The reaper looks at what is due and nothing else: idle sequences lie in the order of their last
# activity, those with a deadline in a heap.
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free
from libc.string cimport memset, strlen
from posix.time cimport timespec

from triton_fast._native.core.marks cimport REQ_CANCELLED, REQ_EXPIRED, REQ_QUEUED, REQ_RUNNING, T_QUEUED
from triton_fast._native.core.memory cimport block_unref
from triton_fast._native.core.native cimport (
    TF_CANCELLED, TF_UNAVAILABLE, now_ns, tf_add32, tf_load32, tf_store32,
)
from triton_fast._native.core.pthread cimport (
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_signal, pthread_cond_timedwait, pthread_cond_wait,
    pthread_create, pthread_join, pthread_mutex_destroy, pthread_mutex_lock, pthread_mutex_unlock, pthread_setname_np,
)
from triton_fast._native.core.model cimport model_free
from triton_fast._native.core.request cimport Request, response_fail
from triton_fast._native.core.stats cimport FAIL_CANCELED, FAIL_REJECTED, stats_failure
from triton_fast._native.sched.full cimport bytes_of
from triton_fast._native.sched.sequence_slots cimport (
    deadline_drop, sequence_forget, sequence_free, sequence_move, slot_clear, slot_fill, slots_end,
)
from triton_fast._native.sched.sequence_types cimport Sequence, Sequences
from triton_fast._native.sched.stopping cimport STOPPING


cdef extern from "tf_signals.h" nogil:
    int tf_block_signals()

cdef const char* EXPIRED = b"timeout of the corresponding sequence has been expired"
cdef const char* CANCELLED = b"a request of the same sequence was cancelled"


# ---- requests

cdef inline void count(Sequences* q, Sequence* s, int32_t more) noexcept nogil:
    s.count += more
    tf_store32(&q.count, q.count + more)
    if s.seat >= 0:
        q.seats[s.seat].n_queued += more


cdef void queue_add(Sequences* q, Sequence* s, Request* r, bint first) noexcept nogil:
    tf_store32(&r.state, REQ_QUEUED)
    if s.head == NULL:
        r.q_next = NULL
        s.head = r
        s.tail = r
    elif first:
        r.q_next = s.head
        s.head = r
    else:
        r.q_next = NULL
        s.tail.q_next = r
        s.tail = r
    count(q, s, 1)
    if q.max_bytes:
        q.bytes += bytes_of(r)


cdef Request* queue_start(Sequences* q, Sequence* s) noexcept nogil:
    cdef Request* r = s.head
    s.head = r.q_next
    if s.head == NULL:
        s.tail = NULL
    count(q, s, -1)
    if q.max_bytes:
        q.bytes -= bytes_of(r)
    r.q_next = NULL
    tf_store32(&r.state, REQ_RUNNING)
    s.busy = True
    sequence_move(q, s, &q.seats[s.seat].out)
    return r


cdef void refuse(Sequences* q, Refused* refused) noexcept nogil:
    cdef Request* r = refused.head
    cdef Request* after
    cdef const char* text
    cdef int32_t code, reason
    while r != NULL:
        after = r.q_next
        text = STOPPING
        code = TF_UNAVAILABLE
        reason = FAIL_REJECTED
        if tf_load32(&r.state) == REQ_EXPIRED:
            text = EXPIRED
        elif tf_load32(&r.state) == REQ_CANCELLED:
            text = CANCELLED
            code = TF_CANCELLED
            reason = FAIL_CANCELED
        response_fail(&r.response, code, text, strlen(text))
        stats_failure(q.base.stats, reason, now_ns() - r.stamps[T_QUEUED])
        r.response.next = NULL
        r.sink.deliver(r.sink, &r.response, &r.response)
        r = after
    refused.head = NULL
    refused.tail = NULL


# ---- sequences

cdef void become_ready(Sequences* q, Sequence* s, int64_t now) noexcept nogil:
    s.since = now
    sequence_move(q, s, &q.seats[s.seat].ready)


# Its slot is free: for the sequence that waits longest.
cdef void vacate(Sequences* q, Sequence* s, int64_t now) noexcept nogil:
    cdef int32_t seat = s.seat, slot = s.slot
    cdef Sequence* next = q.backlog.head
    sequence_move(q, s, NULL)
    slot_clear(q, s)
    if next == NULL:
        return
    sequence_move(q, next, NULL)
    deadline_drop(q, next)
    slot_fill(q, next, seat, slot)
    q.seats[seat].n_queued += next.count
    become_ready(q, next, now)
    pthread_cond_signal(&q.seats[seat].wake)
    if q.base.stopping:
        wake_all(q)         # who waited for the backlog only may end


cdef void settle(Sequences* q, Sequence* s, int64_t now) noexcept nogil:
    s.busy = False
    if s.head != NULL:
        become_ready(q, s, now)
    elif s.closed:
        vacate(q, s, now)
        sequence_free(q, s)
    else:
        s.since = now
        sequence_move(q, s, &q.idle)
        reap_soon(q, now + q.idle_ns)


cdef void give_up(Sequences* q, Sequence* s, int32_t state, Refused* refused, int64_t now) noexcept nogil:
    cdef Request* r = s.head
    while r != NULL:
        tf_store32(&r.state, state)
        if q.max_bytes:
            q.bytes -= bytes_of(r)
        r = r.q_next
    if s.head != NULL:
        if refused.tail != NULL:
            refused.tail.q_next = s.head
        else:
            refused.head = s.head
        refused.tail = s.tail
    count(q, s, -s.count)
    s.head = NULL
    s.tail = NULL
    s.closed = True
    sequence_forget(q, s)
    if s.busy:
        return
    if s.seat >= 0:
        vacate(q, s, now)
    sequence_free(q, s)
    if q.base.stopping:
        wake_all(q)


cdef void wake_all(Sequences* q) noexcept nogil:
    cdef int32_t i
    for i in range(q.n_seats):
        pthread_cond_broadcast(&q.seats[i].wake)


# ---- the reaper

cdef void reap_soon(Sequences* q, int64_t at) noexcept nogil:
    if q.reap_at == 0 or at < q.reap_at:
        q.reap_at = at
        pthread_cond_signal(&q.watch)


cdef int64_t reap(Sequences* q, int64_t now, Refused* refused) noexcept nogil:
    cdef int64_t next = 0
    # Deadlines first: who waited long enough is not saved by a slot that becomes free at the same moment.
    while q.n_heap and q.heap[0].deadline <= now:
        give_up(q, q.heap[0], REQ_EXPIRED, refused, now)
    while q.idle.head != NULL and now - q.idle.head.since >= q.idle_ns:
        give_up(q, q.idle.head, REQ_EXPIRED, refused, now)
    if q.idle.head != NULL:
        next = q.idle.head.since + q.idle_ns
    if q.n_heap and (next == 0 or q.heap[0].deadline < next):
        next = q.heap[0].deadline
    q.reap_at = next
    return next


cdef void* run_reaper(void* arg) noexcept nogil:
    cdef Sequences* q = <Sequences*>arg
    cdef Refused refused
    cdef timespec ts
    cdef int64_t until
    memset(&refused, 0, sizeof(Refused))
    tf_block_signals()
    pthread_mutex_lock(&q.lock)
    while not q.ending:
        until = reap(q, now_ns(), &refused)
        if refused.head != NULL:
            pthread_mutex_unlock(&q.lock)
            refuse(q, &refused)
            pthread_mutex_lock(&q.lock)
        elif until:
            ts.tv_sec = until // 1000000000
            ts.tv_nsec = until % 1000000000
            pthread_cond_timedwait(&q.watch, &q.lock, &ts)
        else:
            pthread_cond_wait(&q.watch, &q.lock)
    pthread_mutex_unlock(&q.lock)
    return NULL


cdef int reaper_start(Sequences* q) noexcept nogil:
    if pthread_create(&q.reaper, NULL, run_reaper, q) != 0:
        return -1
    pthread_setname_np(q.reaper, b"sequence-reaper")
    q.reaping = True
    return 0


cdef void reaper_end(Sequences* q) noexcept nogil:
    cdef bint mine
    pthread_mutex_lock(&q.lock)
    mine = q.reaping
    q.reaping = False
    q.ending = True
    pthread_cond_signal(&q.watch)
    pthread_mutex_unlock(&q.lock)
    if mine:
        pthread_join(q.reaper, NULL)


# ---- the end

cdef void sequences_unref(Sequences* q) noexcept nogil:
    cdef int32_t i
    if tf_add32(&q.refs, -1) != 0:
        return
    slots_end(q)
    for i in range(q.n_seats if q.seats != NULL else 0):
        block_unref(q.seats[i].zeros)
        pthread_cond_destroy(&q.seats[i].wake)
    for i in range(q.n_states if q.states != NULL else 0):
        block_unref(q.states[i].first)
        free(q.states[i].dims)
        free(q.states[i].first_dims)
    pthread_cond_destroy(&q.watch)
    pthread_mutex_destroy(&q.lock)
    if q.model != NULL and tf_add32(&q.model.refs, -1) == 0:
        model_free(q.model)
    free(q.seats)
    free(q.controls)
    free(q.states)
    free(q)
