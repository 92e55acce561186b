# See sequence_taps.pxd. A sequence is busy until the final response: what is done here without the lock, nobody else
# does.
from libc.stdint cimport int32_t
from libc.string cimport memset, strlen

from triton_fast._native.core.marks cimport FLAG_SEQUENCE_END, FLAG_SEQUENCE_START, REQ_CANCELLED, T_QUEUED
from triton_fast._native.core.memory cimport block_unref
from triton_fast._native.core.native cimport (
    TF_CANCELLED, TF_OK, TF_UNAVAILABLE, now_ns, tf_add32, tf_load32,
)
from triton_fast._native.core.pthread cimport pthread_cond_signal, pthread_mutex_lock, pthread_mutex_unlock
from triton_fast._native.core.request cimport Request, Response, Sink, response_fail
from triton_fast._native.core.stats cimport FAIL_CANCELED, FAIL_REJECTED, stats_failure
from triton_fast._native.sched.sequence_flow cimport (
    Refused, clock_of, give_up, queue_add, refuse, sequences_unref, settle, wake_all,
)
from triton_fast._native.sched.sequence_state cimport states_commit, states_drop, states_take
from triton_fast._native.sched.sequence_types cimport Entry, Seat, Sequence, Sequences
from triton_fast._native.sched.stopping cimport STOPPING
from triton_fast._native.sched.tap cimport tap_begin, tap_end


cdef void responses_begin(Sequences* q, Request* r) noexcept nogil:
    cdef Entry* e = <Entry*>r.sched
    tf_add32(&q.refs, 1)
    tap_begin(&e.tap, r, on_response)


# It comes again: as it was, but that it starts nothing and ends nothing.
cdef void renew(Request* r) noexcept nogil:
    cdef int32_t i
    for i in range(r.response.n_outputs):
        block_unref(r.response.outputs[i].block)
    r.response.n_outputs = 0
    r.response.code = TF_OK
    r.response.text = NULL
    r.response.text_len = 0
    r.response.params = NULL
    r.again = False
    r.flags &= ~<unsigned int>(FLAG_SEQUENCE_START | FLAG_SEQUENCE_END)


# A final response and others of the same request never come as one chain.
cdef void on_response(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Entry* e = <Entry*>sink
    cdef Sequences* q = e.owner
    cdef Sequence* s = e.sequence
    cdef Seat* seat
    cdef Request* r = e.tap.request
    cdef Sink* outer = e.tap.sink.outer
    cdef Response* p = first
    cdef Refused refused
    cdef bint again, is_cancelled = False
    cdef const char* text = b"the request was cancelled"
    while True:
        states_take(q, e, p)
        if p == last:
            break
        p = p.next
    if not last.is_final:
        outer.deliver(outer, first, last)
        return
    memset(&refused, 0, sizeof(Refused))
    again = r.again
    if last.code == TF_OK:
        states_commit(q, s, e)
    else:
        states_drop(q, e)
    tap_end(&e.tap)
    pthread_mutex_lock(&q.lock)
    seat = &q.seats[s.seat]
    if again:
        is_cancelled = tf_load32(&r.cancelled) != 0
        if not is_cancelled and not q.closed and not seat.ended:
            renew(r)
            queue_add(q, s, r, True)
            settle(q, s, clock_of(q))
            pthread_cond_signal(&seat.wake)
            pthread_mutex_unlock(&q.lock)
            sequences_unref(q)
            return
        r.again = False
        give_up(q, s, REQ_CANCELLED, &refused, clock_of(q))
    settle(q, s, clock_of(q))
    # A request that was kept ends on another thread than its instance's, which may sleep.
    pthread_cond_signal(&seat.wake)
    if q.base.stopping:
        wake_all(q)
    pthread_mutex_unlock(&q.lock)
    if again:
        if not is_cancelled:
            text = STOPPING
        response_fail(last, TF_CANCELLED if is_cancelled else TF_UNAVAILABLE, text, strlen(text))
        stats_failure(q.base.stats, FAIL_CANCELED if is_cancelled else FAIL_REJECTED, now_ns() - r.stamps[T_QUEUED])
    outer.deliver(outer, first, last)
    refuse(q, &refused)
    sequences_unref(q)
