# See head.pxd. Knows the v2 routes of inference and the headers that matter to it; no sockets, no bodies.
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.string cimport memcmp, memset

from triton_fast._native.net.fields cimport is_secret
from triton_fast._native.net.gate cimport KEY_BEARER, KEY_NONE, KEY_OWN, key_field
from triton_fast._native.wire.http1 cimport (
    HTTP_ERROR_TEXT, Head, M_HEAD, NUM_OK, Slice, http1_infer_len_text, http1_parse_int32,
)


cdef bytes head_info(Head* h, Info* info, Limits* limits, int32_t route, int32_t* status):
    cdef int32_t value = 0
    cdef int kind
    cdef char[HTTP_ERROR_TEXT] text
    memset(info, 0, sizeof(Info))
    info.route = route
    info.keep_alive = h.keep_alive
    info.http10 = h.minor == 0
    info.head_only = h.method == M_HEAD
    info.chunked = h.chunked
    info.expect = h.expect_continue and h.minor == 1
    info.length = <size_t>h.content_length if h.has_content_length else 0
    info.limit = limits.max_input
    status[0] = 413
    if info.length > limits.max_body:
        return b"the request body of %d bytes exceeds the limit of %d bytes" % (info.length, limits.max_body)
    if route == ROUTE_NONE:
        if info.length > limits.max_input:
            return (b"the request body of %d bytes exceeds the maximum allowed input size of %d bytes. "
                    b"Use --http-max-input-size to increase the limit." % (info.length, limits.max_input))
        return None
    status[0] = 400
    info.encoding_in = encoding_number(&h.content_encoding)
    if route != ROUTE_INFER:
        info.load_format = load_format(h)
        if info.length <= info.limit:
            return None
        return too_large(b"request JSON size of %d bytes exceeds the maximum allowed input size of", info.length,
                         limits)
    if h.has_infer_header_len:
        kind = http1_parse_int32(h.infer_header_len, &value)
        if kind != NUM_OK:
            return text[:http1_infer_len_text(kind, h.infer_header_len, text, HTTP_ERROR_TEXT)]
        info.has_header_len = True
        info.header_len = value
        if value != 0 and info.encoding_in == 0:
            # Only what follows the JSON may be larger than max_input.
            info.limit = limits.max_body
            if value > 0 and limits.max_input < <size_t>value <= info.length:
                return too_large(b"request JSON size of %d bytes exceeds the maximum allowed input size of", value,
                                 limits)
    if info.length <= info.limit:
        return None
    if info.encoding_in:
        return too_large(b"compressed request size of %d bytes exceeds the maximum allowed input size of", info.length,
                         limits)
    if info.has_header_len:
        return too_large(b"Raw input has a byte_size (%d bytes) that exceeds the maximum allowed value of", info.length,
                         limits)
    return too_large(b"request JSON size of %d bytes exceeds the maximum allowed input size of", info.length, limits)


cdef bytes too_large(bytes text, size_t n, Limits* limits):
    return (text + b" %d bytes. Use --http-max-input-size to increase the limit.") % (n, limits.max_input)


cdef inline bint ends_with(const char* p, size_t n, const char* word, size_t k) noexcept:
    return n > k and memcmp(p + n - k, word, k) == 0


cdef int32_t native_route(Slice* path, size_t* name_end, int64_t* version) noexcept:
    cdef const char* p = path.ptr
    cdef size_t n = path.len, at = 11
    cdef int32_t route
    if n < 12 or memcmp(p, b"/v2/models/", 11) != 0:
        return ROUTE_NONE
    if ends_with(p, n, b"/infer", 6):
        route = ROUTE_INFER
        n -= 6
    elif ends_with(p, n, b"/generate", 9):
        route = ROUTE_GENERATE
        n -= 9
    elif ends_with(p, n, b"/generate_stream", 16):
        route = ROUTE_STREAM
        n -= 16
    else:
        return ROUTE_NONE
    while at < n and p[at] != c"/":
        at += 1
    if at == 11:
        return ROUTE_NONE
    name_end[0] = at
    version[0] = -1
    if at == n:
        return route
    if n - at < 11 or memcmp(p + at, b"/versions/", 10) != 0:
        return ROUTE_NONE
    at += 10
    while at + 1 < n and p[at] == c"0":
        at += 1
    if n - at > 18:             # 18 digits cannot overflow
        return ROUTE_NONE
    version[0] = 0
    for at in range(at, n):
        if p[at] < c"0" or p[at] > c"9":
            return ROUTE_NONE
        version[0] = version[0] * 10 + (p[at] - c"0")
    return route


cdef Slice* find_header(Head* h, bytes name) noexcept:
    cdef uint32_t i
    for i in range(h.n_headers):
        if is_named(&h.headers[i].name, <const char*>name, len(name)):
            return &h.headers[i].value
    return NULL


cdef bytes take_typed_length(Head* h, bytes kind):
    cdef Slice* given = find_header(h, b"content-type")
    cdef int32_t value = 0
    cdef bytes text
    h.content_encoding.ptr = NULL
    h.content_encoding.len = 0
    h.accept_encoding.ptr = NULL
    h.has_infer_header_len = False
    if given == NULL:
        return None
    text = given.ptr[:given.len]
    if kind not in text:
        return None
    if not text.startswith(kind):
        return b"expect MIME type for binary data starts with '%b', got: %b" % (kind, text)
    h.infer_header_len.ptr = given.ptr + len(kind)
    h.infer_header_len.len = given.len - <size_t>len(kind)
    if http1_parse_int32(h.infer_header_len, &value) != NUM_OK:
        return b"Unable to parse inference header size, got: %b" % (text[len(kind):],)
    h.has_infer_header_len = True
    return None


cdef bint has_header(Head* h, bytes name, bytes value) noexcept:
    cdef uint32_t i
    for i in range(h.n_headers):
        if is_secret(h.headers[i].name.ptr, h.headers[i].name.len, h.headers[i].value.ptr, h.headers[i].value.len,
                     name, value):
            return True
    return False


cdef int32_t encoding_number(Slice* s) except -1:
    if s.ptr == NULL or s.len == 0:
        return 0
    return {"identity": 0, "gzip": 1, "x-gzip": 1, "deflate": 2}.get(text_of(s).strip().lower(), 3)


cdef void presented_key(Head* h, const char** key, size_t* n) noexcept:
    cdef uint32_t i
    cdef int32_t kind
    cdef const char* text = NULL
    cdef size_t m = 0
    key[0] = NULL
    n[0] = 0
    for i in range(h.n_headers):
        kind = key_field(h.headers[i].name.ptr, h.headers[i].name.len, h.headers[i].value.ptr, h.headers[i].value.len,
                         &text, &m)
        if kind == KEY_OWN or (kind == KEY_BEARER and key[0] == NULL):
            key[0] = text
            n[0] = m
            if kind == KEY_OWN:
                return


cdef list forwarded_headers(Head* h, object pattern, bint but_keys):
    cdef uint32_t i
    cdef const char* key
    cdef size_t n
    found = []
    for i in range(h.n_headers):
        name = h.headers[i].name.ptr[:h.headers[i].name.len]
        if but_keys and key_field(h.headers[i].name.ptr, h.headers[i].name.len, h.headers[i].value.ptr,
                                  h.headers[i].value.len, &key, &n) != KEY_NONE:
            continue
        if pattern.search(name.decode("latin-1")):
            found.append((name, h.headers[i].value.ptr[:h.headers[i].value.len]))
    return found


cdef int32_t load_format(Head* h) noexcept:
    cdef uint32_t i
    cdef Slice* value
    for i in range(h.n_headers):
        if is_named(&h.headers[i].name, b"endpoint-load-metrics-format", 28):
            value = &h.headers[i].value
            if value.len == 4 and memcmp(value.ptr, b"text", 4) == 0:
                return LOAD_TEXT
            return LOAD_JSON if value.len == 4 and memcmp(value.ptr, b"json", 4) == 0 else LOAD_NONE
    return LOAD_NONE


# Whether a header's name is this one, which is lower case.
cdef bint is_named(Slice* name, const char* word, size_t n) noexcept:
    cdef size_t k
    cdef char c
    if name.len != n:
        return False
    for k in range(n):
        c = name.ptr[k]
        if (c + 32 if c"A" <= c <= c"Z" else c) != word[k]:
            return False
    return True
