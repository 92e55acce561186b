# Completions to connections, wake-ups of instances, time-outs, draining: what is done once for all connections of a
# listener. Knows a connection as a Peer and no protocol. All methods run on the loop's thread.
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport free, malloc

from triton_fast._native.core.native cimport now_ns, tf_buf_free
from triton_fast._native.core.request cimport Response
from triton_fast._native.core.ring cimport CompletionRing
from triton_fast._native.net.gate cimport KeyGate
from triton_fast._native.sched.model cimport Epoch, NativeModel
from triton_fast._native.sched.scheduler cimport scheduler_wake

cdef enum:
    POLL_LUCK_MAX = 8           # polls that paid, remembered
    POLL_LUCK_LOSS = 4          # what one in vain costs
    POLL_REST = 64              # lone requests that are not polled for after that


cdef class Peer:
    """A connection as its listener sees it; every method is the connection's own."""

    cdef int timed_out(self, int64_t now) except -1:
        return 0

    cdef int tick(self, int64_t now) except -1:
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
        The Python side of the protocol; has ``failed(exception)`` for what should not happen.
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
        if self.scratch == NULL:
            raise MemoryError
        self.to_wake = []
        self.wake_soon = self.wake

    def __dealloc__(self):
        free(self.scratch)
        tf_buf_free(&self.out)

    def restrict_infer(self, str name, str value):
        """Refuse infer requests that do not carry header ``name`` with exactly ``value``."""
        self.guard_label = name
        self.guard_name = name.lower().encode()
        self.guard_value = value.encode()
        self.is_guarded = True

    def require_keys(self, KeyGate gate not None):
        """Refuse infer requests without a key that lets infer; headers that may hold one are not forwarded."""
        self.gate = gate
        self.is_guarded = True

    def attach(self):
        self.loop.add_reader(self.ring.fileno(), self.on_completions)

    def detach(self):
        self.loop.remove_reader(self.ring.fileno())
        self.on_completions()       # what is still in the ring holds requests and connections

    def on_completions(self):
        """Deliver every finished response to its connection."""
        self.deliver(self.ring.drain(), None)

    cdef int deliver(self, Response* p, Peer reader) except -1:
        raise TypeError("a protocol must deliver its responses")

    cdef bint is_full(self):
        return self.draining or (self.max_connections != 0 and len(self.connections) >= self.max_connections)

    def wake(self):
        """Wake instances for what was submitted in this round of reading: one wake-up for many requests."""
        cdef NativeModel model
        for model in self.to_wake:
            scheduler_wake(model.ptr.scheduler)
        self.to_wake.clear()

    cdef int wake_later(self, NativeModel model) except -1:
        if self.in_flight == 1:
            scheduler_wake(model.ptr.scheduler)
        elif not self.to_wake:
            self.loop.call_soon(self.wake_soon)     # first: if it fails, nobody must wait for it
            self.to_wake.append(model)
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
        for connection in list(self.connections):
            try:
                if connection.deadline and connection.deadline < now:
                    connection.timed_out(now)
                connection.tick(now)
            except Exception as error:
                self.app.failed(error)
                connection.abort()

    def begin_drain(self):
        """Answer what is in flight, then close: idle connections at once, others after their answer."""
        cdef Peer connection
        self.draining = True
        for connection in list(self.connections):
            try:
                connection.begin_drain()
            except Exception as error:
                self.app.failed(error)
                connection.abort()

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
