# See sequence_take.pxd. A batch is chosen under the lock; what its requests are told of it, and the padding between
# them, is made without: they are the instance's by then.
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset
from posix.time cimport timespec

from triton_fast._native.core.marks cimport FLAG_PADDING, FLAG_SEQUENCE_START, T_STARTED
from triton_fast._native.core.native cimport TF_UNAVAILABLE, now_ns, tf_store32
from triton_fast._native.core.pthread cimport (
    pthread_cond_timedwait, pthread_cond_wait, pthread_mutex_lock, pthread_mutex_unlock,
)
from triton_fast._native.core.request cimport Request, response_fail
from triton_fast._native.sched.policy cimport Scan, scan_add, scan_begin, scan_decide
from triton_fast._native.sched.scheduler cimport (
    TAKE_LOOK, TAKE_NOTHING, TAKE_NOW, TAKE_STOPPED, Scheduler,
)
from triton_fast._native.sched.sequence_controls cimport controls_fill, padding_new
from triton_fast._native.sched.sequence_flow cimport clock_of, queue_start, settle
from triton_fast._native.sched.sequence_state cimport states_alike, states_fill, states_reset
from triton_fast._native.sched.sequence_taps cimport responses_begin
from triton_fast._native.sched.spin cimport spin_learn, spin_look, spin_wanted
from triton_fast._native.sched.sequence_types cimport Entry, Seat, Sequence, Sequences


# ---- the choice; hold the lock, something is ready

cdef inline bint is_like(Sequences* q, Sequence* s, Sequence* first) noexcept nogil:
    return s == first or (s.head.shape_key == first.head.shape_key and states_alike(q, s, first))


# A place for each slot up to the highest that goes; NULL where padding does. 0 with *until set: not yet.
cdef int32_t choose_direct(Sequences* q, Seat* seat, Request** out, bint look, int64_t now,
                           int64_t* until) noexcept nogil:
    cdef Sequence* first = seat.ready.head
    cdef Sequence* s = first
    cdef int32_t k, n = 0, top = 0
    while s != NULL:
        if is_like(q, s, first):
            n += 1
            top = max(top, s.slot)
        s = s.next
    if n < q.enough and not q.base.stopping and now - first.since < q.policy.delay_ns:
        until[0] = first.since + q.policy.delay_ns
        return 0
    if look:
        return top + 1
    memset(out, 0, <size_t>(top + 1) * sizeof(Request*))
    for k in range(top + 1):
        s = seat.slots[k]
        # The oldest says which shape goes; it is looked at again, so it goes last.
        if s != NULL and s != first and s.where == &seat.ready and is_like(q, s, first):
            out[k] = queue_start(q, s)
    out[first.slot] = queue_start(q, first)
    return top + 1


cdef int32_t choose_oldest(Sequences* q, Seat* seat, Request** out, bint look, int64_t now,
                           int64_t* until) noexcept nogil:
    cdef Sequence* first = seat.ready.head
    cdef Sequence* s = first
    cdef Sequence* after
    cdef Scan scan
    cdef int32_t n, why = 0, k = 0
    scan_begin(&scan, now)
    while s != NULL:
        if is_like(q, s, first) and not scan_add(&q.policy, &scan, 1, 0, s.since):
            break
        s = s.next
    n = scan_decide(&q.policy, &scan, False, until, &why)
    if n == 0 and q.base.stopping:
        n = scan.n
    if n == 0 or look:
        return n
    s = first
    while k < n:
        if is_like(q, s, first):
            s.picked = True
            k += 1
        s = s.next
    s = first
    k = 0
    while k < n:
        after = s.next
        if s.picked:
            s.picked = False
            out[k] = queue_start(q, s)
            k += 1
        s = after
    return n


# ---- what goes with it; the requests are the caller's

cdef void tell(Sequences* q, Request* r, int64_t now) noexcept nogil:
    cdef Sequence* s = (<Entry*>r.sched).sequence
    r.stamps[T_STARTED] = now
    if r.flags & FLAG_SEQUENCE_START:
        states_reset(q, s)
    states_fill(q, s, r)
    controls_fill(q, r)
    if q.tapped:
        responses_begin(q, r)


# Memory ran out: nobody will execute these.
cdef int32_t fail(Sequences* q, int32_t i, Request** out, int32_t n) noexcept nogil:
    cdef int32_t k
    cdef Request* r
    sequences_executed(&q.base, i)
    for k in range(n):
        r = out[k]
        if r == NULL:
            continue
        if not r.flags & FLAG_PADDING:
            response_fail(&r.response, TF_UNAVAILABLE, b"out of memory", 13)
        r.response.next = NULL
        r.sink.deliver(r.sink, &r.response, &r.response)
    return 0


cdef int32_t hand_over(Sequences* q, int32_t i, Request** out, int32_t n, int64_t now) noexcept nogil:
    cdef Request* like = NULL
    cdef int32_t k
    for k in range(n):
        if out[k] != NULL:
            tell(q, out[k], now)
            like = out[k]
    for k in range(n):
        if out[k] == NULL:
            out[k] = padding_new(q, &q.seats[i], like, now)
            if out[k] == NULL:
                return fail(q, i, out, n)
    return n


# ---- waiting; hold the lock

cdef void wait(Sequences* q, Seat* seat, int64_t until) noexcept nogil:
    cdef timespec ts
    seat.asleep = True
    if until and not q.faked:
        ts.tv_sec = until // 1000000000
        ts.tv_nsec = until % 1000000000
        pthread_cond_timedwait(&seat.wake, &q.lock, &ts)
    else:
        pthread_cond_wait(&seat.wake, &q.lock)
    seat.asleep = False
    tf_store32(&seat.poked, 0)


# Look for work a little; whether there is some, or the end.
cdef bint look_around(Sequences* q, Seat* seat, int64_t spin_ns) noexcept nogil:
    if not spin_wanted(&seat.spin_luck, spin_ns):
        return False
    seat.spinning = 1
    pthread_mutex_unlock(&q.lock)
    spin_look(&seat.n_ready, &q.base.stopping, spin_ns)
    pthread_mutex_lock(&q.lock)
    seat.spinning = 0
    spin_learn(&seat.spin_luck, seat.ready.head != NULL)
    return seat.ready.head != NULL or q.base.stopping


cdef int32_t sequences_take(Scheduler* base, int32_t i, Request** out, int mode, int64_t spin_ns,
                            int64_t* now) noexcept nogil:
    cdef Sequences* q = <Sequences*>base
    cdef Seat* seat
    cdef int32_t n
    cdef int64_t until
    if i >= q.n_seats:
        return TAKE_STOPPED
    seat = &q.seats[i]
    pthread_mutex_lock(&q.lock)
    while True:
        if seat.ready.head != NULL:
            until = 0
            if q.direct:
                n = choose_direct(q, seat, out, mode == TAKE_LOOK, clock_of(q), &until)
            else:
                n = choose_oldest(q, seat, out, mode == TAKE_LOOK, clock_of(q), &until)
            if n:
                pthread_mutex_unlock(&q.lock)
                now[0] = now_ns()
                if mode != TAKE_LOOK:
                    n = hand_over(q, i, out, n, now[0])
                if n:
                    return n
                pthread_mutex_lock(&q.lock)
                continue
        elif q.base.stopping and seat.n_queued == 0 and q.backlog.head == NULL:
            seat.ended = True
            pthread_mutex_unlock(&q.lock)
            return TAKE_STOPPED
        else:
            until = 0
        if mode == TAKE_NOW:
            pthread_mutex_unlock(&q.lock)
            return TAKE_NOTHING
        if until or not look_around(q, seat, spin_ns):
            wait(q, seat, until)


cdef void sequences_executed(Scheduler* base, int32_t i) noexcept nogil:
    cdef Sequences* q = <Sequences*>base
    cdef Seat* seat = &q.seats[i]
    cdef int64_t now
    # With a tap a request leaves its sequence when its final response comes.
    if q.tapped:
        return
    pthread_mutex_lock(&q.lock)
    now = clock_of(q)
    while seat.out.head != NULL:
        settle(q, seat.out.head, now)
    pthread_mutex_unlock(&q.lock)
