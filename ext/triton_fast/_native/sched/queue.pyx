# Instances pull. There is no scheduler thread: a free instance asks the pure policy (policy.pxd) about the bucket of
# the first request, then about buckets that may hold a whole batch, and otherwise waits for the earliest deadline.
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset, strlen
from posix.time cimport timespec

from triton_fast._native.core.marks cimport (
    FLAG_PADDING, FLAG_PART, FLAG_REST, REQ_CANCELLED, REQ_DONE, REQ_EXPIRED, REQ_QUEUED, REQ_RUNNING, T_QUEUED,
    T_STARTED,
)
from triton_fast._native.core.native cimport (
    TF_UNAVAILABLE, now_ns, tf_add64, tf_cas32, tf_error, tf_fail, tf_load32, tf_store32,
)
from triton_fast._native.core.pthread cimport (
    cond_init_monotonic, pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_signal, pthread_cond_timedwait,
    pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)
from triton_fast._native.core.request cimport Request, response_fail
from triton_fast._native.core.respond cimport request_cancel
from triton_fast._native.core.stats cimport BREAK_ORDER, FAIL_CANCELED, FAIL_REJECTED, Stats, stats_failure
from triton_fast._native.sched.due cimport due_add, due_before, due_clear, due_has, due_late, due_remove, due_reserve
from triton_fast._native.sched.full cimport FULL, bytes_check, bytes_of
from triton_fast._native.sched.lanes cimport (
    Bucket, Lane, bucket_drop, bucket_find, bucket_make, lane_busy, lane_empty, next_lane, ready_add,
    ready_remove, shapes_begin, shapes_end, shapes_lanes, volume_of,
)
from triton_fast._native.sched.order cimport Place, order_enter, order_leave, place_new
from triton_fast._native.sched.policy cimport CAN_GROW, Policy, Scan, config_ns, scan_add, scan_begin, scan_decide
from triton_fast._native.sched.scheduler cimport (
    SUBMIT_OK, SUBMIT_REFUSED, SUBMIT_STOPPED, TAKE_LOOK, TAKE_NOTHING, TAKE_NOW, TAKE_STOPPED, Scheduler,
)
from triton_fast._native.sched.spin cimport spin_learn, spin_look, spin_wanted
from triton_fast._native.sched.stopping cimport STOPPING


cdef enum:
    WATCH_NS = 250000       # between two looks for expired requests: no refusal is later than this

cdef const char* EXPIRED = b"Request timeout expired"


cdef Queue* queue_new(Stats* stats) noexcept nogil:
    cdef Queue* q = <Queue*>calloc(1, sizeof(Queue))
    if q == NULL:
        return NULL
    if shapes_begin(&q.shapes) != 0 or make_levels(q, 1) != 0:
        shapes_end(&q.shapes)
        free(q)
        return NULL
    pthread_mutex_init(&q.lock, NULL)
    cond_init_monotonic(&q.wake)
    cond_init_monotonic(&q.watch)
    q.base.submit = queue_submit
    q.base.wake = queue_wake
    q.base.cancel = queue_cancel
    q.base.take = queue_take
    q.base.stop = queue_stop
    q.base.pending = queue_pending
    q.base.stats = stats
    q.policy.single = True
    q.full_code = TF_UNAVAILABLE
    return q


cdef int make_levels(Queue* q, int32_t n) noexcept nogil:
    cdef Level* levels = <Level*>calloc(<size_t>n, sizeof(Level))
    cdef int32_t i
    if levels == NULL or shapes_lanes(&q.shapes, 2 * n) != 0:
        free(levels)
        return -1
    for i in range(n):
        levels[i].lane = &q.shapes.lanes[2 * i]
    free(q.levels)
    q.levels = levels
    q.n_levels = n
    return 0


cdef int queue_set(Queue* q, levels, default_level, bint ordered, int64_t max_bytes, int32_t full_code) except -1:
    cdef Level* level
    cdef Py_ssize_t i
    if len(levels) > MAX_LEVELS or not 1 <= default_level <= len(levels):
        raise ValueError(f"1 to {MAX_LEVELS} levels with the default one among them: {len(levels)}, {default_level}")
    if make_levels(q, <int32_t>len(levels)) != 0:
        raise MemoryError
    q.default_level = default_level - 1
    q.ordered = ordered
    q.max_bytes = max_bytes
    q.full_code = full_code
    q.order.full_code = full_code
    q.limits = ordered or max_bytes
    q.several_lanes = len(levels) > 1
    for i, (max_size, timeout_us, override, delay) in enumerate(levels):
        level = &q.levels[i]
        level.max_size = max_size
        level.timeout_ns = config_ns(timeout_us)
        level.timeout_override = override
        level.delay = delay
        q.limits = q.limits or level.max_size or level.timeout_ns
        if level.timeout_ns and delay:
            q.several_lanes = True
        elif level.timeout_ns:
            q.refuses_late = True
    return 0


cdef void queue_free(Queue* q) noexcept nogil:
    pthread_cond_destroy(&q.wake)
    pthread_cond_destroy(&q.watch)
    pthread_mutex_destroy(&q.lock)
    due_clear(&q.due)
    free(q.levels)
    shapes_end(&q.shapes)
    free(q)


# ---- lanes (all under the lock)

# Whether rows queued could be a batch that goes before its delay is over.
cdef inline bint may_be_ready(const Policy* p, int64_t rows) noexcept nogil:
    return p.delay_ns != 0 and (rows >= p.max_batch or (p.n_preferred != 0 and rows >= p.preferred[0]))


cdef inline void link_last(Queue* q, Bucket* b, Request* r) noexcept nogil:
    cdef Lane* lane = b.lane
    r.bucket = b
    r.q_next = NULL
    r.q_prev = lane.tail
    if lane.tail != NULL:
        lane.tail.q_next = r
    else:
        lane.head = r
        lane_busy(&q.shapes, lane)
    lane.tail = r
    r.b_next = NULL
    r.b_prev = b.tail
    if b.tail != NULL:
        b.tail.b_next = r
    else:
        b.head = r
    b.tail = r
    b.rows += r.batch
    if may_be_ready(&q.policy, b.rows) and not b.in_ready:
        ready_add(&q.shapes, b)


# Requests were taken from b.
cdef inline void bucket_less(Queue* q, Lane* lane, Bucket* b) noexcept nogil:
    if b.in_ready and not may_be_ready(&q.policy, b.rows):
        ready_remove(&q.shapes, b)
    if b.head == NULL and b != &lane.fixed:
        bucket_drop(&q.shapes, b)


# Out of its lane and its bucket, which goes with its last request, and out of the deadlines.
cdef void unlink(Queue* q, Request* r) noexcept nogil:
    cdef Bucket* b = <Bucket*>r.bucket
    cdef Lane* lane = b.lane
    if due_has(r):
        due_remove(&q.due, r)
    elif lane.due == r:
        lane.due = r.q_next
        while lane.due != NULL and due_has(lane.due):
            lane.due = lane.due.q_next
    if r.q_prev != NULL:
        r.q_prev.q_next = r.q_next
    else:
        lane.head = r.q_next
    if r.q_next != NULL:
        r.q_next.q_prev = r.q_prev
    else:
        lane.tail = r.q_prev
    if lane.head == NULL:
        lane_empty(&q.shapes, lane)
    if r.b_prev != NULL:
        r.b_prev.b_next = r.b_next
    else:
        b.head = r.b_next
    if r.b_next != NULL:
        r.b_next.b_prev = r.b_prev
    else:
        b.tail = r.b_prev
    b.rows -= r.batch
    r.bucket = NULL
    bucket_less(q, lane, b)


# r leaves the queue.
cdef void remove(Queue* q, Request* r) noexcept nogil:
    q.levels[(<Bucket*>r.bucket).lane.number >> 1].count -= 1
    if q.max_bytes:
        q.bytes -= bytes_of(r)
    unlink(q, r)
    tf_store32(&q.count, q.count - 1)


# ---- the public side

# Whether r may come in: e says why not. Under the lock.
cdef int check_room(Queue* q, Level* level, Request* r, Place* place, tf_error* e) noexcept nogil:
    # The rest of a request that was cut goes where its first part went.
    if level.max_size and level.count >= level.max_size and not r.flags & FLAG_REST:
        return tf_fail(e, q.full_code, "%s", FULL)
    if q.max_bytes:
        if bytes_check(r, q.bytes, q.max_bytes, q.full_code, e) != 0:
            return -1
        q.bytes += bytes_of(r)
    if (q.ordered and place == NULL) or (level.timeout_ns and due_reserve(&q.due) != 0):
        return tf_fail(e, TF_UNAVAILABLE, "out of memory")
    return 0


# r is in: when it is due, and its place among the deadlines of its lane, for which there is room, and in the order.
cdef void note(Queue* q, Level* level, Request* r, Place* place) noexcept nogil:
    cdef Lane* lane = level.lane
    cdef int64_t timeout = level.timeout_ns
    if q.ordered:
        order_enter(&q.order, place, r)
    r.deadline = 0
    if timeout == 0:
        return
    if level.timeout_override and r.timeout_us and r.timeout_us < <uint64_t>(timeout // 1000):
        timeout = <int64_t>r.timeout_us * 1000
    r.deadline = r.stamps[T_QUEUED] + timeout
    if lane.due == NULL or r.deadline >= lane.last_deadline:
        if lane.due == NULL:
            lane.due = r
        lane.last_deadline = r.deadline
    else:
        due_add(&q.due, r)
    if q.next_deadline == 0 or r.deadline < q.next_deadline:
        q.next_deadline = r.deadline
        pthread_cond_signal(&q.watch)


cdef int queue_submit(Scheduler* s, Request* r, bint* wake, tf_error* e) noexcept nogil:
    cdef Queue* q = <Queue*>s
    cdef Level* level = q.levels
    cdef Lane* lane
    cdef Bucket* b
    cdef Place* place = NULL
    wake[0] = False
    r.level = 1
    if q.n_levels > 1:
        r.level = <int32_t>r.priority if 1 <= r.priority <= <uint64_t>q.n_levels else q.default_level + 1
        level = &q.levels[r.level - 1]
    if q.ordered:
        place = place_new(r)
    pthread_mutex_lock(&q.lock)
    if q.base.stopping:
        pthread_mutex_unlock(&q.lock)
        tf_fail(e, TF_UNAVAILABLE, "%s", STOPPING)
        return SUBMIT_STOPPED
    if q.limits and check_room(q, level, r, place, e) != 0:
        pthread_mutex_unlock(&q.lock)
        stats_failure(q.base.stats, FAIL_REJECTED, 0)
        return SUBMIT_REFUSED
    lane = level.lane
    b = bucket_find(&q.shapes, lane, r.shape_key)
    if b == NULL:
        b = bucket_make(&q.shapes, lane, r.shape_key)
        if b == NULL:
            if q.max_bytes:
                q.bytes -= bytes_of(r)
            pthread_mutex_unlock(&q.lock)
            tf_fail(e, TF_UNAVAILABLE, "out of memory")
            return SUBMIT_REFUSED
    if r.stamps[T_QUEUED] == 0:
        r.stamps[T_QUEUED] = now_ns()
    q.arrivals += 1
    r.order = q.arrivals
    r.sched = NULL
    tf_store32(&r.state, REQ_QUEUED)
    link_last(q, b, r)
    level.count += 1
    tf_store32(&q.count, q.count + 1)
    if q.limits:
        note(q, level, r, place)
    # While a batch waits out its delay somebody already sleeps until the oldest deadline: wake only for a whole batch.
    wake[0] = (q.idle > 0 and q.spinning == 0
               and (q.policy.delay_ns == 0 or q.count == 1 or b.in_ready or q.several_lanes))
    pthread_mutex_unlock(&q.lock)
    return SUBMIT_OK


cdef void queue_wake(Scheduler* s) noexcept nogil:
    pthread_cond_signal(&(<Queue*>s).wake)


cdef int32_t queue_pending(Scheduler* s) noexcept nogil:
    return tf_load32(&(<Queue*>s).count)


cdef bint queue_cancel(Scheduler* s, Request* r, bint tell) noexcept nogil:
    cdef Queue* q = <Queue*>s
    if tell:
        request_cancel(r)
    pthread_mutex_lock(&q.lock)
    if not tf_cas32(&r.state, REQ_QUEUED, REQ_CANCELLED):
        pthread_mutex_unlock(&q.lock)
        return False
    remove(q, r)
    pthread_mutex_unlock(&q.lock)
    if q.ordered:
        order_leave(r)
    count_failure(q, r, FAIL_CANCELED)
    return True


# A part is no request: who cut it counts.
cdef inline void count_failure(Queue* q, Request* r, int reason) noexcept nogil:
    if not r.flags & (FLAG_PART | FLAG_PADDING):
        stats_failure(q.base.stats, reason, now_ns() - r.stamps[T_QUEUED])


# Requests taken off the queue to be refused, in the order in which they are answered, linked by q_next.
cdef struct Refused:
    Request* head
    Request* tail


# Take r off the queue for refusal. Under the lock, its new state too: a cancel after this finds it gone.
cdef void set_aside(Queue* q, Request* r, int32_t state, Refused* refused) noexcept nogil:
    tf_store32(&r.state, state)
    remove(q, r)
    r.q_next = NULL
    if refused.tail != NULL:
        refused.tail.q_next = r
    else:
        refused.head = r
    refused.tail = r


# Answer all that was set aside with an error. No lock is held.
cdef void refuse(Queue* q, Refused* refused) noexcept nogil:
    cdef Request* r = refused.head
    cdef Request* after
    cdef const char* text
    cdef int64_t now
    while r != NULL:
        after = r.q_next
        now = now_ns()
        text = STOPPING
        if tf_load32(&r.state) == REQ_EXPIRED:
            text = EXPIRED
            due_late(&q.due, now - r.deadline)
        response_fail(&r.response, TF_UNAVAILABLE, text, strlen(text))
        count_failure(q, r, FAIL_REJECTED)
        r.response.next = NULL
        if q.ordered:
            order_leave(r)      # an error waits for nobody
        r.sink.deliver(r.sink, &r.response, &r.response)
        r = after
    refused.head = NULL
    refused.tail = NULL


# ---- deadlines (under the lock)

# r's time is over: it is refused, or goes behind all of its level that are in time.
cdef void expire_one(Queue* q, Request* r, Refused* refused) noexcept nogil:
    cdef Level* level = &q.levels[(<Bucket*>r.bucket).lane.number >> 1]
    cdef Bucket* b = NULL
    if level.delay:
        b = bucket_find(&q.shapes, level.lane + 1, r.shape_key)
        if b == NULL:
            b = bucket_make(&q.shapes, level.lane + 1, r.shape_key)
    if b == NULL:
        set_aside(q, r, REQ_EXPIRED, refused)
        return
    unlink(q, r)
    r.deadline = 0
    r.sched = NULL
    link_last(q, b, r)


# All that are due, in the order of their deadlines within each level. Costs as much as they are many.
cdef void expire(Queue* q, int64_t now, Refused* refused) noexcept nogil:
    cdef Request* first
    cdef Lane* lane
    cdef int64_t earliest = 0
    while q.due.n and q.due.heap[0].deadline <= now:
        first = q.due.heap[0]
        lane = (<Bucket*>first.bucket).lane
        while lane.due != NULL and due_before(lane.due, first):
            expire_one(q, lane.due, refused)
        expire_one(q, first, refused)
    if q.due.n:
        earliest = q.due.heap[0].deadline
    lane = next_lane(&q.shapes, 0)
    while lane != NULL:
        while lane.due != NULL and lane.due.deadline <= now:
            expire_one(q, lane.due, refused)
        if lane.due != NULL and (earliest == 0 or lane.due.deadline < earliest):
            earliest = lane.due.deadline
        lane = next_lane(&q.shapes, lane.number + 1)
    q.next_deadline = earliest


# ---- taking

# Unlink the first of n requests that go, with those behind it that also follow each other in their lane and bucket;
# returns how many. All of a batch, most times.
cdef inline int32_t unlink_run(Queue* q, Request** out, int32_t n, int64_t now) noexcept nogil:
    cdef Request* r = out[0]
    cdef Bucket* b = <Bucket*>r.bucket
    cdef Lane* lane = b.lane
    cdef Level* level = &q.levels[lane.number >> 1]
    cdef int64_t rows = r.batch
    cdef int32_t i = 1
    tf_store32(&r.state, REQ_RUNNING)
    r.stamps[T_STARTED] = now
    if lane.head != r or b.head != r or level.timeout_ns:
        level.count -= 1
        unlink(q, r)
        return 1
    while i < n and r.q_next == out[i] and r.b_next == out[i]:
        r = out[i]
        tf_store32(&r.state, REQ_RUNNING)
        r.stamps[T_STARTED] = now
        rows += r.batch
        i += 1
    level.count -= i
    lane.head = r.q_next
    if lane.head != NULL:
        lane.head.q_prev = NULL
    else:
        lane.tail = NULL
        lane_empty(&q.shapes, lane)
    b.head = r.b_next
    if b.head != NULL:
        b.head.b_prev = NULL
    else:
        b.tail = NULL
    b.rows -= rows
    bucket_less(q, lane, b)
    return i


# What would go with the first of bucket b: fills out and returns how many, or 0 with a time to look again. `hurry`:
# whatever there is.
cdef int32_t form(Queue* q, Bucket* b, Request** out, bint hurry, int64_t now, int64_t* wait_until,
                  int32_t* why) noexcept nogil:
    cdef Scan scan
    cdef Request* r
    cdef Lane* lane = b.lane
    cdef uint64_t key = b.key
    cdef int32_t n
    cdef int64_t until = 0
    scan_begin(&scan, now)
    while lane != NULL:
        r = b.head if b != NULL else NULL
        while r != NULL:
            out[scan.n] = r     # below MAX_TAKE: the one that makes it so many is the last
            if not scan_add(&q.policy, &scan, r.batch, volume_of(r) if q.policy.max_volume else 0,
                            r.stamps[T_QUEUED]):
                break
            r = r.b_next
        if scan.full != CAN_GROW or not q.several_lanes:
            break
        lane = next_lane(&q.shapes, lane.number + 1)
        if lane != NULL:
            b = bucket_find(&q.shapes, lane, key)
    n = scan_decide(&q.policy, &scan, q.count > scan.n, &until, why)
    if n == 0 and hurry:
        why[0] = BREAK_ORDER
        return scan.n
    if n == 0 and (wait_until[0] == 0 or until < wait_until[0]):
        wait_until[0] = until
    return n


# Whether a batch that begins in a later lane than `first` has waited or grown long enough.
cdef bint lower_may_go(Queue* q, Bucket* first, Request** out, int64_t now, int64_t* wait_until) noexcept nogil:
    cdef Lane* lane = next_lane(&q.shapes, first.lane.number + 1)
    cdef Bucket* b = q.shapes.ready_head
    cdef int32_t why
    while lane != NULL and form(q, <Bucket*>lane.head.bucket, out, False, now, wait_until, &why) == 0:
        lane = next_lane(&q.shapes, lane.number + 1)
    while lane == NULL and b != NULL:
        if b.lane != first.lane and form(q, b, out, False, now, wait_until, &why) != 0:
            return True
        b = b.ready_next
    return lane != NULL


# The batch that goes now; 0: none, look again at *wait_until, 0 if nothing is queued. Under the lock.
cdef int32_t take_now(Queue* q, Request** out, bint look, int64_t now, int64_t* wait_until,
                      Refused* refused) noexcept nogil:
    cdef Bucket* first
    cdef Bucket* b
    cdef int32_t n, i = 0, why = 0
    wait_until[0] = 0
    if q.next_deadline and q.next_deadline <= now:
        expire(q, now, refused)
    if q.count == 0:
        return 0
    first = <Bucket*>next_lane(&q.shapes, 0).head.bucket
    n = form(q, first, out, q.base.stopping, now, wait_until, &why)
    b = q.shapes.ready_head
    while n == 0 and b != NULL:
        if b.lane == first.lane and b != first:
            n = form(q, b, out, False, now, wait_until, &why)
        b = b.ready_next
    if n == 0 and q.several_lanes and lower_may_go(q, first, out, now, wait_until):
        # It must not overtake, nor stand and wait while the first waits for more to come.
        n = form(q, first, out, True, now, wait_until, &why)
    if n == 0:
        if q.next_deadline and q.next_deadline < wait_until[0]:
            wait_until[0] = q.next_deadline
        return 0
    if look:
        return n
    if not q.policy.single:
        tf_add64(&q.base.stats.breaks[why], 1)
    if q.max_bytes:
        for i in range(n):
            q.bytes -= bytes_of(out[i])
        i = 0
    while i < n:
        i += unlink_run(q, &out[i], n - i, now)
    tf_store32(&q.count, q.count - n)
    return n


cdef int32_t queue_take(Scheduler* s, int32_t _instance, Request** out, int mode, int64_t spin_ns,
                        int64_t* now) noexcept nogil:
    cdef Queue* q = <Queue*>s
    cdef Refused refused
    cdef int32_t n
    cdef int64_t wait_until
    cdef timespec ts
    memset(&refused, 0, sizeof(Refused))
    pthread_mutex_lock(&q.lock)
    while True:
        while q.count != 0:
            now[0] = now_ns()
            n = take_now(q, out, mode == TAKE_LOOK, now[0], &wait_until, &refused)
            if n and q.count > (n if mode == TAKE_LOOK else 0) and q.idle and q.spinning == 0:
                pthread_cond_signal(&q.wake)    # more to do, and somebody to do it
            if n or refused.head != NULL:
                pthread_mutex_unlock(&q.lock)
                refuse(q, &refused)
                if n:
                    return n
                pthread_mutex_lock(&q.lock)
                continue
            if mode == TAKE_NOW:
                pthread_mutex_unlock(&q.lock)
                return TAKE_NOTHING
            ts.tv_sec = wait_until // 1000000000
            ts.tv_nsec = wait_until % 1000000000
            q.idle += 1
            pthread_cond_timedwait(&q.wake, &q.lock, &ts)
            q.idle -= 1
        if q.base.stopping or mode == TAKE_NOW:
            n = TAKE_STOPPED if q.base.stopping else TAKE_NOTHING
            pthread_mutex_unlock(&q.lock)
            return n
        if q.spinning == 0 and spin_wanted(&q.spin_luck, spin_ns):
            q.spinning = 1
            pthread_mutex_unlock(&q.lock)
            spin_look(&q.count, &q.base.stopping, spin_ns)
            pthread_mutex_lock(&q.lock)
            q.spinning = 0
            spin_learn(&q.spin_luck, q.count != 0)
            if q.count != 0 or q.base.stopping:
                continue
        q.idle += 1
        pthread_cond_wait(&q.wake, &q.lock)
        q.idle -= 1


cdef int32_t queue_take_at(Queue* q, Request** out, bint look, int64_t now, int64_t* wait_until) noexcept nogil:
    cdef Refused refused
    cdef int32_t n
    memset(&refused, 0, sizeof(Refused))
    pthread_mutex_lock(&q.lock)
    n = take_now(q, out, look, now, wait_until, &refused)
    pthread_mutex_unlock(&q.lock)
    refuse(q, &refused)
    return n


cdef void queue_expire_at(Queue* q, int64_t now) noexcept nogil:
    cdef Refused refused
    memset(&refused, 0, sizeof(Refused))
    pthread_mutex_lock(&q.lock)
    expire(q, now, &refused)
    pthread_mutex_unlock(&q.lock)
    refuse(q, &refused)


cdef void queue_watch(Queue* q) noexcept nogil:
    cdef Refused refused
    cdef int64_t now, until, rested = 0
    cdef timespec ts
    memset(&refused, 0, sizeof(Refused))
    pthread_mutex_lock(&q.lock)
    while not q.base.stopping:
        now = now_ns()
        if q.next_deadline == 0:
            pthread_cond_wait(&q.watch, &q.lock)
            continue
        until = max(q.next_deadline, rested)
        if until > now:
            ts.tv_sec = until // 1000000000
            ts.tv_nsec = until % 1000000000
            pthread_cond_timedwait(&q.watch, &q.lock, &ts)
            continue
        expire(q, now, &refused)
        rested = now + WATCH_NS
        pthread_mutex_unlock(&q.lock)
        refuse(q, &refused)
        pthread_mutex_lock(&q.lock)
    pthread_mutex_unlock(&q.lock)


cdef void queue_stop(Scheduler* s, bint abort) noexcept nogil:
    cdef Queue* q = <Queue*>s
    cdef Refused refused
    pthread_mutex_lock(&q.lock)
    tf_store32(&q.base.stopping, True)     # a spinning thread looks without the lock
    memset(&refused, 0, sizeof(Refused))
    while abort and q.count != 0:
        set_aside(q, next_lane(&q.shapes, 0).head, REQ_DONE, &refused)
    pthread_cond_broadcast(&q.wake)
    pthread_cond_broadcast(&q.watch)
    pthread_mutex_unlock(&q.lock)
    refuse(q, &refused)
