# HTTP/1.1 request heads, sans-IO: bytes in, slices out. It knows nothing of sockets, routes, bodies or
# responses. Called by the connection code, without the GIL. Every Slice borrows from the buffer
# given to http1_parse_head and dies with it; error_text is static.

from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

cdef enum:
    HTTP_MAX_HEADERS = 100          # header lines in one head; more is 431
    HTTP_MAX_TARGET = 8192          # bytes of request-target; more is 414
    HTTP_MAX_METHOD = 32            # bytes of method; more is 501
    HTTP_MAX_EMPTY_LINES = 2        # CR LF tolerated before a request line (RFC 9112 section 2.2)
    HTTP_ERROR_TEXT = 512           # a buffer of this size holds every text of http1_error_text

cdef enum:                          # Head.method
    M_OTHER = 0
    M_GET
    M_HEAD
    M_POST
    M_PUT
    M_DELETE
    M_OPTIONS
    M_PATCH
    M_CONNECT
    M_TRACE

cdef enum:                          # Head.error_kind
    HTTP_ERR_NONE = 0
    HTTP_ERR_TEXT                   # error_text says it all
    HTTP_ERR_CONTENT_LENGTH         # "Unable to parse Content-Length, got: <content_length_raw>"
    HTTP_ERR_CONTENT_LENGTH_RANGE   # the same, value out of range

cdef enum:                          # results of http1_parse_int32
    NUM_OK = 0
    NUM_BAD = 1                     # "Unable to parse <header>, got: <s>"
    NUM_RANGE = 2                   # "Unable to parse <header>, value is out of range [ .., .. ], got: <s>"

cdef struct Slice:
    const char* ptr                 # NULL: the field is absent; an empty field has a pointer and len 0
    size_t len

cdef struct HeaderRef:
    Slice name                      # as sent
    Slice value                     # without the spaces and tabs around it

cdef struct Head:
    int32_t error_status            # 0, else 400, 414, 417, 431, 501 or 505
    uint8_t error_kind
    uint8_t method
    uint8_t minor                   # 0 or 1
    uint8_t keep_alive
    uint8_t expect_continue
    uint8_t chunked
    uint8_t has_content_length
    uint8_t has_infer_header_len
    const char* error_text
    int64_t content_length          # 0 unless has_content_length
    Slice method_name
    Slice target                    # as sent
    Slice path                      # origin-form and absolute-form give the path, asterisk-form "*"; may be static "/"
    Slice query                     # after '?', absent without one
    Slice host                      # the authority of an absolute-form target replaces the field
    Slice authority                 # absolute-form only
    Slice content_type
    Slice content_encoding
    Slice accept_encoding           # the first such line
    Slice infer_header_len          # Inference-Header-Content-Length
    Slice content_length_raw
    Slice transfer_encoding
    Slice authorization
    uint32_t n_headers
    size_t head_len                 # bytes up to and including the blank line, tolerated empty lines too
    HeaderRef headers[HTTP_MAX_HEADERS]
    size_t scan_from                # owned by the parser; zero it once, before the first head of a connection
    uint32_t passes                 # full passes over the current head (tests)

# 1 complete, 0 more bytes needed, -1 error. On 0 call again with the same head start and more bytes (the buffer
# may have moved); only a call that brings a new LF costs a pass, so that byte-by-byte delivery stays linear.
# An error in the last line is reported at once or with that line's LF. Reads only buf[0:len]; no allocation.
cdef int http1_parse_head(const char* buf, size_t len, size_t max_head, Head* out) noexcept nogil

# Text of an error in out (error_status != 0) into dst, NUL-terminated, cut to cap: its length. A quoted value is
# cut at 256 bytes and may hold bytes that are no UTF-8: the caller escapes.
cdef size_t http1_error_text(const Head* out, char* dst, size_t cap) noexcept nogil

# Whole-field decimal int32 (optional '-', no '+', no spaces, at most 18 digits). NUM_*; *value set on NUM_OK.
cdef int http1_parse_int32(Slice field, int32_t* value) noexcept nogil

# Text for a refused Inference-Header-Content-Length (kind NUM_BAD or NUM_RANGE); as http1_error_text otherwise.
cdef size_t http1_infer_len_text(int kind, Slice field, char* dst, size_t cap) noexcept nogil
