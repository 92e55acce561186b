# From a parsed request head to what the connection keeps of it: route, encodings, lengths, and whether it is refused.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.regions cimport Registry
from triton_fast._native.wire.http1 cimport Head, Slice


# What a POST of the native path asks for.
cdef enum:
    ROUTE_NONE = 0          # nothing: the Python side knows what it is
    ROUTE_INFER = 1
    ROUTE_GENERATE = 2
    ROUTE_STREAM = 3        # generate_stream

# How endpoint-load-metrics-format wants the load of the models told.
cdef enum:
    LOAD_NONE = 0
    LOAD_TEXT = 1
    LOAD_JSON = 2

# What is kept of a parsed head.
cdef struct Info:
    int32_t route           # ROUTE_*
    int32_t load_format     # LOAD_*
    bint keep_alive
    bint http10
    bint head_only          # HEAD: no body in the answer
    bint chunked
    bint expect
    bint once               # what the route is may be another next time, for the same head
    bint has_header_len     # Inference-Header-Content-Length: header_len holds
    int32_t encoding_in     # 0 identity, 1 gzip, 2 deflate, 3 unsupported
    int32_t encoding_out
    int64_t header_len
    size_t length           # of the body, when not chunked
    size_t limit            # of the body

# What a listener allows.
cdef struct Limits:
    size_t max_head
    size_t max_input        # JSON, raw and inflated bodies
    size_t max_body         # any body
    Registry* regions       # that clients registered; NULL: they may not


cdef inline str text_of(Slice* s):
    return s.ptr[:s.len].decode("latin-1") if s.ptr != NULL else ""


# Fill info from the head of a request for the v2 API on this route. None: go on; else the request is refused with this
# text and *status.
cdef bytes head_info(Head* h, Info* info, Limits* limits, int32_t route, int32_t* status)
# ROUTE_* of path when that is /v2/models/M[/versions/V]/infer or the like; then M is path[11:name_end], and version -1
# without V. Numbers that do not fit are left to the Python side, which answers as Triton does.
cdef int32_t native_route(Slice* path, size_t* name_end, int64_t* version) noexcept
# Take the head as the front ends of clouds do: no compression, and the length of the JSON part stands behind `kind` in
# Content-Type instead of in a header of its own. The text that refuses it (400), or None.
cdef bytes take_typed_length(Head* h, bytes kind)
# The first header of this name (lower case); NULL when there is none.
cdef Slice* find_header(Head* h, bytes name) noexcept
# Whether a header `name` (lower case) has exactly `value` (see net.fields).
cdef bint has_header(Head* h, bytes name, bytes value) noexcept
# The API key that a request presents; an empty one when it presents none.
cdef void presented_key(Head* h, const char** key, size_t* n) noexcept
# The headers whose names the compiled pattern finds, as [(name, value)] of bytes, names as sent. but_keys: without
# those that may hold an API key.
cdef list forwarded_headers(Head* h, object pattern, bint but_keys)
