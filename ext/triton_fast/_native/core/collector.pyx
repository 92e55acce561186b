# See collector.pxd. Traces are given out as Triton's JSON, made without the GIL, or as plain values for spans.
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdlib cimport calloc
from libc.string cimport memset
from posix.time cimport timespec

from triton_fast._native.core.marks cimport T_COMPUTED, T_INPUT, T_OUTPUT, T_QUEUED, T_RECEIVED, T_STARTED
from triton_fast._native.core.native cimport TF_OK, now_ns, tf_buf, tf_buf_free
from triton_fast._native.core.pthread cimport (
    cond_init_monotonic, pthread_cond_signal, pthread_cond_timedwait, pthread_mutex_init, pthread_mutex_lock,
    pthread_mutex_unlock,
)
from triton_fast._native.core.trace_json cimport trace_json
from triton_fast._native.core.trace_types cimport (
    EVENT_COMPLETE, EVENT_SEND_START, FROM_GRPC, FROM_HTTP, TRACE_TENSORS, TRACE_TIMESTAMPS, Trace, TraceEvent,
    TraceRecord,
)
from triton_fast._native.core.tracing cimport collector_unref, trace_free

cdef enum:
    TAKE_BYTES = 33554432   # of a file that are made at once
    GATHER_NS = 50000000    # how long the writer lets traces gather: it wakes for many, not for each


cdef void wait(Collector* c, int64_t until) noexcept nogil:
    cdef timespec ts
    ts.tv_sec = until // 1000000000
    ts.tv_nsec = until % 1000000000
    pthread_cond_timedwait(&c.changed, &c.lock, &ts)


# The first of those that were taken, for the next time.
cdef void put_back(Collector* c, Trace* first) noexcept nogil:
    cdef Trace* last = first
    cdef int64_t n = 1
    while last.next != NULL:
        last = last.next
        n += 1
    pthread_mutex_lock(&c.lock)
    last.next = c.first
    c.first = first
    if c.last == NULL:
        c.last = last
    c.n += n
    pthread_mutex_unlock(&c.lock)


cdef tuple times(TraceRecord* t):
    cdef bint executed = (not t.composed and t.stamps[T_STARTED] != 0 and t.stamps[T_OUTPUT] > t.stamps[T_STARTED])
    return (t.stamps[T_RECEIVED] if t.parent_id == 0 else 0, t.received_end, t.began, t.stamps[T_QUEUED],
            t.stamps[T_STARTED] if executed else 0, t.stamps[T_INPUT], t.stamps[T_COMPUTED], t.stamps[T_OUTPUT],
            t.ended)


cdef list events(TraceRecord* t):
    cdef TraceEvent* e = t.events
    cdef list found = []
    while e != NULL:
        if e.kind == EVENT_COMPLETE:
            name = "INFER_RESPONSE_COMPLETE"
        else:
            name = ("HTTP_SEND_" if t.origin == FROM_HTTP else "GRPC_SEND_") + (
                "START" if e.kind == EVENT_SEND_START else "END")
        found.append((name, e.ns))
        e = e.next
    return found


cdef tuple plain(Trace* t):
    cdef TraceRecord* one = t.first
    cdef list records = []
    while one != NULL:
        origin = "HTTP" if one.origin == FROM_HTTP else "GRPC" if one.origin == FROM_GRPC else ""
        records.append((
            one.id, one.parent_id, one.span, one.parent_span, origin,
            one.name[:one.name_len].decode("utf-8", "replace"), one.version,
            one.request_id[:one.request_id_len].decode("utf-8", "replace") if one.request_id_len else "",
            one.code != TF_OK, times(one), events(one)))
        one = one.next
    return (t.trace_id[:16], t.parent_span if t.has_parent else 0, t.root_span,
            t.state[:t.state_len].decode("ascii", "replace") if t.state_len else "", records)


cdef class TraceCollector:
    """The queue of ended traces.

    Parameters
    ----------
    most : int
        Traces that may wait; those that end when there is no place are dropped and counted.
    """

    def __cinit__(self, int64_t most=65536):
        self.ptr = <Collector*>calloc(1, sizeof(Collector))
        if self.ptr == NULL:
            raise MemoryError
        self.ptr.refs = 1
        self.ptr.most = most if most > 0 else 1
        pthread_mutex_init(&self.ptr.lock, NULL)
        cond_init_monotonic(&self.ptr.changed)

    def __dealloc__(self):
        cdef Trace* t
        cdef Trace* after
        if self.ptr == NULL:
            return
        pthread_mutex_lock(&self.ptr.lock)
        t = self.ptr.first
        self.ptr.first = NULL
        self.ptr.n = 0
        self.ptr.most = 0       # what still ends goes nowhere
        pthread_mutex_unlock(&self.ptr.lock)
        while t != NULL:
            after = t.next
            trace_free(t)
            t = after
        collector_unref(self.ptr)

    @property
    def dropped(self):
        """Traces for which there was no place."""
        return self.ptr.dropped

    @property
    def waiting(self):
        return self.ptr.n

    def hurry(self):
        """Have ``take`` return at once, now or the next time it is called."""
        pthread_mutex_lock(&self.ptr.lock)
        self.ptr.hurry = True
        pthread_cond_signal(&self.ptr.changed)
        pthread_mutex_unlock(&self.ptr.lock)

    def take(self, double timeout_s, size_t most_bytes=TAKE_BYTES):
        """Wait for traces and let some gather; return what there is, of files not much more than ``most_bytes``.

        Returns
        -------
        list of (stream, bytes or tuple)
            The number of the setting, and the trace: objects of a Triton trace file with commas between them; of one
            that is to become spans ``(trace id, parent span or 0, root span, tracestate, records)``, each record
            ``(id, parent id, span, parent span, "HTTP" | "GRPC" | "", model, version, request id, failed, times,
            [(event, ns)])``, times being received, received whole, began, queued, started (0: not executed), input,
            computed, output, ended; monotonic ns.
        """
        cdef Collector* c = self.ptr
        cdef Trace* t
        cdef Trace* after
        cdef tf_buf out
        cdef int64_t until
        cdef size_t made = 0
        cdef list taken = []
        with nogil:
            until = now_ns() + <int64_t>(timeout_s * 1e9)
            pthread_mutex_lock(&c.lock)
            while c.first == NULL and not c.hurry and now_ns() < until:
                wait(c, until)
            until = now_ns() + GATHER_NS
            while c.first != NULL and not c.hurry and c.n < c.most // 4 and now_ns() < until:
                wait(c, until)
            t = c.first
            c.first = NULL
            c.last = NULL
            c.n = 0
            c.hurry = False
            pthread_mutex_unlock(&c.lock)
        memset(&out, 0, sizeof(out))
        while t != NULL:
            after = t.next
            try:
                if t.spans:
                    taken.append((t.stream, plain(t)))
                else:
                    out.len = 0
                    with nogil:
                        trace_json(t, &out)
                    if out.failed:
                        raise MemoryError
                    taken.append((t.stream, out.data[:out.len]))
                    made += out.len
            except MemoryError:
                tf_buf_free(&out)
                c.dropped += 1
            finally:
                trace_free(t)
            t = after
            if made > most_bytes and t != NULL:
                put_back(c, t)
                break
        tf_buf_free(&out)
        return taken


cdef class TraceSetting:
    """What holds for the requests of some models: ``level`` 1 timestamps, 2 tensors, or both.

    Parameters
    ----------
    rate : int
        One of so many requests is traced; 0: only those that bring a context.
    count : int
        How many are; -1: any number.
    stream : int
        What ``TraceCollector.take`` names the setting by.
    spans : bool
        Traces become spans, and a request's own context is followed, whatever rate and count say.
    """

    def __cinit__(self, TraceCollector collector not None, int32_t level, uint32_t rate, int64_t count, int32_t stream,
                  bint spans):
        self.collector = collector
        self.sampling.collector = collector.ptr
        self.sampling.level = level & (TRACE_TIMESTAMPS | TRACE_TENSORS)
        self.sampling.rate = rate
        self.sampling.left = rate
        self.sampling.count = count
        self.sampling.stream = stream
        self.sampling.spans = spans

    @property
    def count(self):
        """How many requests it will still trace; -1: any number."""
        return self.sampling.count


cdef class TraceSwitch:
    """What holds for the requests of a model now; ``NativeModel.trace_by`` gives it to the model's versions."""

    def set(self, TraceSetting setting):
        """Have this setting hold from the next request on; None: nothing is traced."""
        # Requests are decoded by threads that hold the GIL: none is in between.
        self.point.now = &setting.sampling if setting is not None else NULL
        self.setting = setting
