# See reply.pxd. The one place that spells HTTP response heads and writes replies to sockets.
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from triton_fast._native.core.native cimport tf_buf, tf_buf_free, tf_buf_put, tf_buf_reserve, tf_error
from triton_fast._native.core.print cimport print_number, print_text
from triton_fast._native.core.request cimport Request, Response, request_free
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.net.write cimport MAX_IOV, block_view, iovec, send_pieces
from triton_fast._native.sched.model cimport NativeModel
from triton_fast._native.wire.classify cimport reply_classify
from triton_fast._native.wire.json_reply cimport json_encode_reply

from http import HTTPStatus

from triton_fast.errors import make as make_error

cdef enum:
    HEAVY_JSON = 1048576        # bytes of outputs: some 10 ms as JSON numbers
    HEAVY_DEFLATE = 65536       # bytes of outputs: some ms to compress

cdef const char* lines[600]
_kept_alive = {}


def _fill():
    cdef bytes line
    for status in HTTPStatus:
        line = f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode()
        _kept_alive[int(status)] = line
        lines[int(status)] = line


_fill()


cdef const char* status_of(int32_t status) noexcept:
    if 0 <= status < 600 and lines[status] != NULL:
        return lines[status]
    return lines[500]


cdef void reply_head(tf_buf* out, int32_t status, const char* extra, size_t body_len, size_t binary_len,
                     bint keep_alive, bint http10) noexcept:
    if tf_buf_reserve(out, 256) != 0:
        return
    print_text(out, status_of(status))
    if extra != NULL:
        print_text(out, extra)
    elif binary_len:
        print_text(out, b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: ")
        print_number(out, body_len)
        print_text(out, b"\r\n")
    else:
        print_text(out, b"Content-Type: application/json\r\n")
    print_text(out, b"Content-Length: ")
    print_number(out, body_len + binary_len)
    if not keep_alive:
        print_text(out, b"\r\nConnection: close\r\n\r\n")
    elif http10:
        print_text(out, b"\r\nConnection: keep-alive\r\n\r\n")
    else:
        print_text(out, b"\r\n\r\n")


cdef void stream_head(tf_buf* out, int32_t status, bint events, bytes load, bint keep_alive, bint http10,
                      int32_t retry_s) noexcept:
    print_text(out, status_of(status))
    if events:
        print_text(out, b"Content-Type: text/event-stream; charset=utf-8\r\n")
    else:
        print_text(out, b"Content-Type: application/json\r\n")
    if load is not None:
        print_text(out, b"endpoint-load-metrics: ")
        tf_buf_put(out, <const char*>load, len(load))
        print_text(out, b"\r\n")
    if retry_s:
        print_text(out, b"Retry-After: ")
        print_number(out, retry_s)
        print_text(out, b"\r\n")
    if not http10:
        print_text(out, b"Transfer-Encoding: chunked\r\n")
    print_text(out, b"\r\n" if keep_alive else b"Connection: close\r\n\r\n")


cdef ssize_t send_now(int fd, const char* head, size_t n, Response* p, int32_t n_binary, const int32_t* binary_index,
                      size_t* total) noexcept:
    cdef iovec[MAX_IOV] iov
    cdef int32_t i, n_iov = 1
    cdef Tensor* t
    total[0] = n
    iov[0].iov_base = <void*>head
    iov[0].iov_len = n
    for i in range(n_binary):
        t = &p.outputs[binary_index[i]]
        total[0] += t.nbytes
        if n_iov < MAX_IOV and t.nbytes:
            iov[n_iov].iov_base = t.ptr
            iov[n_iov].iov_len = t.nbytes
            n_iov += 1
    return send_pieces(fd, iov, n_iov, total[0])


cdef int send_rest(object transport, size_t sent, const char* head, size_t n, Response* p, int32_t n_binary,
                   const int32_t* binary_index) except -1:
    cdef int32_t i
    cdef Tensor* t
    if sent < n:
        transport.write(head[sent:n])
        sent = n
    sent -= n
    for i in range(n_binary):
        t = &p.outputs[binary_index[i]]
        if sent >= t.nbytes:
            sent -= t.nbytes
            continue
        # A TLS transport takes no other kind of buffer.
        transport.write(block_view(t.block, t.ptr + sent, t.nbytes - sent))
        sent = 0
    return 0


cdef bint reply_is_heavy(Response* p, int32_t encoding) noexcept:
    cdef Request* r = p.request
    cdef size_t total = 0
    cdef int32_t i
    for i in range(p.n_outputs):
        total += p.outputs[i].nbytes
    if total <= <size_t>(HEAVY_JSON if encoding == 0 else HEAVY_DEFLATE):
        return False
    if encoding or r.n_wanted == 0:
        return encoding != 0 or r.binary_default != 1
    for i in range(r.n_wanted):
        if r.wanted[i].binary != 1 or r.wanted[i].classes:
            return True
    return False


cdef class ReplyJob:
    """An infer reply to be encoded in one piece. ``run`` may be called on any thread, once."""

    @staticmethod
    cdef ReplyJob make(Response* p, NativeModel model, int32_t encoding, object deflate, bytes binary_type):
        cdef ReplyJob job = ReplyJob.__new__(ReplyJob)
        job.p = p
        job.model = model
        job.encoding = encoding
        job.deflate = deflate
        job.binary_type = binary_type
        return job

    def __dealloc__(self):
        if self.p != NULL:
            request_free(self.p.request)

    def run(self):
        """Return (200, headers, body); raises the ServerError that the reply became."""
        cdef tf_buf json
        cdef tf_error e
        cdef Tensor* t
        cdef int32_t i, n_binary = -1
        cdef Response* p = self.p
        cdef int32_t* index = <int32_t*>malloc((<size_t>p.n_outputs + 1) * sizeof(int32_t))
        memset(&json, 0, sizeof(json))
        if index == NULL:
            raise MemoryError
        try:
            with nogil:
                if reply_classify(p, self.model.labels, &e) == 0:
                    n_binary = json_encode_reply(p, self.model.labels, &json, index, &e)
            if n_binary < 0:
                raise make_error(e.code, e.text[:e.len].decode("utf-8", "replace"))
            if json.failed:
                raise MemoryError
            parts = [json.data[:json.len]]
            for i in range(n_binary):
                t = &p.outputs[index[i]]
                if t.nbytes:
                    parts.append((<char*>t.ptr)[:t.nbytes])
            headers = [("Content-Type", "application/json")]
            if len(parts) > 1 and self.binary_type is not None:
                headers = [("Content-Type", f"{self.binary_type.decode()}{json.len}")]
            elif len(parts) > 1:
                headers = [("Content-Type", "application/octet-stream"),
                           ("Inference-Header-Content-Length", str(json.len))]
            body = b"".join(parts)
            if self.encoding:
                headers.append(("Content-Encoding", "gzip" if self.encoding == 1 else "deflate"))
                body = self.deflate(body, self.encoding)
            return 200, headers, body
        finally:
            free(index)
            tf_buf_free(&json)
