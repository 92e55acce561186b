# HTTP/2 under the gRPC connection: socket, frames, flow control. Knows calls as streams of bytes in
# and messages out; what they mean is the subclass's business.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from triton_fast._native.grpc.call cimport Call
from triton_fast._native.grpc.nghttp2 cimport nghttp2_session
from triton_fast._native.grpc.out cimport Out
from triton_fast._native.grpc.shared cimport GrpcPeer, GrpcShared

cdef enum:
    GRPC_OK = 0
    GRPC_CANCELLED = 1
    GRPC_UNKNOWN = 2
    GRPC_INVALID_ARGUMENT = 3
    GRPC_DEADLINE_EXCEEDED = 4
    GRPC_RESOURCE_EXHAUSTED = 8
    GRPC_UNIMPLEMENTED = 12
    GRPC_INTERNAL = 13
    GRPC_UNAVAILABLE = 14


cdef enum:                  # of a connection
    STAYS = 0
    LEAVING = 1             # the peer was told
    LEFT = 2                # there are no new calls
    THROWN_OUT = 3          # for its pings: once it was told, the connection ends with its calls


# What a peer may do so many times at once, and so often per second.
cdef struct Budget:
    int64_t used
    int64_t at              # ns


cdef class H2Session(GrpcPeer):
    cdef GrpcShared server
    cdef object transport
    cdef object is_closing
    cdef int fd                 # -1: write through the transport only (TLS)
    cdef nghttp2_session* session
    cdef bint paused            # the transport has bytes that the socket did not take
    cdef bint reading           # inside a read: what there is to send goes at its end
    cdef bint sending           # nghttp2 is at work on what goes out
    cdef bint flushing
    cdef int64_t stuck_since    # ns: the look since which the transport got rid of nothing; 0 = none yet
    cdef size_t stuck_bytes     # what it had then
    cdef bint greeted           # the first bytes came
    cdef bint too_wide          # a head goes on and on
    cdef bint spoke             # a frame of headers or data was sent since the last look
    cdef bint overdue           # a message was cut off, or a call refused, while its client still sends
    cdef bint submitted         # a request went to a queue in this round
    cdef Call* calls
    cdef int32_t n_calls
    cdef int32_t n_held         # calls whose messages wait
    cdef int32_t leaving        # STAYS, ...
    cdef int64_t born
    cdef int64_t n_read         # reads
    cdef Budget resets          # calls given up by the peer
    cdef Budget settings        # changes of its settings

    # ---- for the subclass to define
    cdef int on_field(self, Call* call, const uint8_t* name, size_t n, const uint8_t* value, size_t m) except -1
    cdef int on_head(self, Call* call) except -1
    cdef int on_data(self, Call* call, const uint8_t* data, size_t n) except -1     # gives the window back by itself
    cdef int on_end(self, Call* call) except -1
    cdef int on_close(self, Call* call) except -1       # the stream is gone; the call still holds what it held
    cdef bint on_drained(self, Call* call) except -1    # a held call's messages have left; whether it goes on
    cdef int on_ping(self, bint ack) noexcept
    cdef int on_spoken(self) noexcept                   # headers or data were sent

    # ---- for the subclass to call
    # Send a message; takes it over.
    cdef int send(self, Call* call, Out* out) except -1
    # Decide the call's status; what was sent before still goes out. text may be NULL.
    cdef int finish(self, Call* call, int32_t status, const char* text, size_t n) except -1
    cdef int finish_text(self, Call* call, int32_t status, str text) except -1
    # Refuse a call that is no gRPC.
    cdef int refuse_http(self, Call* call, int32_t http_status) except -1
    # n bytes of the call's data have been used.
    cdef int give_back(self, Call* call, size_t n) except -1
    # What went wrong is this call's own affair: log it, end the call.
    cdef int call_failed(self, Call* call, object error) noexcept
    cdef int flush_safely(self) except -1

    # ---- its own
    cdef int open_call(self, int32_t stream_id) noexcept
    cdef int drop_call(self, Call* call) except -1
    cdef int end_session(self) except -1
    cdef int deliver_kept(self) noexcept
    cdef int broken(self, int rc, size_t n) except -1
    cdef int charge(self, Budget* budget, int64_t burst, int64_t rate) noexcept
    cdef bint send_all(self) except -1
    cdef int reply(self, Call* call) except -1
    cdef bint end_overdue(self) except? False
    cdef bint release_held(self) except? False
    cdef int close(self) except -1
    cdef int close_when_empty(self) except -1
