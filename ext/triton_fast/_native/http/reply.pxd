# Response heads, and replies from the encoder to the socket.
from libc.stdint cimport int32_t

from triton_fast._native.core.native cimport tf_buf
from triton_fast._native.core.request cimport Response
from triton_fast._native.sched.model cimport NativeModel


# Append a response head. extra: header lines, each with its CR LF, that replace Content-Type and
# Inference-Header-Content-Length; NULL: those of an infer reply whose JSON part has body_len bytes and whose binary
# part has binary_len.
cdef void reply_head(tf_buf* out, int32_t status, const char* extra, size_t body_len, size_t binary_len,
                     bint keep_alive, bint http10) noexcept
# The same for an answer in chunks, or up to the connection's end where HTTP/1.0 has none. load: the value of
# endpoint-load-metrics, or None. retry_s: seconds after which the client may ask again; 0: that is not said.
cdef void stream_head(tf_buf* out, int32_t status, bint events, bytes load, bint keep_alive, bint http10,
                      int32_t retry_s) noexcept
cdef const char* status_of(int32_t status) noexcept
# Offer head[0:n] and the n_binary tensors p.outputs[binary_index[i]] to the socket, in one write. *total: bytes there
# are; returns how many were taken (0 for fd < 0), -1 when the connection is broken.
cdef ssize_t send_now(int fd, const char* head, size_t n, Response* p, int32_t n_binary, const int32_t* binary_index,
                      size_t* total) noexcept
# Give what lies behind the first `sent` bytes of the same to the transport.
cdef int send_rest(object transport, size_t sent, const char* head, size_t n, Response* p, int32_t n_binary,
                   const int32_t* binary_index) except -1
# Whether encoding the reply takes long enough to leave the loop's thread for it: much JSON, or much to compress.
cdef bint reply_is_heavy(Response* p, int32_t encoding) noexcept


# A reply that is encoded in one piece, on any thread, for a content encoding or because it is heavy. Owns p's request.
cdef class ReplyJob:
    cdef Response* p
    cdef NativeModel model
    cdef int32_t encoding
    cdef object deflate
    cdef bytes binary_type  # see HttpShared

    @staticmethod
    cdef ReplyJob make(Response* p, NativeModel model, int32_t encoding, object deflate, bytes binary_type)
