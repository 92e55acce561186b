# distutils: libraries = nghttp2
# See answer.pxd. Field values that stand here are not copied by nghttp2; a call's own text is.
from libc.stdint cimport int32_t, uint8_t
from libc.stdio cimport snprintf
from libc.string cimport strlen

from triton_fast._native.grpc.call cimport Call
from triton_fast._native.grpc.nghttp2 cimport *

cdef const char* ENCODINGS = b"identity, deflate, gzip"
cdef const char* STATUS_TEXTS[17]
_status_texts = [b"%d" % status for status in range(17)]
for _status in range(17):
    STATUS_TEXTS[_status] = _status_texts[_status]


cdef inline nghttp2_nv field(const char* name, size_t n, const char* value, size_t m) noexcept:
    cdef nghttp2_nv nv
    nv.name = <uint8_t*>name
    nv.namelen = n
    nv.value = <uint8_t*>value
    nv.valuelen = m
    nv.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME | NGHTTP2_NV_FLAG_NO_COPY_VALUE
    return nv


cdef inline nghttp2_nv copied(const char* name, size_t n, const char* value, size_t m) noexcept:
    cdef nghttp2_nv nv = field(name, n, value, m)
    nv.flags = NGHTTP2_NV_FLAG_NO_COPY_NAME
    return nv


cdef inline size_t put_status(nghttp2_nv* fields, size_t k, Call* call) noexcept:
    cdef const char* number = STATUS_TEXTS[call.status]
    fields[k] = field(b"grpc-status", 11, number, strlen(number))
    k += 1
    if call.text_len:
        fields[k] = copied(b"grpc-message", 12, call.text, call.text_len)
        k += 1
    if call.timing_len:
        fields[k] = copied(b"server-timing", 13, call.timing, call.timing_len)
        k += 1
    return k


# Told to clients that compress, as gRPC asks.
cdef inline size_t put_encodings(nghttp2_nv* fields, size_t k, Call* call) noexcept:
    if call.encoding_in == 0:
        return k
    fields[k] = field(b"grpc-accept-encoding", 20, ENCODINGS, strlen(ENCODINGS))
    return k + 1


cdef inline void begin(nghttp2_nv* fields) noexcept:
    fields[0] = field(b":status", 7, b"200", 3)
    fields[1] = field(b"content-type", 12, b"application/grpc", 16)


cdef int answer_head(nghttp2_session* session, Call* call, nghttp2_data_provider* provider) noexcept:
    cdef nghttp2_nv[4] fields
    cdef size_t k = 2
    begin(fields)
    if call.packed:
        fields[k] = field(b"grpc-encoding", 13, b"gzip" if call.packed == 1 else b"deflate",
                          4 if call.packed == 1 else 7)
        k += 1
    k = put_encodings(fields, k, call)
    return nghttp2_submit_response(session, call.stream_id, fields, k, provider)


cdef int answer_trailer(nghttp2_session* session, Call* call) noexcept:
    cdef nghttp2_nv[3] fields
    return nghttp2_submit_trailer(session, call.stream_id, fields, put_status(fields, 0, call))


cdef int answer_status(nghttp2_session* session, Call* call) noexcept:
    cdef nghttp2_nv[6] fields
    begin(fields)
    return nghttp2_submit_response(
        session, call.stream_id, fields, put_encodings(fields, put_status(fields, 2, call), call), NULL)


cdef int answer_http(nghttp2_session* session, Call* call, int32_t http_status) noexcept:
    cdef nghttp2_nv[1] fields
    cdef char[16] number
    cdef size_t n = <size_t>snprintf(number, sizeof(number), b"%d", http_status)
    fields[0] = copied(b":status", 7, number, n)
    return nghttp2_submit_response(session, call.stream_id, fields, 1, NULL)
