# Owns the queue and runs one native thread per instance. A thread never holds the GIL: it pulls a batch, runs the
# backend, stamps and counts, and delivers chains of responses. Knows nothing of configs, front ends or backends.
import threading

from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset, strlen

from triton_fast._native.core.marks cimport (
    FLAG_DEVICE, FLAG_LENT, FLAG_PADDING, REQ_DONE, T_COMPUTED, T_INPUT, T_OUTPUT, T_QUEUED, T_STARTED,
)
from triton_fast._native.core.native cimport (
    TF_INTERNAL, TF_OK, TF_UNAVAILABLE, now_ns, tf_load32, tf_lock, tf_store32, tf_unlock,
)
from triton_fast._native.core.pthread cimport (
    pthread_create, pthread_equal, pthread_join, pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_t, pthread_mutex_unlock, pthread_self, pthread_setname_np, pthread_t,
)
from triton_fast._native.core.collector cimport TraceSwitch
from triton_fast._native.core.model cimport ModelHandle
from triton_fast._native.core.request cimport Request, Response, Sink, response_fail
from triton_fast._native.core.stats cimport (
    PHASE_INFER, PHASE_INPUT, PHASE_OUTPUT, PHASE_QUEUE, PHASE_REQUEST, N_PHASES, Stats,
    stats_clear, stats_execution, stats_measure, stats_snapshot, stats_summaries,
)
from triton_fast._native.sched.due cimport due_histogram
from triton_fast._native.sched.fetch cimport fetch_batch, fetch_restore
from triton_fast._native.sched.instance cimport Batch, NativeInstance, before_fn, execute_fn, request_count
from triton_fast._native.sched.limiter cimport (
    LimiterPlace, Place, place_acquire, place_asked, place_interrupt, place_release,
)
from triton_fast._native.sched.policy cimport MAX_PREFERRED, MAX_TAKE, config_ns
from triton_fast._native.sched.queue cimport Queue, queue_free, queue_new, queue_set, queue_watch
from triton_fast._native.sched.scheduler cimport (
    TAKE_LOOK, TAKE_NOW, TAKE_STOPPED, TAKE_WAIT, NativeScheduler, Scheduler, scheduler_stop,
)
from triton_fast._native.core.labels cimport LabelTable

from triton_fast.errors import Internal

cdef extern from "tf_signals.h" nogil:
    int tf_block_signals()


cdef struct Runner:
    pthread_t thread
    Scheduler* source       # of batches
    int32_t number          # of the instance, among those of this model that run
    Stats* stats
    execute_fn execute
    before_fn before
    void* state
    int32_t device          # GPU whose memory the backend takes; -1: none
    int32_t copies_from     # see NativeInstance; never 0
    Place* place            # in the rate limiter; NULL: the instance may always run
    int64_t spin_ns
    pthread_mutex_t joining     # several callers of stop may wait for the same thread
    bint joined
    Request** taken         # room for MAX_TAKE


# ran: the backend had some of it; what could not be fetched is answered without.
cdef void finish(Runner* run, Batch* batch, bint ran) noexcept nogil:
    cdef int32_t i
    cdef int64_t done = now_ns()
    cdef int64_t[N_PHASES] phase
    cdef Request* r
    cdef Sink* sink = NULL
    cdef Response* first = NULL
    cdef Response* last = NULL
    if batch.t_input == 0:
        batch.t_input = batch.t_started
    if batch.t_computed < batch.t_input:
        batch.t_computed = batch.t_input
    phase[PHASE_INPUT] = batch.t_input - batch.t_started
    phase[PHASE_INFER] = batch.t_computed - batch.t_input
    phase[PHASE_OUTPUT] = done - batch.t_computed
    tf_lock(&run.stats.lock)
    if ran:
        stats_execution(run.stats, batch.rows - batch.padding, &phase[PHASE_INPUT])
    for i in range(batch.n):
        r = batch.requests[i]
        if r == NULL:       # kept by the backend
            continue
        r.stamps[T_INPUT] = batch.t_input
        r.stamps[T_COMPUTED] = batch.t_computed
        r.stamps[T_OUTPUT] = done
        tf_store32(&r.state, REQ_DONE)
        phase[PHASE_REQUEST] = done - r.stamps[T_QUEUED]
        phase[PHASE_QUEUE] = r.stamps[T_STARTED] - r.stamps[T_QUEUED]
        request_count(run.stats, r, phase)
    tf_unlock(&run.stats.lock)
    if run.source != NULL and run.source.executed != NULL:     # a warm-up comes from no source
        run.source.executed(run.source, run.number)
    # Responses of one sink travel as one chain: one wake-up of a loop per batch, not per request.
    for i in range(batch.n):
        r = batch.requests[i]
        if r == NULL:
            continue
        if r.sink != sink:
            if sink != NULL:
                sink.deliver(sink, first, last)
            sink = r.sink
            first = NULL
        r.response.next = NULL
        if first == NULL:
            first = &r.response
        else:
            last.next = &r.response
        last = &r.response
    if sink != NULL:
        sink.deliver(sink, first, last)


# Execute a batch with inputs in clients' memory, but for what the backend must not see: its rows are not counted then.
cdef int execute_fetched(Runner* run, Batch* batch, bint* ran) noexcept nogil:
    cdef bint placed = run.source != NULL and run.source.placed
    cdef int32_t n = batch.n
    cdef Response* p
    cdef int32_t i
    cdef int status = 0
    batch.n = fetch_batch(batch.requests, batch.n, run.device, placed, run.copies_from)
    for i in range(batch.n, n):
        batch.rows -= batch.requests[i].batch
    ran[0] = batch.n > 0
    if ran[0]:
        status = run.execute(run.state, batch)
    if batch.n < n and not placed:
        fetch_restore(batch.requests, n)
    batch.n = n
    for i in range(batch.n if placed else 0):
        p = &batch.requests[i].response if batch.requests[i] != NULL else NULL
        if p != NULL and p.code != TF_OK and p.n_outputs > 0:   # made of zeros
            response_fail(p, p.code, p.text, p.text_len)
    return status


# Execute what was taken and answer it.
cdef void run_batch(Runner* run, int32_t n, int64_t started) noexcept nogil:
    cdef Batch batch
    cdef int32_t i
    cdef int status
    cdef uint32_t flags = 0
    cdef bint ran = True
    cdef const char* silent = b"the backend gave neither outputs nor an error"
    batch.n = n
    batch.requests = run.taken
    batch.rows = 0
    batch.padding = 0
    batch.t_started = started
    batch.t_input = 0
    batch.t_computed = 0
    for i in range(n):
        batch.rows += run.taken[i].batch
        flags |= run.taken[i].flags
        if run.taken[i].flags & FLAG_PADDING:
            batch.padding += run.taken[i].batch
    status = execute_fetched(run, &batch, &ran) if flags & (FLAG_DEVICE | FLAG_LENT) else run.execute(run.state, &batch)
    if status != 0:
        for i in range(n):
            if run.taken[i] == NULL:
                continue
            if run.taken[i].response.code == TF_OK and run.taken[i].response.n_outputs == 0:
                response_fail(&run.taken[i].response, TF_INTERNAL, silent, strlen(silent))
    finish(run, &batch, ran)


# The next batch of an instance that must hold resources to run, which it does when there is one. It is looked for
# first, for who holds resources and has nothing to do keeps them from others.
cdef int32_t take_limited(Runner* run, int64_t* started) noexcept nogil:
    cdef int32_t n
    while True:
        if not place_asked(run.place):
            n = run.source.take(run.source, run.number, run.taken, TAKE_LOOK, run.spin_ns, started)
            if n == TAKE_STOPPED:
                return n
        if place_acquire(run.place) != 0:
            continue
        n = run.source.take(run.source, run.number, run.taken, TAKE_NOW, 0, started)
        if n > 0:
            return n
        place_release(run.place, False, False)      # another instance was faster
        if n == TAKE_STOPPED:
            return n


# Give the resources back after an execution. With more to do the instance asks anew at once: between two executions it
# would else be overtaken by those that wait, whatever its priority.
cdef void give_back(Runner* run) noexcept nogil:
    cdef int32_t now = True
    cdef bint again = run.source.pending(run.source) > 0
    if again and run.before != NULL:
        again = run.before(run.state, &now) == 0    # must not wait for its worker with resources in hand
    place_release(run.place, True, again)


cdef void* run_instance(void* arg) noexcept nogil:
    cdef Runner* run = <Runner*>arg
    cdef int64_t started = 0
    cdef int32_t n
    tf_block_signals()
    while True:
        if run.before != NULL and (run.place == NULL or not place_asked(run.place)):
            run.before(run.state, &run.source.stopping)
        if run.place == NULL:
            n = run.source.take(run.source, run.number, run.taken, TAKE_WAIT, run.spin_ns, &started)
        else:
            n = take_limited(run, &started)
        if n == TAKE_STOPPED:
            return NULL
        run_batch(run, n, started)
        if run.place != NULL:
            give_back(run)


cdef void run_once(NativeModel self, NativeInstance instance, Request** requests, int32_t n) noexcept:
    cdef Runner run
    memset(&run, 0, sizeof(Runner))
    run.stats = &self.stats
    run.execute = instance.execute
    run.state = instance.state
    run.device = instance.device if instance.takes_gpu else -1
    run.copies_from = instance.copies_from if instance.copies_from else INT32_MAX
    run.taken = requests
    with nogil:
        run_batch(&run, n, now_ns())


cdef int set_labels(NativeModel self, outputs) except -1:
    cdef LabelTable* table
    cdef uint32_t k
    cdef Py_ssize_t i
    self.labels = <LabelTable**>calloc(len(outputs) + 1, sizeof(LabelTable*))
    if self.labels == NULL:
        raise MemoryError
    for i, io in enumerate(outputs):
        labels = getattr(io, "labels", None)
        if not labels:
            continue
        table = <LabelTable*>calloc(1, sizeof(LabelTable))
        if table == NULL:
            raise MemoryError
        self.labels[i] = table
        table.text = <char**>calloc(len(labels), sizeof(char*))
        table.text_len = <uint32_t*>calloc(len(labels), sizeof(uint32_t))
        if table.text == NULL or table.text_len == NULL:
            raise MemoryError
        table.n = <uint32_t>len(labels)
        for k in range(table.n):
            encoded = labels[k] if isinstance(labels[k], bytes) else labels[k].encode()
            table.text[k] = <char*>malloc(len(encoded) + 1)
            if table.text[k] == NULL:
                raise MemoryError
            memcpy(table.text[k], <const char*>encoded, len(encoded) + 1)
            table.text_len[k] = <uint32_t>len(encoded)
    return 0

cdef void drop_labels(NativeModel self) noexcept:
    cdef int32_t i
    cdef uint32_t k
    if self.labels == NULL:
        return
    for i in range(self.ptr.n_outputs if self.ptr != NULL else 0):
        if self.labels[i] != NULL:
            for k in range(self.labels[i].n):
                free(self.labels[i].text[k])
            free(self.labels[i].text)
            free(self.labels[i].text_len)
            free(self.labels[i])
    free(self.labels)
    self.labels = NULL


cdef void* run_watcher(void* arg) noexcept nogil:
    tf_block_signals()
    queue_watch(<Queue*>(<Runner*>arg).source)
    return NULL


# Takes over run; its thread is joined by NativeModel.stop.
cdef int start_thread(NativeModel self, Runner* run, void* (*main)(void*) noexcept nogil, str name) except -1:
    encoded = name.encode()
    label = encoded[max(0, len(encoded) - 15):]
    run.source = self.source
    run.stats = &self.stats
    pthread_mutex_init(&run.joining, NULL)
    if pthread_create(&run.thread, NULL, main, run) != 0:
        pthread_mutex_destroy(&run.joining)
        free(run.taken)
        free(run)
        raise Internal(f"model '{self.name}' can not start a thread for '{name}'")
    pthread_setname_np(run.thread, label)
    self.runners.append(<size_t>run)
    return 0


cdef void free_runners(NativeModel self):
    cdef Runner* run
    cdef size_t address
    while self.runners:
        address = self.runners.pop()
        run = <Runner*>address
        pthread_mutex_destroy(&run.joining)
        free(run.taken)
        free(run)


# Who waits for resources may have nothing to run any more.
cdef void look_again(NativeModel self) noexcept:
    cdef LimiterPlace place
    for place in tuple(self.places):
        place_interrupt(place.ptr)


cdef bint on_own_thread(NativeModel self):
    cdef size_t address
    for address in self.runners:
        if not (<Runner*>address).joined and pthread_equal((<Runner*>address).thread, pthread_self()):
            return True
    return False


cdef class Epoch:
    """``value`` changes with every change of what names resolve to."""

    def advance(self):
        self.value += 1


cdef class NativeModel(ModelHandle):
    """A model version that takes requests.

    Parameters
    ----------
    name, version, max_batch, inputs, outputs, decoupled
        See ``ModelHandle``.
    dynamic : bool
        Requests may share a batch of up to ``max_batch`` rows; else each is executed alone.
    preferred : sequence of int
        Preferred batch sizes in rows.
    delay_us : int
        How long the oldest request may wait for its batch to fill.
    max_queue_size : int
        Requests that may wait; 0 = no limit.
    timeout_us, timeout_override, timeout_delay
        Default queue timeout (0 = none), whether a request may shorten it, and whether requests whose time is over go
        behind the others instead of being refused.
    levels : sequence of (max_queue_size, timeout_us, timeout_override, timeout_delay)
        The same for each priority from 1, the highest, on; instead of the arguments above.
    default_level : int
        The priority of requests that name none of these.
    preserve_ordering : bool
        Responses leave in the order in which the requests came.
    max_held_bytes : int
        Bytes of responses that may wait for earlier ones so; 0 = no limit.
    max_volume : int
        Elements that the inputs of one batch may have together; 0 = any number.
    max_queue_bytes : int
        Bytes of inputs that may wait; 0 = no limit.
    full_code : int
        Code of the error that a request gets when there is no place for it.
    """

    def __init__(self, name, version, max_batch, inputs, outputs, bint decoupled=False, *, bint dynamic=False,
                 preferred=(), delay_us=0, max_queue_size=0, timeout_us=0, timeout_override=False,
                 timeout_delay=False, levels=(), default_level=1, bint preserve_ordering=False, int64_t max_volume=0,
                 int64_t max_queue_bytes=0, int64_t max_held_bytes=0, int32_t full_code=TF_UNAVAILABLE,
                 added_inputs=(), added_outputs=()):
        cdef Py_ssize_t i
        if len(preferred) > MAX_PREFERRED:
            raise ValueError(f"at most {MAX_PREFERRED} preferred batch sizes, got {len(preferred)}")
        set_labels(self, outputs)
        self.queue.policy.single = not dynamic or max_batch < 1
        self.queue.policy.max_batch = max_batch if max_batch > 0 else 1
        self.queue.policy.delay_ns = 0 if self.queue.policy.single else config_ns(delay_us)
        self.queue.policy.n_preferred = <int32_t>len(preferred)
        for i, size in enumerate(sorted(preferred)):
            self.queue.policy.preferred[i] = size
        self.queue.policy.max_volume = max_volume
        queue_set(self.queue, levels or ((max_queue_size, timeout_us, timeout_override, timeout_delay),),
                  default_level, preserve_ordering, max_queue_bytes, full_code)
        self.queue.order.max_held = max_held_bytes

    def __cinit__(self, *args, **kwargs):
        self.instances = []
        self.runners = []
        self.places = []
        memset(&self.stats, 0, sizeof(Stats))
        self.queue = queue_new(&self.stats)
        if self.queue == NULL:
            raise MemoryError
        self.source = &self.queue.base
        self.ptr.scheduler = self.source
        self.schedulers = []

    def __del__(self):
        # Here and not in __dealloc__: the garbage collector calls it while the references are still whole, and the
        # threads use what the instances own.
        if self.queue == NULL:
            return
        if on_own_thread(self):
            # The last reference went away inside a Python instance; its thread can not wait for itself.
            threading.Thread(target=self.stop, kwargs={"abort": True}, daemon=True).start()
            return
        self.stop(abort=True)
        free_runners(self)

    def __dealloc__(self):
        free_runners(self)
        if self.queue != NULL:
            queue_free(self.queue)
        stats_clear(&self.stats)
        drop_labels(self)

    cdef int32_t waiting(self) noexcept:
        cdef Scheduler* s = <Scheduler*>self.ptr.scheduler
        return s.pending(s)

    def use(self, NativeScheduler source not None):
        """Have requests go to ``source`` instead of the queue. Before any layer and any instance."""
        if self.instances or self.schedulers:
            raise ValueError("a model's scheduler is chosen before its layers and its instances")
        source.ptr.stats = &self.stats
        self.source = source.ptr
        self.ptr.scheduler = source.ptr
        self.ptr.composed = source.ptr.take == NULL
        self.schedulers.append(source)

    def add_layer(self, NativeScheduler layer not None):
        """Put ``layer`` before what takes requests now. Before the first request."""
        layer.ptr.stats = &self.stats
        layer.ptr.inner = <Scheduler*>self.ptr.scheduler
        self.ptr.scheduler = layer.ptr
        self.schedulers.append(layer)

    def trace_by(self, TraceSwitch switch not None):
        """Have ``switch`` say which requests are traced. Before the first request."""
        if self.ptr.tracing != NULL:
            raise ValueError(f"model '{self.name}' is traced already")
        self.tracer = switch
        self.ptr.tracing = &switch.point

    def start_instance(self, NativeInstance instance not None, int64_t spin_ns=0, LimiterPlace place=None,
                       bint all_limited=True):
        """Start the thread of one instance, which begins to pull batches at once.

        ``place`` is its own in the rate limiter; ``stop`` has it leave. ``all_limited``: each other instance has one.
        """
        cdef Runner* run
        if instance.execute == NULL:
            raise ValueError("the instance has no execute function")
        if tf_load32(&self.source.stopping):
            raise Internal(f"model '{self.name}' was stopped; load it again to start instances")
        run = <Runner*>calloc(1, sizeof(Runner))
        if run == NULL:
            raise MemoryError
        run.taken = <Request**>malloc(MAX_TAKE * sizeof(Request*))
        run.execute = instance.execute
        run.before = instance.before
        run.state = instance.state
        run.device = instance.device if instance.takes_gpu else -1
        run.copies_from = instance.copies_from if instance.copies_from else INT32_MAX
        run.spin_ns = spin_ns
        if place is not None:
            run.place = place.ptr
            place.belongs(<size_t>instance.state, <size_t>self.ptr if all_limited else 0, self.name)
        run.number = <int32_t>len(self.instances)
        if run.taken == NULL:
            free(run)
            raise MemoryError
        start_thread(self, run, run_instance, instance.name)
        self.instances.append(instance)
        if place is not None:
            self.places.append(place)
        if self.source == &self.queue.base and self.queue.refuses_late and not self.watched:
            run = <Runner*>calloc(1, sizeof(Runner))
            if run == NULL:
                raise MemoryError
            start_thread(self, run, run_watcher, "queue-timeouts")
            self.watched = True

    def stop(self, *, bint abort=False):
        """Take no more requests, execute what is queued (or answer it with an error if abort), join the threads.

        Blocks without the GIL until the last batch has been delivered. Calling it again, also from another thread
        meanwhile, is harmless.
        """
        cdef Runner* run
        cdef size_t address
        if on_own_thread(self):
            raise Internal(f"model '{self.name}' can not be stopped from one of its own instances")
        if abort:
            self.abort()
        scheduler_stop(self.ptr.scheduler, abort)
        look_again(self)
        for address in tuple(self.runners):
            run = <Runner*>address
            with nogil:
                pthread_mutex_lock(&run.joining)
                if not run.joined:
                    pthread_join(run.thread, NULL)
                    run.joined = True
                pthread_mutex_unlock(&run.joining)
        for place in tuple(self.places):
            place.leave()
        if not abort and self.source.take == NULL and (<Scheduler*>self.ptr.scheduler).join != NULL:
            # It has no instances: all that it took goes on.
            with nogil:
                (<Scheduler*>self.ptr.scheduler).join(<Scheduler*>self.ptr.scheduler)
        self.abort()        # what is left had no instance to go to
        if (<Scheduler*>self.ptr.scheduler).join != NULL:
            with nogil:
                (<Scheduler*>self.ptr.scheduler).join(<Scheduler*>self.ptr.scheduler)
        self.instances.clear()

    def abort(self):
        """Answer all that is queued with an error, at once; what runs goes on. Does not wait."""
        with nogil:
            scheduler_stop(self.ptr.scheduler, True)
        look_again(self)

    @property
    def pending(self):
        """Requests waiting in the queue."""
        return self.waiting()

    @property
    def n_instances(self):
        return len(self.instances)

    @property
    def late(self):
        """How late queue timeouts were kept: ``[(upper bound in ns or None, requests refused)]``."""
        return due_histogram(&self.queue.due)

    def measure(self, *, double summary_error=0, first_bounds_ms=None):
        """Have summaries kept, or the time to the first response counted. Before the first request."""
        stats_measure(&self.stats, summary_error, first_bounds_ms)

    def summaries(self, quantiles):
        """Return ``{phase: (count, sum in us, [us or None for each quantile])}``; empty where none are kept."""
        return stats_summaries(&self.stats, quantiles)

    def snapshot(self):
        """Return the counters as one consistent dict (see core.stats)."""
        taken = stats_snapshot(&self.stats)
        taken["pending"] = self.waiting()
        return taken
