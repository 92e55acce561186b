# What an HTTP/2 connection does by time: pings both ways, age, stalled calls, leaving.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.grpc.h2 cimport H2Session


cdef class H2Connection(H2Session):
    cdef bint aged              # it leaves because of its age
    cdef int64_t left_at        # ns: when the peer was told to go
    cdef int64_t heard          # ns: the look at which bytes had come since the one before
    cdef int64_t n_read_then    # reads at the last look
    cdef int64_t pinged         # ns: an unanswered ping was sent; 0 = none
    cdef int32_t pings          # sent since the last headers or data
    cdef int64_t last_ping      # ns: of the peer's
    cdef int32_t strikes

    cdef int keep_alive(self, int64_t now) except -1
    cdef int end_stalled(self, int64_t now) except -1
    # The server ends, and the last call was named: what comes now is not begun.
    cdef bint takes_no_more(self) noexcept
    cdef bint is_stuck(self, int64_t now) except -1
    # How long a peer may stand still.
    cdef int64_t patience(self) noexcept
