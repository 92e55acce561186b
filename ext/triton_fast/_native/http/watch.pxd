# A connection as far as others look on: the access log, and the client that asks where the time of its request went.
# What is told of a request lies here until its answer has been given away.
from libc.stdint cimport int32_t, int64_t, uint32_t

from triton_fast._native.core.native cimport tf_buf, tf_error
from triton_fast._native.core.request cimport Request, Response
from triton_fast._native.http.channel cimport Channel
from triton_fast._native.http.head cimport Info
from triton_fast._native.net.seen cimport Seen


cdef class Watched(Channel):
    cdef Info info
    cdef size_t received    # bytes of the body
    cdef int64_t began      # ns: when the head, body or answer in hand began
    cdef object verb        # (method, path, query, headers) of a request for the Python side
    cdef str model_name
    cdef uint32_t watch     # WATCH_* of the request in hand
    cdef Seen kept

    # A request is there, whole or refused: choose who looks on.
    cdef int watch_request(self) except -1
    # A response to it has come back.
    cdef int watch_response(self, Response* p) noexcept
    # A head of an answer to it has just been put into out: add what the client asked for.
    cdef inline void watch_head(self, tf_buf* out) noexcept
    # It was decoded into r, which the scheduler does not take.
    cdef void watch_refused(self, Request* r, tf_error* e) noexcept
    # The last byte of its answer was given away.
    cdef int watch_end(self) except -1
    # Its client has gone; r: what was made of it, while it is in flight.
    cdef int watch_gone(self, Request* r) except -1
    cdef int tell(self, int32_t status) except -1
