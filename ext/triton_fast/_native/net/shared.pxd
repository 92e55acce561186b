# What the connections of one listener share, whatever their protocol, and what it asks of a connection.
from libc.stdint cimport int32_t, int64_t, uint8_t

from triton_fast._native.core.native cimport tf_buf
from triton_fast._native.core.request cimport Response
from triton_fast._native.core.ring cimport CompletionRing
from triton_fast._native.net.gate cimport KeyGate
from triton_fast._native.sched.model cimport Epoch, NativeModel

cdef enum:
    SCRATCH = 65536         # bytes read at once while nobody knows where they belong


cdef class Peer:
    cdef int64_t deadline   # ns; 0 = none
    cdef int timed_out(self, int64_t now) except -1
    # Look after whatever goes by time but the deadline; called with every tick.
    cdef int tick(self, int64_t now) except -1
    cdef int begin_drain(self) except -1
    cdef int end_incomplete(self) except -1
    cdef int abort(self) except -1


cdef class Shared:
    cdef readonly CompletionRing ring
    cdef readonly Epoch epoch
    cdef object app         # the Python side of the protocol
    cdef object loop
    cdef readonly set connections
    cdef uint8_t* scratch
    cdef size_t scratch_len
    cdef tf_buf out
    cdef public bint draining
    cdef bint is_guarded    # inference needs a header, a key, or both
    cdef KeyGate gate       # None: the server has no keys
    cdef bytes guard_name   # None: inference is not restricted
    cdef bytes guard_value
    cdef str guard_label
    cdef public object forward  # compiled pattern of headers that become request parameters; None: no header does
    cdef public int64_t max_connections
    cdef readonly int64_t requests
    cdef readonly int64_t in_flight
    cdef public int64_t poll_ns     # how long a lone request's answer may be waited for in place; 0 = never
    cdef int32_t poll_luck
    cdef list to_wake               # models whose instances are woken when this round of reading is over
    cdef object wake_soon

    # Hand each response of a chain to its connection. reader: one that is in the middle of its bytes and will go on
    # with them itself.
    cdef int deliver(self, Response* p, Peer reader) except -1
    # Whether a new connection must be turned away.
    cdef bint is_full(self)
    # A model has a new request and a sleeping instance.
    cdef int wake_later(self, NativeModel model) except -1
    # The answer of the only request in flight, if it comes at once: a small model is done before this thread would have
    # gone to sleep and been woken.
    cdef Response* poll_answer(self) noexcept
