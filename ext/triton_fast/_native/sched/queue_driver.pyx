# The queue driven by hand, for tests and bench/micro: a clock that is given, no instances, no threads. Requests have a
# number, and no tensors but an input of so many bytes.
from libc.stdint cimport int32_t, int64_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from triton_fast._native.core.marks cimport T_QUEUED
from triton_fast._native.core.native cimport TF_OK, TF_UNAVAILABLE, tf_error
from triton_fast._native.core.request cimport Request, Response, Sink, request_alloc, request_free, request_new
from triton_fast._native.core.respond cimport request_fork, response_send
from triton_fast._native.core.stats cimport N_BREAKS, N_FAILS, Stats, stats_clear
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.sched.policy cimport MAX_PREFERRED, Policy, Scan, scan_add, scan_begin, scan_decide
from triton_fast._native.sched.queue cimport (
    Queue, queue_expire_at, queue_free, queue_new, queue_set, queue_take_at,
)
from triton_fast._native.sched.scheduler cimport SUBMIT_OK, TAKE_NOW

from triton_fast._native.core.stats import BREAK_REASONS


cdef struct Ear:
    Sink sink               # first
    void* driver


cdef void hear(Sink* sink, Response* first, Response* last) noexcept nogil:
    with gil:
        note_all(<QueueDriver>(<Ear*>sink).driver, first, last)


cdef int note_all(QueueDriver self, Response* first, Response* last) except -1:
    cdef Response* p = first
    cdef Response* after
    cdef Request* r
    last.next = NULL
    while p != NULL:
        after = p.next
        r = p.request.parent if p.request.parent != NULL else p.request
        text = p.text[:p.text_len].decode() if p.code != TF_OK else None
        number = <uintptr_t>r.ctx
        self.delivered.append((number, text, bool(p.is_final)))
        if p.is_final:
            del self.requests[number]
        request_free(p.request)
        p = after
    return 0


cdef class QueueDriver:
    """A queue without threads. Times are ns of a clock that the caller keeps.

    Parameters
    ----------
    max_batch, delay_ns, preferred, max_volume, single
        See ``decide``.
    levels : sequence of (max_queue_size, timeout in us, timeout_override, timeout_delay)
    default_level : int
    ordered : bool
    max_bytes, max_held : int

    Attributes
    ----------
    delivered : list of (number, error text or None, is_final)
        What has come, in order; the caller empties it.
    """

    cdef Queue* queue
    cdef Stats stats
    cdef Ear* ear
    cdef readonly dict requests
    cdef readonly list delivered

    def __cinit__(self, *, int64_t max_batch=8, int64_t delay_ns=0, preferred=(), int64_t max_volume=0,
                  bint single=False, levels=((0, 0, False, False),), int32_t default_level=1, bint ordered=False,
                  int64_t max_bytes=0, int64_t max_held=0):
        memset(&self.stats, 0, sizeof(Stats))
        self.requests = {}
        self.delivered = []
        self.queue = queue_new(&self.stats)
        self.ear = <Ear*>calloc(1, sizeof(Ear))
        if self.queue == NULL or self.ear == NULL:
            raise MemoryError
        self.ear.sink.deliver = hear
        self.ear.driver = <void*>self
        fill_policy(&self.queue.policy, max_batch, delay_ns, preferred, max_volume, single)
        queue_set(self.queue, levels, default_level, ordered, max_bytes, TF_UNAVAILABLE)
        self.queue.order.max_held = max_held

    def __dealloc__(self):
        for number in self.requests or ():
            request_free(<Request*><uintptr_t>self.requests[number])
        if self.queue != NULL:
            queue_free(self.queue)
        free(self.ear)
        stats_clear(&self.stats)

    cdef Request* of(self, uintptr_t number) except NULL:
        return <Request*><uintptr_t>self.requests[number]

    def submit(self, uintptr_t number, int64_t now, *, int64_t rows=1, uint64_t shape=0, uint64_t priority=0,
               uint64_t timeout_us=0, int64_t elements=0, size_t nbytes=0, int32_t max_responses=0):
        """Queue a request; return None, or the text of the refusal."""
        cdef tf_error e
        cdef bint wake
        cdef Request* r = request_new(NULL)
        cdef Tensor* t
        if r == NULL:
            raise MemoryError
        t = <Tensor*>request_alloc(r, sizeof(Tensor) + sizeof(int64_t))
        memset(t, 0, sizeof(Tensor))
        t.ndim = 1
        t.dims = <int64_t*>(t + 1)
        t.dims[0] = elements
        t.nbytes = nbytes
        r.inputs = t
        r.n_inputs = 1
        r.ctx = <void*>number
        r.sink = &self.ear.sink
        r.stamps[T_QUEUED] = now
        r.batch = rows
        r.shape_key = shape
        r.priority = priority
        r.timeout_us = timeout_us
        r.max_responses = max_responses
        if self.queue.base.submit(&self.queue.base, r, &wake, &e) != SUBMIT_OK:
            assert r.sink == &self.ear.sink
            request_free(r)
            return e.text[:e.len].decode()
        self.requests[number] = <uintptr_t>r
        return None

    def take(self, int64_t now, bint look=False):
        """Return the numbers of the batch that goes now, or when to ask again (0: nothing is queued)."""
        cdef Request* out[4096]
        cdef int64_t until = 0
        cdef int32_t n = queue_take_at(self.queue, out, look, now, &until), i
        return [<uintptr_t>out[i].ctx for i in range(n)] if n else until

    def expire(self, int64_t now):
        """What the watcher does when a deadline comes."""
        queue_expire_at(self.queue, now)

    def cancel(self, uintptr_t number):
        """Take a request back; False: an instance has it."""
        cdef Request* r = self.of(number)
        if not self.queue.base.cancel(&self.queue.base, r, True):
            return False
        assert r.sink == &self.ear.sink
        del self.requests[number]
        request_free(r)
        return True

    def send(self, uintptr_t number):
        """As an instance: one response more. False: nobody wants it."""
        cdef Request* c = request_fork(self.of(number))
        return response_send(c) == 0

    def finish(self, uintptr_t number):
        """As an instance: the final response."""
        cdef Request* r = self.of(number)
        r.response.next = NULL
        r.sink.deliver(r.sink, &r.response, &r.response)

    def stop(self, bint abort=False):
        self.queue.base.stop(&self.queue.base, abort)

    def limits(self, uintptr_t number):
        """Responses of a request that may be on their way, and how many are counted so."""
        cdef Request* r = self.of(number)
        return r.max_responses, r.unsent

    @property
    def held(self):
        """Bytes of responses that wait for earlier requests."""
        return self.queue.order.held

    @property
    def pending(self):
        return self.queue.base.pending(&self.queue.base)

    @property
    def next_deadline(self):
        """No queued request is due before this; 0: none has a deadline."""
        return self.queue.next_deadline

    @property
    def bytes(self):
        return self.queue.bytes

    @property
    def breaks(self):
        """Batches by what ended them."""
        return {BREAK_REASONS[i]: self.stats.breaks[i] for i in range(N_BREAKS)}

    @property
    def failures(self):
        return [self.stats.failures[i] for i in range(N_FAILS)]


cdef int fill_policy(Policy* p, int64_t max_batch, int64_t delay_ns, preferred, int64_t max_volume,
                     bint single) except -1:
    cdef int32_t i
    if len(preferred) > MAX_PREFERRED:
        raise ValueError(f"at most {MAX_PREFERRED} preferred batch sizes, got {len(preferred)}")
    memset(p, 0, sizeof(Policy))
    p.single = single
    p.max_batch = max_batch
    p.delay_ns = delay_ns
    p.max_volume = max_volume
    p.n_preferred = <int32_t>len(preferred)
    for i, size in enumerate(sorted(preferred)):
        p.preferred[i] = size
    return 0


def decide(sizes, int64_t oldest_ns, int64_t now, *, int64_t max_batch, int64_t delay_ns=0, preferred=(),
           bint single=False, int64_t max_volume=0, volumes=(), bint others=False):
    """Run the pure policy over queued batch sizes, oldest first.

    Returns
    -------
    (taken, wait_until, reason)
        How many requests go now and what ends their batch, or 0, the time in ns at which to ask again, and None.
    """
    cdef Policy p
    cdef Scan s
    cdef int64_t until = 0
    cdef int32_t i, n, why = 0
    fill_policy(&p, max_batch, delay_ns, preferred, max_volume, single)
    scan_begin(&s, now)
    for i, size in enumerate(sizes):
        if not scan_add(&p, &s, size, volumes[i] if volumes else 0, oldest_ns):
            break
    n = scan_decide(&p, &s, others, &until, &why) if s.n else 0
    return n, until, BREAK_REASONS[why] if n else None


def bench(int n):
    """Submit and take n requests, eight to a batch; return how many came out (bench/micro only)."""
    cdef Stats stats
    cdef Request* given[8]
    cdef Request* out[4096]
    cdef tf_error e
    cdef bint wake
    cdef int _i, k, taken = 0
    cdef int64_t now
    cdef Queue* q
    memset(&stats, 0, sizeof(Stats))
    q = queue_new(&stats)
    if q == NULL:
        raise MemoryError
    q.policy.single = False
    q.policy.max_batch = 8
    for k in range(8):
        given[k] = request_new(NULL)
    for _i in range(n // 8):
        for k in range(8):
            given[k].stamps[T_QUEUED] = 1
            q.base.submit(&q.base, given[k], &wake, &e)
        taken += q.base.take(&q.base, 0, out, TAKE_NOW, 0, &now)
    for k in range(8):
        request_free(given[k])
    queue_free(q)
    stats_clear(&stats)
    return taken
