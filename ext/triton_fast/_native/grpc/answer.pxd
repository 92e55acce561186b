# What the server says of a call in HTTP/2 fields: head, trailer, refusals. Knows calls and fields, no bytes.
from libc.stdint cimport int32_t

from triton_fast._native.grpc.call cimport Call
from triton_fast._native.grpc.nghttp2 cimport nghttp2_data_provider, nghttp2_session


# All return 0, or an error of nghttp2. The head of an answer whose messages provider gives.
cdef int answer_head(nghttp2_session* session, Call* call, nghttp2_data_provider* provider) noexcept
# The end of such an answer; only from within its provider.
cdef int answer_trailer(nghttp2_session* session, Call* call) noexcept
# An answer that is only a status.
cdef int answer_status(nghttp2_session* session, Call* call) noexcept
# The refusal of what is no gRPC call.
cdef int answer_http(nghttp2_session* session, Call* call, int32_t http_status) noexcept
