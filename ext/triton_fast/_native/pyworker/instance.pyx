# A Python model instance as Python code sees it: given worker processes one after another by a supervisor.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.time cimport timespec

from triton_fast._native.core.marks cimport REQ_QUEUED
from triton_fast._native.core.native cimport TF_INTERNAL, now_ns, tf_add32, tf_load32, tf_load64, tf_text_cut
from triton_fast._native.core.pthread cimport (
    pthread_cond_broadcast, pthread_cond_timedwait, pthread_mutex_lock, pthread_mutex_unlock,
)
from triton_fast._native.core.request cimport Request, request_free
from triton_fast._native.pyworker.calls cimport call_refuse, targets_drop
from triton_fast._native.pyworker.channel cimport (
    Channel, WorkerChannel, channel_publish, channel_ref, channel_unref,
)
from triton_fast._native.pyworker.execute cimport before_pull, execute_batch
from triton_fast._native.pyworker.layout cimport Message, RING_WORK, WORK_FINALIZE, WORK_TRIM
from triton_fast._native.pyworker.region cimport inbound_trim
from triton_fast._native.pyworker.service cimport service_start, service_stop
from triton_fast._native.pyworker.worker cimport Call, Worker, worker_new, worker_unref
from triton_fast._native.sched.ensemble_look cimport ensemble_waits
from triton_fast._native.sched.instance cimport NativeInstance
from triton_fast._native.sched.model cimport Epoch

from triton_fast.errors import Internal


WAIT_NS = 30000000000

cdef struct CallView:
    uint32_t id
    size_t target
    bint waits
    bint queued
    size_t runner
    int64_t age
    Request* held           # of an ensemble


cdef void set_reason(Worker* w, bytes text, int32_t code):
    cdef size_t n = <size_t>len(text)
    if n > sizeof(w.reason):
        n = tf_text_cut(text, sizeof(w.reason))
    memcpy(w.reason, <const char*>text, n)
    w.reason_len = <uint32_t>n
    w.code = code


cdef class PythonInstance(NativeInstance):
    """One instance of a Python model, whose worker process comes, goes and comes again.

    Parameters
    ----------
    name : str
    resolve : callable
        ``resolve(model name, version) -> NativeModel``, -1 for the version policy's choice; raises what it likes.
        For requests that the model makes of other models.
    epoch : Epoch, optional
        Changes whenever ``resolve`` may answer otherwise. None: it is asked each time.
    spin_ns : int
        How long to look for the end of an execution before sleeping.
    wait_ns : int
        How long a response to its model waits for memory that the worker has not given back.
    """

    cdef Worker* worker
    cdef object resolve
    cdef Epoch epoch

    def __cinit__(self, *args, **kwargs):
        self.worker = worker_new()
        if self.worker == NULL:
            raise MemoryError

    def __init__(self, str name, resolve, Epoch epoch=None, *, int64_t spin_ns=0, int64_t wait_ns=WAIT_NS):
        cdef Worker* w = self.worker
        self.name = name
        self.resolve = resolve
        self.epoch = epoch
        w.resolve = <void*>resolve
        w.epoch = &epoch.value if epoch is not None else NULL
        w.spin_ns = spin_ns
        w.wait_ns = wait_ns
        w.hopeless = True
        set_reason(w, f"Stub process '{name}' is not healthy.".encode(), TF_INTERNAL)
        self.state = w
        self.execute = execute_batch
        self.copies_from = 1
        self.before = before_pull

    def __del__(self):
        # Here and not in __dealloc__: the garbage collector calls it while `resolve` and `epoch`, which the service
        # thread uses, are still there.
        if self.worker == NULL:
            return
        with nogil:
            service_stop(self.worker)
        targets_drop(self.worker)

    def __dealloc__(self):
        worker_unref(self.worker)

    def attach(self, WorkerChannel channel not None):
        """Hand requests to the worker at the other end of the channel from now on."""
        cdef int status
        with nogil:
            status = service_start(self.worker, channel.ptr)
        if status > 0:
            raise Internal(f"instance '{self.name}' has a worker already")
        if status < 0:
            raise Internal(f"can not start a thread for instance '{self.name}'")

    def fail(self, str reason, int32_t code=TF_INTERNAL):
        """The worker has gone: everything in flight fails with ``reason``.

        What is asked meanwhile waits for the next worker (``attach``) or the end of hope (``give_up``). Blocks, without
        the GIL, until nothing uses the channel any more but responses on their way to clients.
        """
        cdef Worker* w = self.worker
        text = reason.encode("utf-8", "replace")
        pthread_mutex_lock(&w.lock)
        set_reason(w, text, code)
        w.hopeless = False
        pthread_mutex_unlock(&w.lock)
        with nogil:
            service_stop(w)
        targets_drop(w)

    def give_up(self, str reason, int32_t code=TF_INTERNAL):
        """No worker will come soon: what is pulled fails at once with ``reason``."""
        cdef Worker* w = self.worker
        text = reason.encode("utf-8", "replace")
        pthread_mutex_lock(&w.lock)
        if w.channel == NULL:
            set_reason(w, text, code)
            w.hopeless = True
            pthread_cond_broadcast(&w.changed)
        pthread_mutex_unlock(&w.lock)

    cdef bint tell(self, uint32_t kind, int64_t arg):
        cdef Message m
        cdef Channel* c
        cdef int status
        pthread_mutex_lock(&self.worker.lock)
        c = self.worker.channel
        if c != NULL:
            channel_ref(c)
        pthread_mutex_unlock(&self.worker.lock)
        if c == NULL:
            return False
        m.kind = kind
        m.id = 0
        m.off = 0
        m.len = 0
        m.arg = <uint64_t>arg
        with nogil:
            status = channel_publish(c, RING_WORK, &m)
            channel_unref(c)
        return status == 0

    def finalize(self):
        """Ask the worker to end itself. Returns False when there is none, or it takes no messages."""
        return self.tell(WORK_FINALIZE, 0)

    def trim(self, int64_t keep):
        """Give free shared memory back to the system, but for ``keep`` bytes in each direction."""
        cdef Channel* c
        pthread_mutex_lock(&self.worker.lock)
        c = self.worker.channel
        if c != NULL:
            channel_ref(c)
        pthread_mutex_unlock(&self.worker.lock)
        if c != NULL:
            with nogil:
                inbound_trim(c.region, <size_t>max(keep, 0))
                channel_unref(c)
            self.tell(WORK_TRIM, max(keep, 0))

    def drain(self, double timeout_s):
        """Wait until the worker has no request. Returns whether it is so."""
        cdef Worker* w = self.worker
        cdef int64_t until = now_ns() + <int64_t>(min(max(timeout_s, 0.0), 1e6) * 1e9)
        cdef timespec ts
        cdef int64_t step
        cdef bint idle
        with nogil:
            pthread_mutex_lock(&w.lock)
            while (w.in_flight or w.execution_began) and now_ns() < until:
                # in_flight goes down without a signal: it is the hot path
                step = min(now_ns() + 2000000, until)
                ts.tv_sec = step // 1000000000
                ts.tv_nsec = step % 1000000000
                pthread_cond_timedwait(&w.changed, &w.lock, &ts)
            idle = w.in_flight == 0 and w.execution_began == 0
            pthread_mutex_unlock(&w.lock)
        return idle

    @property
    def in_flight(self):
        """Requests that the worker has."""
        return tf_load32(&self.worker.in_flight)

    @property
    def executing(self):
        return tf_load64(&self.worker.execution_began) != 0

    @property
    def execution_started_ns(self):
        """CLOCK_MONOTONIC at which the present execution began; 0 when there is none."""
        return tf_load64(&self.worker.execution_began)

    @property
    def broken(self):
        """Whether the worker wrote what no worker writes; it should be killed."""
        cdef bint found
        pthread_mutex_lock(&self.worker.lock)
        found = self.worker.channel != NULL and tf_load32(&self.worker.channel.broken) != 0
        pthread_mutex_unlock(&self.worker.lock)
        return found

    @property
    def key(self):
        """A number that names this instance in ``calls`` of others."""
        return <size_t>self.worker

    @property
    def model_key(self):
        """A number that names its model in ``calls``; 0 before its first execution."""
        return <size_t>self.worker.model

    def calls(self):
        """Return the requests its model has made and not had all answers of.

        Returns
        -------
        list of (call id, target model's key, caller waits, "queued" or "running", runner's key or 0, age in ns, waits)
            waits: of an ensemble, what it waits for, as (model's key, "queued", "running" or "waiting" for a place
            of a step, runner's key or 0).
        """
        cdef Call* call
        cdef CallView* views
        cdef size_t i, n = 0
        cdef int64_t now = now_ns()
        # Copied first: making Python objects may run other code, which must not find the lock taken.
        pthread_mutex_lock(&self.worker.lock)
        call = self.worker.calls
        while call != NULL:
            n += 1
            call = call.next
        views = <CallView*>calloc(n + 1, sizeof(CallView))
        n = 0
        call = self.worker.calls if views != NULL else NULL
        while call != NULL:
            if call.child != NULL and not call.closed and call.target.model != NULL:
                views[n].id = call.id
                views[n].target = <size_t>call.target.model
                views[n].waits = call.waits
                views[n].queued = tf_load32(&call.child.state) == REQ_QUEUED
                views[n].runner = <size_t>call.runner
                views[n].age = now - call.began
                if call.child.model.composed:
                    views[n].held = call.child
                    tf_add32(&call.child.holds, 1)
                n += 1
            call = call.next
        pthread_mutex_unlock(&self.worker.lock)
        if views == NULL:
            raise MemoryError
        try:
            return [(views[i].id, views[i].target, bool(views[i].waits), "queued" if views[i].queued else "running",
                     views[i].runner, views[i].age, ensemble_waits(views[i].held) if views[i].held != NULL else ())
                    for i in range(n)]
        finally:
            with nogil:
                for i in range(n):
                    if views[i].held != NULL:
                        request_free(views[i].held)
                free(views)

    def fail_call(self, uint32_t call_id, str text, int32_t code=TF_INTERNAL):
        """Answer a call with an error if no instance has it yet; return whether that was so."""
        encoded = text.encode("utf-8", "replace")
        return bool(call_refuse(self.worker, call_id, code, <const char*>encoded, len(encoded)))
