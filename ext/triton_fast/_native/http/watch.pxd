# A connection as far as others look on: the access log, and the client that asks where the time of its request went.
# What is told of a request lies here until its answer has been given away.
from libc.stdint cimport int32_t, int64_t, uint32_t

from triton_fast._native.core.native cimport tf_buf
from triton_fast._native.core.request cimport Response
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
    # The last byte of its answer was given away, or, with status 499, its client is gone.
    cdef int watch_end(self, int32_t status) except -1
