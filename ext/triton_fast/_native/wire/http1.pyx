# HTTP/1.1 request heads (RFC 9112, RFC 9110), sans-IO; interface and limits in http1.pxd.
# Must not know sockets, routes, bodies or responses. Called without the GIL by the connection code; the Python names
# at the end are for tests and the instruction count.
#
# Strict where two readings of one request could differ (request smuggling): every line ends in CR LF (a bare LF
# is refused, as llhttp and Triton's own server do), no folded lines, no repeated singleton field.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free
from libc.string cimport memchr, memcmp, memset

from triton_fast._native.wire.http1_scan cimport (
    CR, C_HOST, C_TOKEN, HTAB, LF, SP, S_NAME, S_PATH, S_QUERY, S_VALUE, exact_copy, tf_class, tf_ieq, tf_plain,
    tf_scan,
)


cdef enum:
    CONN_CLOSE = 1
    CONN_KEEP = 2
    ECHO = 256          # bytes of a refused value quoted in an error text
    NAME_PLAIN = 0      # what a recognised field name asks for
    NAME_KNOWN = 1
    NAME_CONNECTION = 2
    NAME_EXPECT = 3


# ---- request head ----

cdef int http1_parse_head(const char* buf, size_t len, size_t max_head, Head* out) noexcept nogil:
    cdef size_t seen = out.scan_from
    cdef bint full = len >= max_head
    cdef int rc
    if seen != 0 and seen <= len:
        if not full and memchr(buf + seen, LF, len - seen) == NULL:
            out.scan_from = len
            return 0
        out.passes += 1
    else:
        out.passes = 1
    rc = _parse(buf, buf + (max_head if full else len), full, out)
    out.scan_from = len if rc == 0 else 0
    return rc


cdef int _fail(Head* out, int status, const char* text) noexcept nogil:
    out.error_status = status
    out.error_kind = HTTP_ERR_TEXT
    out.error_text = text
    return -1


cdef inline int _more(Head* out, bint full) noexcept nogil:
    # The bytes ran out. At the size limit that is final; before the target ended, the request line is to blame.
    if not full:
        return 0
    if out.target.len == 0:
        return _fail(out, 414, b"request line exceeds the maximum size of a request head; send a shorter URL")
    return _fail(out, 431, b"request head exceeds the maximum size; send fewer or shorter header fields")


cdef int _parse(const char* buf, const char* end, bint full, Head* out) noexcept nogil:
    cdef const char* p = buf
    cdef const char* q
    cdef const char* v
    cdef const char* e
    cdef const char* last = end - 16 if end - buf >= 16 else NULL
    cdef Slice* slot
    cdef HeaderRef* ref
    cdef size_t name_len
    cdef uint32_t n = 0
    cdef int special, expect = 0, connection = 0, rc = 0
    # All but the headers; in pieces, because gcc makes a slow "rep stos" of one memset.
    memset(out, 0, <const char*>&out.query - <const char*>out)
    memset(&out.query, 0, 5 * sizeof(Slice))
    memset(&out.accept_encoding, 0, 5 * sizeof(Slice))
    memset(&out.n_headers, 0, <const char*>&out.headers - <const char*>&out.n_headers)

    if p < end and (p[0] == CR or p[0] == LF):
        rc = _empty_lines(&p, end, out)
        if rc < 0:
            return rc
        if rc == 0:
            return _more(out, full)

    # method SP target SP version CR LF
    out.method_name.ptr = p
    if end - p >= 8 and memcmp(p, b"POST ", 5) == 0:
        out.method = M_POST
        q = p + 4
    elif end - p >= 8 and memcmp(p, b"GET ", 4) == 0:
        out.method = M_GET
        q = p + 3
    else:
        q = p
        rc = _method(&q, end, out)
        if rc <= 0:
            return rc if rc < 0 else _more(out, full)
    out.method_name.len = q - p
    p = q + 1
    q = tf_scan(p, end, last, S_PATH)
    out.target.ptr = p
    out.path.ptr = p
    out.path.len = q - p
    if q < end and q[0] == c'?':
        out.query.ptr = q + 1
        q = tf_scan(q + 1, end, last, S_QUERY)
        out.query.len = q - out.query.ptr
    if q - p > HTTP_MAX_TARGET:
        return _fail(out, 414, b"request target exceeds the maximum of 8192 bytes; send a shorter URL")
    if q == end:
        return _more(out, full)
    if q[0] != SP or q == p:
        return _bad_target(out, p, q)
    out.target.len = q - p
    q += 1
    if end - q < 10:
        if memchr(q, LF, end - q) == NULL:
            return _more(out, full)
        return _bad_version(out, q, end)
    if memcmp(q, b"HTTP/1.1\r\n", 10) == 0:
        out.minor = 1
    elif memcmp(q, b"HTTP/1.0\r\n", 10) != 0:
        return _bad_version(out, q, end)
    if p[0] != c'/' and _target_form(out) < 0:
        return -1
    p = q + 10

    while True:
        if p == end:
            return _more(out, full)
        if p[0] == CR:
            if end - p < 2:
                return _more(out, full)
            if p[1] != LF:
                return _fail(out, 400, b"bare CR in the request head; end each line with CR LF")
            p += 2
            break
        q = tf_scan(p, end, last, S_NAME)
        if q == end:
            return _more(out, full)
        if q[0] != c':':
            return _bad_name(out, p, q)
        name_len = q - p
        special = _known(p, name_len, out, &slot)
        if special == NAME_PLAIN and (name_len == 0 or not tf_plain(p, name_len, end)):
            e = p
            while e < q and tf_class[<uint8_t>e[0]] & C_TOKEN:
                e += 1
            if e < q or name_len == 0:
                return _bad_name(out, p, e)
        if n == HTTP_MAX_HEADERS:
            return _fail(out, 431, b"request has more than 100 header fields; send fewer")
        v = q + 1
        while v < end and (v[0] == SP or v[0] == HTAB):
            v += 1
        e = tf_scan(v, end, last, S_VALUE)
        if end - e < 2:
            if e < end and e[0] != CR:
                return _bad_value(out, e)
            return _more(out, full)
        if e[0] != CR or e[1] != LF:
            return _bad_value(out, e)
        q = e + 2
        while e > v and <uint8_t>(e - 1)[0] <= SP:      # of these a value holds blanks only
            e -= 1
        ref = &out.headers[n]
        n += 1
        ref.name.ptr = p
        ref.name.len = name_len
        ref.value.ptr = v
        ref.value.len = e - v
        p = q
        if slot != NULL:
            if slot.ptr != NULL:
                return _repeated(out, slot)
            slot.ptr = v
            slot.len = e - v
        elif special == NAME_CONNECTION:
            connection |= _connection(v, e)
        elif special == NAME_EXPECT:
            expect |= 1 if e - v == 12 and tf_ieq(v, b"100-continue", 12) else 2

    out.n_headers = n
    out.head_len = p - buf
    out.keep_alive = not connection & CONN_CLOSE and (out.minor or connection & CONN_KEEP)
    if _host(out, end) < 0 or _framing(out) < 0:
        return -1
    if expect:
        if expect & 2:
            return _fail(out, 417, b"unsupported Expect field; the only expectation served is 100-continue")
        out.expect_continue = out.minor     # a 1.0 client cannot read a 100 response (RFC 9110 section 10.1.1)
    return 1


cdef inline int _known(const char* p, size_t n, Head* out, Slice** slot) noexcept nogil:
    # NAME_PLAIN: an unknown name whose token rule is unchecked. NAME_KNOWN with slot NULL: nothing to keep.
    slot[0] = NULL
    if n == 4:
        if tf_ieq(p, b"host", 4):
            slot[0] = &out.host
            return NAME_KNOWN
    elif n == 6:
        if tf_ieq(p, b"accept", 6):
            return NAME_KNOWN
        if tf_ieq(p, b"expect", 6):
            return NAME_EXPECT
    elif n == 10:
        if tf_ieq(p, b"user-agent", 10):
            return NAME_KNOWN
        if tf_ieq(p, b"connection", 10):
            return NAME_CONNECTION
    elif n == 12:
        if tf_ieq(p, b"content-type", 12):
            slot[0] = &out.content_type
            return NAME_KNOWN
    elif n == 13:
        if tf_ieq(p, b"authorization", 13):
            slot[0] = &out.authorization
            return NAME_KNOWN
    elif n == 14:
        if tf_ieq(p, b"content-length", 14):
            slot[0] = &out.content_length_raw
            return NAME_KNOWN
    elif n == 15:
        if tf_ieq(p, b"accept-encoding", 15):
            if out.accept_encoding.ptr == NULL:
                slot[0] = &out.accept_encoding
            return NAME_KNOWN
    elif n == 16:
        if tf_ieq(p, b"content-encoding", 16):
            slot[0] = &out.content_encoding
            return NAME_KNOWN
    elif n == 17:
        if tf_ieq(p, b"transfer-encoding", 17):
            slot[0] = &out.transfer_encoding
            return NAME_KNOWN
    elif n == 31:
        if tf_ieq(p, b"inference-header-content-length", 31):
            slot[0] = &out.infer_header_len
            return NAME_KNOWN
    return NAME_PLAIN


cdef int _empty_lines(const char** at, const char* end, Head* out) noexcept nogil:
    # 1: at the request line, 0: bytes ran out, -1: error
    cdef const char* p = at[0]
    cdef int n = 0
    while p < end and (p[0] == CR or p[0] == LF):
        if p[0] == LF:
            return _fail(out, 400, b"bare LF in the request head; end each line with CR LF")
        if end - p < 2:
            return 0
        if p[1] != LF:
            return _fail(out, 400, b"bare CR in the request head; end each line with CR LF")
        n += 1
        if n > HTTP_MAX_EMPTY_LINES:
            return _fail(out, 400, b"more than 2 empty lines before the request line")
        p += 2
    at[0] = p
    return 1 if p < end else 0


cdef int _method(const char** at, const char* end, Head* out) noexcept nogil:
    # Methods other than GET and POST. 1: at[0] is the space after it, 0: bytes ran out, -1: error
    cdef const char* p = at[0]
    cdef const char* q = p
    cdef size_t n
    while q < end and tf_class[<uint8_t>q[0]] & C_TOKEN:
        q += 1
    n = q - p
    if n > HTTP_MAX_METHOD:
        return _fail(out, 501, b"request method exceeds 32 characters and is not implemented")
    if q == end:
        return 0
    if q[0] != SP or n == 0:
        if n == 0 and p[0] == 0x16:
            return _fail(out, 400, b"TLS handshake on a plain HTTP port; use http:// or the TLS port")
        return _fail(out, 400, b"malformed request line; expected: METHOD /path HTTP/1.1")
    at[0] = q
    out.method = M_OTHER
    if n == 3:
        if memcmp(p, b"GET", 3) == 0:
            out.method = M_GET
        elif memcmp(p, b"PUT", 3) == 0:
            out.method = M_PUT
    elif n == 4:
        if memcmp(p, b"POST", 4) == 0:
            out.method = M_POST
        elif memcmp(p, b"HEAD", 4) == 0:
            out.method = M_HEAD
    elif n == 5:
        if memcmp(p, b"PATCH", 5) == 0:
            out.method = M_PATCH
        elif memcmp(p, b"TRACE", 5) == 0:
            out.method = M_TRACE
    elif n == 6:
        if memcmp(p, b"DELETE", 6) == 0:
            out.method = M_DELETE
    elif n == 7:
        if memcmp(p, b"OPTIONS", 7) == 0:
            out.method = M_OPTIONS
        elif memcmp(p, b"CONNECT", 7) == 0:
            out.method = M_CONNECT
    return 1


cdef int _target_form(Head* out) noexcept nogil:
    # Targets that do not start with '/': absolute-form and "*" (RFC 9112 section 3.2).
    cdef const char* p = out.target.ptr
    cdef const char* end = out.path.ptr + out.path.len
    cdef const char* q
    if out.target.len == 1 and p[0] == c'*' and out.method == M_OPTIONS:
        return 0
    if end - p > 7 and tf_ieq(p, b"http", 4) and memcmp(p + 4, b"://", 3) == 0:
        p += 7
    elif end - p > 8 and tf_ieq(p, b"http", 4) and (p[4] | 0x20) == c's' and memcmp(p + 5, b"://", 3) == 0:
        p += 8
    else:
        return _fail(out, 400, b"request target must start with '/' or be an absolute http URL")
    q = p
    while q < end and tf_class[<uint8_t>q[0]] & C_HOST:
        q += 1
    if q == p or (q < end and q[0] != c'/'):
        return _fail(out, 400, b"malformed authority in the absolute request target; expected: http://host:port/path")
    out.authority.ptr = p
    out.authority.len = q - p
    if q < end:
        out.path.ptr = q
        out.path.len = end - q
    else:
        out.path.ptr = b"/"
        out.path.len = 1
        if out.method == M_OPTIONS and out.query.ptr == NULL:
            out.path.ptr = b"*"
    return 0


cdef inline int _host(Head* out, const char* limit) noexcept nogil:
    cdef const char* p = out.host.ptr
    cdef const char* end
    if p == NULL and out.minor:
        return _fail(out, 400, b"missing Host header field; HTTP/1.1 requires it")
    if p != NULL and not tf_plain(p, out.host.len, limit):
        end = p + out.host.len
        while p < end:
            if not tf_class[<uint8_t>p[0]] & C_HOST:
                return _fail(out, 400, b"malformed Host header field; expected: host or host:port")
            p += 1
    if out.authority.ptr != NULL:
        out.host = out.authority
    return 0


cdef inline int _framing(Head* out) noexcept nogil:
    # Content-Length and Transfer-Encoding: where the body ends must have one reading only.
    cdef const char* p
    cdef size_t i = 0, n
    cdef uint8_t digit
    cdef uint64_t value = 0
    out.has_infer_header_len = out.infer_header_len.ptr != NULL
    if out.transfer_encoding.ptr != NULL:
        if not out.minor:
            return _fail(out, 400, b"Transfer-Encoding in an HTTP/1.0 request; use Content-Length or HTTP/1.1")
        if out.content_length_raw.ptr != NULL:
            return _fail(out, 400, b"both Content-Length and Transfer-Encoding; send one of them")
        if out.transfer_encoding.len != 7 or not tf_ieq(out.transfer_encoding.ptr, b"chunked", 7):
            return _fail(out, 501, b"unsupported Transfer-Encoding; only chunked is served")
        out.chunked = 1
        return 0
    p = out.content_length_raw.ptr
    if p == NULL:
        return 0
    n = out.content_length_raw.len
    while i < n:
        digit = <uint8_t>(p[i] - c'0')
        if digit > 9:
            break
        value = value * 10 + digit      # may wrap beyond 19 digits, which are refused below
        i += 1
    if i < n or n == 0:
        _fail(out, 400, b"Unable to parse Content-Length")
        out.error_kind = HTTP_ERR_CONTENT_LENGTH
        return -1
    if n > 19 or value > <uint64_t>0x7fffffffffffffff:
        _fail(out, 400, b"Unable to parse Content-Length, value is out of range")
        out.error_kind = HTTP_ERR_CONTENT_LENGTH_RANGE
        return -1
    out.has_content_length = 1
    out.content_length = <int64_t>value
    return 0


cdef int _connection(const char* p, const char* end) noexcept nogil:
    # CONN_* found in one Connection field: a comma-separated list of tokens, letter case ignored.
    cdef const char* q
    cdef const char* e
    cdef int found = 0
    while p < end:
        q = <const char*>memchr(p, c',', end - p)
        if q == NULL:
            q = end
        e = q
        while p < e and (p[0] == SP or p[0] == HTAB):
            p += 1
        while e > p and ((e - 1)[0] == SP or (e - 1)[0] == HTAB):
            e -= 1
        if e - p == 10 and tf_ieq(p, b"keep-alive", 10):
            found |= CONN_KEEP
        elif e - p == 5 and tf_ieq(p, b"close", 5):
            found |= CONN_CLOSE
        p = q + 1
    return found


# ---- error texts of a head ----

cdef int _bad_target(Head* out, const char* p, const char* q) noexcept nogil:
    if q[0] == CR or q[0] == LF:
        return _fail(out, 400, b"malformed request line, HTTP version is missing; expected: METHOD /path HTTP/1.1")
    if q == p and q[0] == SP:
        return _fail(out, 400, b"malformed request line, more than one space; expected: METHOD /path HTTP/1.1")
    return _fail(out, 400, b"control or non-ASCII character in the request target; percent-encode it")


cdef int _bad_version(Head* out, const char* p, const char* end) noexcept nogil:
    # Called with an LF or 10 bytes in [p, end), so that the answer does not depend on what follows.
    if end - p >= 9 and memcmp(p, b"HTTP/", 5) == 0 and p[6] == c'.' \
            and <uint8_t>(p[5] - c'0') <= 9 and <uint8_t>(p[7] - c'0') <= 9:
        if p[8] == LF and p[5] == c'1' and p[7] <= c'1':
            return _fail(out, 400, b"bare LF in the request head; end each line with CR LF")
        if p[8] == CR and p[5] == c'1' and p[7] <= c'1':
            return _fail(out, 400, b"bare CR in the request head; end each line with CR LF")
        if p[8] == CR or p[8] == LF:
            return _fail(out, 505, b"HTTP version not supported; use HTTP/1.1 or HTTP/1.0")
    return _fail(out, 400, b"malformed HTTP version in the request line; expected: METHOD /path HTTP/1.1")


cdef int _bad_name(Head* out, const char* p, const char* q) noexcept nogil:
    if q == p:
        if q[0] == LF:
            return _fail(out, 400, b"bare LF in the request head; end each line with CR LF")
        if q[0] == SP or q[0] == HTAB:
            return _fail(out, 400, b"folded header line; send each header field on one line")
        if q[0] == c':':
            return _fail(out, 400, b"empty header field name; expected: Name: value")
    if q[0] == SP or q[0] == HTAB:
        return _fail(out, 400, b"space in or after a header field name; expected: Name: value")
    if q[0] == CR or q[0] == LF:
        return _fail(out, 400, b"header line without ':'; expected: Name: value")
    return _fail(out, 400, b"invalid character in a header field name")


cdef int _bad_value(Head* out, const char* e) noexcept nogil:
    if e[0] == LF:
        return _fail(out, 400, b"bare LF in the request head; end each line with CR LF")
    if e[0] == CR:
        return _fail(out, 400, b"bare CR in the request head; end each line with CR LF")
    return _fail(out, 400, b"control character in a header field value")


cdef int _repeated(Head* out, const Slice* slot) noexcept nogil:
    if slot == &out.host:
        return _fail(out, 400, b"more than one Host header field; send one")
    if slot == &out.content_length_raw:
        return _fail(out, 400, b"more than one Content-Length header field; send one")
    if slot == &out.transfer_encoding:
        return _fail(out, 400, b"more than one Transfer-Encoding header field; send one")
    if slot == &out.infer_header_len:
        return _fail(out, 400, b"more than one Inference-Header-Content-Length header field; send one")
    if slot == &out.content_type:
        return _fail(out, 400, b"more than one Content-Type header field; send one")
    if slot == &out.content_encoding:
        return _fail(out, 400, b"more than one Content-Encoding header field; send one")
    return _fail(out, 400, b"more than one Authorization header field; send one")


cdef size_t _written(int n, size_t cap) noexcept nogil:
    # snprintf's result as the length that is really in the buffer
    return 0 if n < 0 else min(<size_t>n, cap - 1)


cdef size_t http1_error_text(const Head* out, char* dst, size_t cap) noexcept nogil:
    cdef const char* more = b""
    cdef int n
    if cap == 0:
        return 0
    if out.error_kind == HTTP_ERR_NONE:
        dst[0] = 0
        n = 0
    elif out.error_kind == HTTP_ERR_CONTENT_LENGTH or out.error_kind == HTTP_ERR_CONTENT_LENGTH_RANGE:
        if out.error_kind == HTTP_ERR_CONTENT_LENGTH_RANGE:
            more = b", value is out of range [ 0, 9223372036854775807 ]"
        n = snprintf(dst, cap, b"Unable to parse Content-Length%s, got: %.*s", more,
                     <int>min(out.content_length_raw.len, <size_t>ECHO), out.content_length_raw.ptr)
    else:
        n = snprintf(dst, cap, b"%s", out.error_text)
    return _written(n, cap)


cdef int http1_parse_int32(Slice field, int32_t* value) noexcept nogil:
    cdef size_t i = 0, start = 0
    cdef int64_t v = 0
    if field.len > 0 and field.ptr[0] == c'-':
        start = 1
    if field.len == start:
        return NUM_BAD
    for i in range(start, field.len):
        if <uint8_t>(field.ptr[i] - c'0') > 9:
            return NUM_BAD
        if i - start < 18:      # 18 digits fit; with more the value is refused below
            v = v * 10 + <uint8_t>(field.ptr[i] - c'0')
    if start and v == 0:
        return NUM_BAD          # "-0" would select raw binary mode
    if start:
        v = -v
    if field.len - start > 18 or v > <int64_t>0x7fffffff or v < -<int64_t>0x80000000:
        return NUM_RANGE
    value[0] = <int32_t>v
    return NUM_OK


cdef size_t http1_infer_len_text(int kind, Slice field, char* dst, size_t cap) noexcept nogil:
    cdef const char* more = b""
    if cap == 0:
        return 0
    if kind == NUM_RANGE:
        more = b", value is out of range [ -2147483648, 2147483647 ]"
    return _written(snprintf(dst, cap, b"Unable to parse Inference-Header-Content-Length%s, got: %.*s", more,
                             <int>min(field.len, <size_t>ECHO), field.ptr), cap)


# ---- Python names: tests, fuzzing, instruction counts ----

_METHODS = ("OTHER", "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "PATCH", "CONNECT", "TRACE")


class HttpError(Exception):
    def __init__(self, status, text):
        super().__init__(status, text)
        self.status = status
        self.text = text


cdef object _bytes(Slice s):
    return None if s.ptr == NULL else s.ptr[:s.len]


cdef object _result(int rc, const Head* head):
    cdef char text[HTTP_ERROR_TEXT]
    cdef size_t n
    if rc == 0:
        return None
    if rc < 0:
        n = http1_error_text(head, text, sizeof(text))
        raise HttpError(head.error_status, text[:n].decode("utf-8", "backslashreplace"))
    return {
        "method": _METHODS[head.method], "minor": head.minor, "keep_alive": bool(head.keep_alive),
        "expect_continue": bool(head.expect_continue), "chunked": bool(head.chunked),
        "content_length": head.content_length if head.has_content_length else None,
        "method_name": _bytes(head.method_name), "target": _bytes(head.target), "path": _bytes(head.path),
        "query": _bytes(head.query), "host": _bytes(head.host), "authority": _bytes(head.authority),
        "content_type": _bytes(head.content_type), "content_encoding": _bytes(head.content_encoding),
        "accept_encoding": _bytes(head.accept_encoding), "authorization": _bytes(head.authorization),
        "infer_header_len": _bytes(head.infer_header_len) if head.has_infer_header_len else None,
        "transfer_encoding": _bytes(head.transfer_encoding), "head_len": head.head_len,
        "headers": [(_bytes(head.headers[i].name), _bytes(head.headers[i].value)) for i in range(head.n_headers)],
    }


cdef object _parse_copy(bytes data, size_t max_head, Head* head):
    cdef char* copy = exact_copy(data)
    try:
        return _result(http1_parse_head(copy, len(data), max_head, head), head)
    finally:
        free(copy)


def parse_head(bytes data not None, size_t max_head=16384):
    cdef Head head
    head.scan_from = 0
    return _parse_copy(data, max_head, &head)


cdef class HeadParser:
    cdef Head head
    cdef bytes held
    cdef size_t max_head

    def __cinit__(self, size_t max_head=16384):
        self.held = b""
        self.max_head = max_head
        self.head.scan_from = 0
        self.head.passes = 0

    @property
    def passes(self):
        return self.head.passes

    def feed(self, bytes data not None):
        self.held = self.held + data
        return _parse_copy(self.held, self.max_head, &self.head)


def parse_infer_header_len(bytes value not None):
    cdef char text[HTTP_ERROR_TEXT]
    cdef int32_t number = 0
    cdef size_t n
    cdef Slice field
    field.ptr = value
    field.len = len(value)
    cdef int rc = http1_parse_int32(field, &number)
    if rc != NUM_OK:
        n = http1_infer_len_text(rc, field, text, sizeof(text))
        raise HttpError(400, text[:n].decode("utf-8", "backslashreplace"))
    return number


def repeat_parse(bytes data not None, uint32_t times):
    cdef Head head
    cdef const char* buf = data
    cdef size_t n = len(data), total = 0
    head.scan_from = 0
    with nogil:
        for _ in range(times):
            if http1_parse_head(buf, n, 16384, &head) == 1:
                total += head.head_len
    return total
