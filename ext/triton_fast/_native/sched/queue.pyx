# Instances pull. There is no scheduler thread: a free instance asks the pure policy (policy.pxd) about the oldest
# bucket, then about buckets that may already hold a whole batch, and otherwise waits for the earliest deadline.
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset, strlen
from posix.time cimport timespec

from triton_fast._native.core.native cimport (
    TF_UNAVAILABLE, now_ns, tf_cas32, tf_error, tf_fail, tf_load32, tf_store32,
)
from triton_fast._native.core.pthread cimport (
    cond_init_monotonic, pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_signal, pthread_cond_timedwait,
    pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)
from triton_fast._native.core.request cimport (
    FLAG_PADDING, FLAG_PART, FLAG_REST, REQ_CANCELLED, REQ_DONE, REQ_EXPIRED, REQ_QUEUED, REQ_RUNNING, Request,
    T_QUEUED, T_STARTED, response_fail,
)
from triton_fast._native.core.respond cimport request_cancel
from triton_fast._native.core.stats cimport FAIL_CANCELED, FAIL_REJECTED, Stats, stats_failure
from triton_fast._native.sched.policy cimport MAX_PREFERRED, Policy, Scan, scan_add, scan_begin, scan_decide
from triton_fast._native.sched.scheduler cimport (
    SUBMIT_OK, SUBMIT_REFUSED, SUBMIT_STOPPED, TAKE_LOOK, TAKE_NOTHING, TAKE_NOW, TAKE_STOPPED, Scheduler,
)


cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    WATCH_NS = 1000000      # between two walks for expired requests: no refusal is later than this
    SPIN_LUCK_MAX = 8       # looks that paid, remembered
    SPIN_LUCK_LOSS = 4      # what a look in vain costs
    SPIN_REST = 64          # times an instance sleeps at once after that

cdef const char* STOPPING = b"Server is stopping, scheduler for model has stopped accepting new inference requests"
cdef const char* EXPIRED = b"Request timeout expired"


cdef Queue* queue_new(Stats* stats) noexcept nogil:
    cdef Queue* q = <Queue*>calloc(1, sizeof(Queue))
    if q == NULL:
        return NULL
    q.table_size = 16
    q.table = <Bucket**>calloc(q.table_size, sizeof(Bucket*))
    if q.table == NULL:
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
    return q


cdef void queue_free(Queue* q) noexcept nogil:
    cdef Bucket* b
    while q.spare != NULL:
        b = q.spare
        q.spare = b.chain
        free(b)
    pthread_cond_destroy(&q.wake)
    pthread_cond_destroy(&q.watch)
    pthread_mutex_destroy(&q.lock)
    free(q.table)
    free(q)


# ---- buckets (all under the lock)

cdef inline uint64_t slot_of(Queue* q, uint64_t key) noexcept nogil:
    return (key * <uint64_t>0x9E3779B97F4A7C15 >> 32) & (q.table_size - 1)


cdef void grow_table(Queue* q) noexcept nogil:
    cdef uint64_t old = q.table_size, i, s
    cdef Bucket** was = q.table
    cdef Bucket** table = <Bucket**>calloc(old * 2, sizeof(Bucket*))
    cdef Bucket* b
    cdef Bucket* after
    if table == NULL:
        return              # longer chains, nothing worse
    q.table = table
    q.table_size = old * 2
    for i in range(old):
        b = was[i]
        while b != NULL:
            after = b.chain
            s = slot_of(q, b.key)
            b.chain = table[s]
            table[s] = b
            b = after
    free(was)


cdef Bucket* bucket_for(Queue* q, uint64_t key) noexcept nogil:
    cdef uint64_t s
    cdef Bucket* b
    if key == 0:
        return &q.fixed
    b = q.table[slot_of(q, key)]
    while b != NULL:
        if b.key == key:
            return b
        b = b.chain
    b = q.spare
    if b != NULL:
        q.spare = b.chain
    else:
        b = <Bucket*>malloc(sizeof(Bucket))
        if b == NULL:
            return NULL
    memset(b, 0, sizeof(Bucket))
    b.key = key
    if q.n_buckets >= q.table_size:
        grow_table(q)
    s = slot_of(q, key)
    b.chain = q.table[s]
    q.table[s] = b
    q.n_buckets += 1
    return b


cdef void ready_add(Queue* q, Bucket* b) noexcept nogil:
    if b.in_ready:
        return
    b.in_ready = True
    b.ready_next = NULL
    b.ready_prev = q.ready_tail
    if q.ready_tail != NULL:
        q.ready_tail.ready_next = b
    else:
        q.ready_head = b
    q.ready_tail = b


cdef void ready_remove(Queue* q, Bucket* b) noexcept nogil:
    if not b.in_ready:
        return
    b.in_ready = False
    if b.ready_prev != NULL:
        b.ready_prev.ready_next = b.ready_next
    else:
        q.ready_head = b.ready_next
    if b.ready_next != NULL:
        b.ready_next.ready_prev = b.ready_prev
    else:
        q.ready_tail = b.ready_prev


cdef void bucket_drop(Queue* q, Bucket* b) noexcept nogil:
    cdef Bucket** link
    ready_remove(q, b)
    if b == &q.fixed:
        return
    link = &q.table[slot_of(q, b.key)]
    while link[0] != b:
        link = &link[0].chain
    link[0] = b.chain
    q.n_buckets -= 1
    b.chain = q.spare
    q.spare = b


# Whether rows queued could be a batch that goes before its delay is over.
cdef inline bint may_be_ready(const Policy* p, int64_t rows) noexcept nogil:
    return p.delay_ns != 0 and (rows >= p.max_batch or (p.n_preferred != 0 and rows >= p.preferred[0]))


cdef void unlink(Queue* q, Request* r) noexcept nogil:
    cdef Bucket* b = <Bucket*>r.bucket
    if r.q_prev != NULL:
        r.q_prev.q_next = r.q_next
    else:
        q.head = r.q_next
    if r.q_next != NULL:
        r.q_next.q_prev = r.q_prev
    else:
        q.tail = r.q_prev
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
    tf_store32(&q.count, q.count - 1)
    if b.head == NULL:
        bucket_drop(q, b)


# ---- the public side

cdef int queue_submit(Scheduler* s, Request* r, bint* wake, tf_error* e) noexcept nogil:
    cdef Queue* q = <Queue*>s
    cdef Bucket* b
    cdef int64_t timeout
    wake[0] = False
    pthread_mutex_lock(&q.lock)
    if q.base.stopping:
        pthread_mutex_unlock(&q.lock)
        tf_fail(e, TF_UNAVAILABLE, "%s", STOPPING)
        return SUBMIT_STOPPED
    if q.max_size and q.count >= q.max_size and not r.flags & FLAG_REST:
        pthread_mutex_unlock(&q.lock)
        stats_failure(q.base.stats, FAIL_REJECTED, 0)
        tf_fail(e, TF_UNAVAILABLE, "Exceeds maximum queue size")
        return SUBMIT_REFUSED
    b = bucket_for(q, r.shape_key)
    if b == NULL:
        pthread_mutex_unlock(&q.lock)
        tf_fail(e, TF_UNAVAILABLE, "out of memory")
        return SUBMIT_REFUSED
    if r.stamps[T_QUEUED] == 0:
        r.stamps[T_QUEUED] = now_ns()
    timeout = q.timeout_ns
    if timeout and q.timeout_override and r.timeout_us and r.timeout_us < <uint64_t>(timeout // 1000):
        timeout = <int64_t>r.timeout_us * 1000
    r.deadline = r.stamps[T_QUEUED] + timeout if timeout else 0
    if r.deadline and (q.next_deadline == 0 or r.deadline < q.next_deadline):
        q.next_deadline = r.deadline
        pthread_cond_signal(&q.watch)
    tf_store32(&r.state, REQ_QUEUED)
    r.bucket = b
    r.q_next = NULL
    r.q_prev = q.tail
    if q.tail != NULL:
        q.tail.q_next = r
    else:
        q.head = r
    q.tail = r
    r.b_next = NULL
    r.b_prev = b.tail
    if b.tail != NULL:
        b.tail.b_next = r
    else:
        b.head = r
    b.tail = r
    b.rows += r.batch
    if may_be_ready(&q.policy, b.rows):
        ready_add(q, b)
    tf_store32(&q.count, q.count + 1)
    # While a batch waits out its delay somebody already sleeps until the oldest deadline: wake only for a whole batch.
    wake[0] = q.idle > 0 and q.spinning == 0 and (q.policy.delay_ns == 0 or q.count == 1 or b.in_ready)
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
    unlink(q, r)
    pthread_mutex_unlock(&q.lock)
    count_failure(q, r, FAIL_CANCELED)
    return True


# A part is no request: who cut it counts.
cdef inline void count_failure(Queue* q, Request* r, int reason) noexcept nogil:
    if not r.flags & (FLAG_PART | FLAG_PADDING):
        stats_failure(q.base.stats, reason, now_ns() - r.stamps[T_QUEUED])


# Requests taken off the queue to be refused, oldest first, linked by q_next.
cdef struct Refused:
    Request* head
    Request* tail


# Take r off the queue for refusal. Under the lock, its new state too: a cancel after this finds it gone.
cdef void set_aside(Queue* q, Request* r, int32_t state, Refused* refused) noexcept nogil:
    tf_store32(&r.state, state)
    unlink(q, r)
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
    while r != NULL:
        after = r.q_next
        text = STOPPING
        if tf_load32(&r.state) == REQ_EXPIRED:
            text = EXPIRED
        response_fail(&r.response, TF_UNAVAILABLE, text, strlen(text))
        count_failure(q, r, FAIL_REJECTED)
        r.response.next = NULL
        r.sink.deliver(r.sink, &r.response, &r.response)
        r = after
    refused.head = NULL
    refused.tail = NULL


# The next batch of bucket b, if it may go now: unlinks (unless `look`) and returns how many. Requests on the way that
# are past their deadline are set aside; else the earliest deadline is a time to look again.
cdef int32_t take_from(Queue* q, Bucket* b, Request** out, bint look, int64_t now, int64_t* wait_until,
                       Refused* refused) noexcept nogil:
    cdef Scan scan
    cdef Request* r = b.head
    cdef Request* after
    cdef int32_t i, n
    cdef int64_t until = 0, deadline = 0
    scan_begin(&scan)
    while r != NULL:
        after = r.b_next
        if r.deadline and r.deadline <= now:
            set_aside(q, r, REQ_EXPIRED, refused)   # drops the bucket with its last request
            r = after
            continue
        if r.deadline and (deadline == 0 or r.deadline < deadline):
            deadline = r.deadline
        if not scan_add(&q.policy, &scan, r.batch):
            break
        r = after
    if scan.n == 0:
        return 0
    n = scan_decide(&q.policy, &scan, b.head.stamps[T_QUEUED], now, &until)
    if n == 0:
        if q.base.stopping:
            n = scan.n      # nothing more will join
        else:
            if deadline and deadline < until:
                until = deadline
            if wait_until[0] == 0 or until < wait_until[0]:
                wait_until[0] = until
            return 0
    if look:
        return n
    for i in range(n):
        r = b.head
        out[i] = r
        tf_store32(&r.state, REQ_RUNNING)
        r.stamps[T_STARTED] = now
        unlink(q, r)        # drops the bucket with its last request
    return n


cdef int32_t queue_take(Scheduler* s, int32_t _instance, Request** out, int mode, int64_t spin_ns,
                        int64_t* now) noexcept nogil:
    cdef Queue* q = <Queue*>s
    cdef Bucket* b
    cdef Bucket* after
    cdef Refused refused
    cdef int32_t n
    cdef int64_t wait_until, spin_end
    cdef timespec ts
    memset(&refused, 0, sizeof(Refused))
    pthread_mutex_lock(&q.lock)
    while True:
        while q.head != NULL:
            now[0] = now_ns()
            wait_until = 0
            n = 0
            n = take_from(q, <Bucket*>q.head.bucket, out, mode == TAKE_LOOK, now[0], &wait_until, &refused)
            b = q.ready_head
            while b != NULL and n == 0:
                after = b.ready_next
                n = take_from(q, b, out, mode == TAKE_LOOK, now[0], &wait_until, &refused)
                b = after
            if n and q.head != NULL and q.idle and q.spinning == 0:
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
        if spin_ns and q.spin_luck < 0:
            q.spin_luck += 1
        elif spin_ns and q.spinning == 0:
            # Look for work a little before sleeping: a wake-up through the kernel costs more than most small models.
            q.spinning = 1
            pthread_mutex_unlock(&q.lock)
            spin_end = now_ns() + spin_ns
            while tf_load32(&q.count) == 0 and not tf_load32(&q.base.stopping) and now_ns() < spin_end:
                sched_yield()       # who shares this processor brings the next request, maybe
            pthread_mutex_lock(&q.lock)
            q.spinning = 0
            if q.head != NULL:
                q.spin_luck = min(q.spin_luck + 1, SPIN_LUCK_MAX)
                continue
            # Requests come too seldom: do not burn the processor for the next ones.
            q.spin_luck -= SPIN_LUCK_LOSS
            if q.spin_luck < 0:
                q.spin_luck = -SPIN_REST
            if q.base.stopping:
                continue
        q.idle += 1
        pthread_cond_wait(&q.wake, &q.lock)
        q.idle -= 1


cdef void queue_watch(Queue* q) noexcept nogil:
    cdef Refused refused
    cdef Request* r
    cdef Request* after
    cdef int64_t now, earliest
    cdef timespec ts
    memset(&refused, 0, sizeof(Refused))
    pthread_mutex_lock(&q.lock)
    while not q.base.stopping:
        now = now_ns()
        if q.next_deadline == 0:
            pthread_cond_wait(&q.watch, &q.lock)
        elif q.next_deadline > now:
            ts.tv_sec = q.next_deadline // 1000000000
            ts.tv_nsec = q.next_deadline % 1000000000
            pthread_cond_timedwait(&q.watch, &q.lock, &ts)
        else:
            earliest = 0
            r = q.head
            while r != NULL:
                after = r.q_next
                if r.deadline and r.deadline <= now:
                    set_aside(q, r, REQ_EXPIRED, &refused)
                elif r.deadline and (earliest == 0 or r.deadline < earliest):
                    earliest = r.deadline
                r = after
            # A walk costs as much as the queue is long: not more often than once in WATCH_NS.
            q.next_deadline = max(earliest, now + WATCH_NS) if earliest else 0
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
    while abort and q.head != NULL:
        set_aside(q, q.head, REQ_DONE, &refused)
    pthread_cond_broadcast(&q.wake)
    pthread_cond_broadcast(&q.watch)
    pthread_mutex_unlock(&q.lock)
    refuse(q, &refused)


def decide(sizes, int64_t oldest_ns, int64_t now, *, int64_t max_batch, int64_t delay_ns=0, preferred=(),
           bint single=False):
    """Run the pure policy over queued batch sizes, oldest first.

    Returns
    -------
    (taken, wait_until)
        How many requests go now, or 0 and the time in ns at which to ask again.
    """
    cdef Policy p
    cdef Scan s
    cdef int64_t until = 0
    cdef int32_t i, n
    if len(preferred) > MAX_PREFERRED:
        raise ValueError(f"at most {MAX_PREFERRED} preferred batch sizes, got {len(preferred)}")
    memset(&p, 0, sizeof(Policy))
    p.single = single
    p.max_batch = max_batch
    p.delay_ns = delay_ns
    p.n_preferred = len(preferred)
    for i, size in enumerate(sorted(preferred)):
        p.preferred[i] = size
    scan_begin(&s)
    for size in sizes:
        if not scan_add(&p, &s, size):
            break
    n = scan_decide(&p, &s, oldest_ns, now, &until) if s.n else 0
    return n, until
