# Completions to connections, wake-ups of instances, time-outs, draining: what is done once for all connections of a
# listener. Knows a connection as a Peer. All methods run on the loop's thread.
from cpython.ref cimport Py_DECREF
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc

from triton_fast._native.core.native cimport now_ns, tf_buf_free
from triton_fast._native.core.request cimport Response
from triton_fast._native.core.ring cimport CompletionRing
from triton_fast._native.sched.model cimport Epoch, NativeModel
from triton_fast._native.sched.queue cimport queue_wake

cdef enum:
    POLL_LUCK_MAX = 8           # polls that paid, remembered
    POLL_LUCK_LOSS = 4          # what one in vain costs
    POLL_REST = 64              # lone requests that are not polled for after that


cdef class Peer:
    """A connection as its listener sees it; every method is the connection's own."""

    cdef int on_response(self, Response* p) except -1:
        raise TypeError("a connection must take responses")

    cdef int use_pending(self) except -1:
        return 0

    cdef int timed_out(self, int64_t now) except -1:
        return 0

    cdef int begin_drain(self) except -1:
        return 0

    cdef int end_incomplete(self) except -1:
        return 0

    cdef int abort(self) except -1:
        return 0


cdef class Shared:
    """What the connections of one listener share.

    Parameters
    ----------
    app
        Object with ``resolve(name, version) -> NativeModel``, ``control(method, path, query, headers, body)`` which
        returns ``(status, headers, body)`` or a coroutine of it, ``inflate(data, encoding, limit)``,
        ``deflate(data, encoding)``, ``choose_encoding(accept_encoding)``, ``failed(exception)``.
    loop
        The event loop; ``attach`` registers the completion ring with it.
    """

    def __cinit__(self, app, loop, Epoch epoch not None):
        self.app = app
        self.loop = loop
        self.epoch = epoch
        self.ring = CompletionRing()
        self.connections = set()
        self.scratch_len = SCRATCH
        self.scratch = <uint8_t*>malloc(SCRATCH)
        self.binary_room = 256
        self.binary_index = <int32_t*>malloc(256 * sizeof(int32_t))
        if self.scratch == NULL or self.binary_index == NULL:
            raise MemoryError
        self.allow_infer = True
        self.to_wake = []
        self.wake_soon = self.wake
        self.limits.max_head = 65536
        self.limits.max_input = 67108864
        self.limits.max_body = <size_t>1 << 36
        self.head_timeout_ns = <int64_t>30 * 1000000000
        self.body_timeout_ns = <int64_t>60 * 1000000000
        self.idle_timeout_ns = <int64_t>600 * 1000000000
        self.max_connections = 0

    def __dealloc__(self):
        free(self.scratch)
        free(self.binary_index)
        tf_buf_free(&self.out)
        tf_buf_free(&self.json)

    def set_limits(self, *, size_t max_head, size_t max_input, size_t max_body=<size_t>1 << 36):
        """Limit request heads; JSON, raw and inflated bodies; any body (64 GiB). Bytes."""
        self.limits.max_head = max_head
        self.limits.max_input = max_input
        self.limits.max_body = max_body

    def restrict_infer(self, str name, str value):
        """Refuse infer requests (403) that do not carry header ``name`` with exactly ``value``."""
        self.guard_label = name
        self.guard_name = name.lower().encode()
        self.guard_value = value.encode()

    def attach(self):
        self.loop.add_reader(self.ring.fileno(), self.on_completions)

    def detach(self):
        self.loop.remove_reader(self.ring.fileno())
        self.on_completions()       # what is still in the ring holds requests and connections

    def on_completions(self):
        """Deliver every finished response to its connection."""
        self.deliver(self.ring.drain(), None)

    cdef int deliver(self, Response* p, Peer reader) except -1:
        cdef Response* after
        cdef Peer connection
        while p != NULL:
            after = p.next
            connection = <Peer>p.request.ctx
            Py_DECREF(connection)
            self.in_flight -= 1
            try:
                connection.on_response(p)
                if connection is not reader:
                    connection.use_pending()
            except Exception as error:
                self.app.failed(error)
                connection.abort()
            p = after
        return 0

    def wake(self):
        """Wake instances for what was submitted in this round of reading: one wake-up for many requests."""
        cdef NativeModel model
        for model in self.to_wake:
            queue_wake(model.queue)
        self.to_wake.clear()

    cdef int wake_later(self, NativeModel model) except -1:
        if self.in_flight == 1:
            queue_wake(model.queue)
        elif not self.to_wake:
            self.to_wake.append(model)
            self.loop.call_soon(self.wake_soon)
        elif model not in self.to_wake:
            self.to_wake.append(model)
        return 0

    cdef Response* poll_answer(self) noexcept:
        cdef Response* p
        if self.poll_luck < 0:
            self.poll_luck += 1
            return NULL
        with nogil:
            p = self.ring.poll(self.poll_ns)
        if p != NULL:
            self.poll_luck = min(self.poll_luck + 1, POLL_LUCK_MAX)
        else:
            self.poll_luck -= POLL_LUCK_LOSS
            if self.poll_luck < 0:
                self.poll_luck = -POLL_REST
        return p

    def tick(self):
        """Close what has waited too long. Call about once a second."""
        cdef Peer connection
        cdef int64_t now = now_ns()
        for connection in [c for c in self.connections]:
            if connection.deadline and connection.deadline < now:
                try:
                    connection.timed_out(now)
                except Exception as error:
                    self.app.failed(error)
                    connection.abort()

    def begin_drain(self):
        """Answer what is in flight, then close: idle connections at once, others after their answer."""
        cdef Peer connection
        self.draining = True
        for connection in list(self.connections):
            connection.begin_drain()

    def end_incomplete(self):
        """Refuse the requests that have not come whole. After ``begin_drain``, when they had their time."""
        cdef Peer connection
        for connection in list(self.connections):
            try:
                connection.end_incomplete()
            except Exception as error:
                self.app.failed(error)
                connection.abort()

    def abort_all(self):
        cdef Peer connection
        for connection in list(self.connections):
            connection.abort()
