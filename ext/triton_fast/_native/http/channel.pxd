# Bytes into and out of an HTTP connection. Those that can not be used yet wait here, up to a limit, then reading stops;
# what the socket does not take goes to the transport.
from libc.stdint cimport int32_t, uint8_t

from triton_fast._native.core.native cimport tf_buf
from triton_fast._native.core.request cimport Response
from triton_fast._native.http.shared cimport HttpPeer, HttpShared

cdef enum:
    ST_HEAD = 0             # between requests, or a head is arriving
    ST_BODY = 1             # a body of known length goes into its own block
    ST_CHUNKED = 2
    ST_WAIT = 3             # a request is in flight, or its answer has not left yet
    ST_DISCARD = 4          # answered and refused: what still arrives is thrown away, then the connection ends
    ST_CLOSED = 5


cdef class Channel(HttpPeer):
    cdef HttpShared server
    cdef object transport
    cdef object is_closing
    cdef int fd             # -1: write through the transport only (TLS)
    cdef int32_t state
    cdef bint paused        # the transport has bytes that the socket did not take
    cdef size_t seen        # of the body received, or of the answer not yet taken, when the time was last looked at
    cdef bint reading_paused
    cdef tf_buf pending     # bytes that arrived before they could be used, from pending_pos on
    cdef size_t pending_pos

    cdef int stash(self, const uint8_t* data, size_t n) except -1
    # Go on with n bytes that lie in the server's scratch.
    cdef int use_scratch(self, size_t n) except -1
    # Use bytes for the message in hand; returns how many, 0 when more must come first.
    cdef size_t consume(self, const uint8_t* data, size_t n) except? 0
    # Write head[0:n] and the n_binary tensors p.outputs[binary_index[i]]. False: the connection is over.
    cdef bint push(self, const char* head, size_t n, Response* p, int32_t n_binary,
                   const int32_t* binary_index) except -1
    # No more bytes, after those that were pushed.
    cdef int close(self) except -1
