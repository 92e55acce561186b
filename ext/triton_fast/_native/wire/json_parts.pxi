# Part of json_infer.pyx: the decoder's state, limits and fixed texts, and the readers of single values.
# Knows nothing of inputs, outputs or the document.

# The order in which the real server looks at the parts; errors of a lower rank win.
cdef enum:
    RANK_ID = 0
    RANK_PARAMS = 1
    RANK_INPUTS = 2
    RANK_OUTPUTS = 3
    RANK_STRINGS = 4        # the count of BYTES elements: the real server's validation finds it
    RANK_NONE = 5

cdef enum:
    MAX_DEPTH = 64          # nesting of what is not tensor data
    MAX_SEQUENCE_TEXT = 128
    NAME_CUT = 256          # bytes of a client's text that an error repeats
    INLINE_BYTES = 512      # smaller JSON tensors live in the request's arena
    MAX_PARAMS = 65536

cdef const char* NON_STRING = b"Unable to parse '%s': attempt to access JSON non-string as string"
cdef const char* NON_BOOL = b"Unable to parse '%s': attempt to access JSON non-boolean as boolean"
cdef const char* NON_UINT = b"Unable to parse '%s': attempt to access JSON non-unsigned-integer as unsigned-integer"
cdef const char* NON_ARRAY = b"Unable to parse '%s': attempt to access JSON non-array as array"
cdef const char* MISSING = b"Unable to parse '%s': attempt to access non-existing object member '%s'"

# A member as found: absent, of the wanted type, or of another (WRONG).
cdef enum:
    ABSENT = 0
    GOOD = 1
    WRONG = 2
    TOO_MANY = 3            # a shape of more than MAX_RANK dimensions

cdef struct Decoder:
    tf_json c
    Request* r
    tf_error* e
    int rank
    bint deep_said          # e already says where the nesting was too deep
    const uint8_t* bin
    size_t bin_len
    size_t bin_used
    bint has_header_len
    bint flat               # a generate request: some limits and texts differ
    uint32_t n_flat         # parameters of it
    Registry* regions       # that clients registered; NULL: none
    size_t max_input
    size_t decoded          # bytes that JSON data took so far, over all inputs
    int32_t cap             # room in r.inputs or r.wanted while it grows
    int32_t odd_input       # first BYTES input with a wrong count of elements, or -1
    int64_t odd_expected
    int64_t odd_got
    tf_json_names names

# What `parameters` of an input or output may say. What stands behind region_text means something only where its flag is
# set, and is not cleared.
cdef struct Extras:
    int binary_size
    int binary
    int classes
    int region
    int offset
    int byte_size
    bint binary_value
    tf_json_str region_text
    uint64_t binary_size_value
    uint64_t classes_value
    uint64_t offset_value
    uint64_t byte_size_value

cdef struct Input:
    tf_json_str name
    tf_json_str datatype
    int has_name
    int has_datatype
    int has_shape
    bint has_params
    int32_t dtype
    int32_t ndim
    const char* data        # where the value of "data" starts; NULL: absent
    bint filled             # data went into ptr already
    uint8_t* ptr
    size_t nbytes
    Block* block
    int32_t kind            # of the memory, MEM_*
    int32_t device
    Extras extras
    int64_t dims[MAX_RANK]


cdef inline int cut(uint32_t n) noexcept nogil:
    return <int>n if n < NAME_CUT else NAME_CUT


cdef inline bint is_key(const tf_json_str* s, const char* word, uint32_t n) noexcept nogil:
    return s.len == n and memcmp(s.ptr, word, n) == 0


# Undo the escapes of s, if it has any, in memory of the request.
cdef inline int settle(Decoder* d, tf_json_str* s) noexcept nogil:
    cdef char* text
    if not s.escaped:
        return 0
    text = <char*>request_alloc(d.r, s.len)
    if text == NULL:
        return out_of_memory(d)
    s.len = <uint32_t>tf_json_unescape(s, text)
    s.ptr = text
    s.escaped = 0
    return 0


cdef int out_of_memory(Decoder* d) noexcept nogil:
    return tf_fail(d.e, TF_UNAVAILABLE, b"out of memory while decoding the request")


# The readers of one value: 0 with *found GOOD, or WRONG when it is of another type (and skipped); -1 syntax error.
cdef inline int read_text(Decoder* d, tf_json_str* out, int* found) noexcept nogil:
    if d.c.p[0] == c'"':
        found[0] = GOOD
        if tf_json_string(&d.c, out):
            return -1
        return settle(d, out)
    found[0] = WRONG
    return tf_json_skip(&d.c, MAX_DEPTH)


cdef inline bint starts_number(char ch) noexcept nogil:
    return (ch >= c'0' and ch <= c'9') or ch == c'-'


cdef inline int read_uint(Decoder* d, uint64_t* out, int* found) noexcept nogil:
    cdef tf_json_num n
    if tf_json_plain(&d.c, out):
        found[0] = GOOD
        return 0
    if starts_number(d.c.p[0]):
        if tf_json_number(&d.c, &n):
            return -1
        found[0] = GOOD if n.kind == 1 or (n.kind == 0 and <int64_t>n.u >= 0) else WRONG
        out[0] = n.u
        return 0
    found[0] = WRONG
    out[0] = 0
    return tf_json_skip(&d.c, MAX_DEPTH)


cdef inline int read_bool(Decoder* d, bint* out, int* found) noexcept nogil:
    cdef char ch = d.c.p[0]
    found[0] = GOOD if ch == c't' or ch == c'f' else WRONG
    out[0] = ch == c't'
    return tf_json_skip(&d.c, MAX_DEPTH)


cdef int32_t dtype_of(const tf_json_str* s) noexcept nogil:
    cdef const char* p = s.ptr
    if s.len == 4:
        if memcmp(p, b"FP32", 4) == 0:
            return DT_FP32
        if memcmp(p, b"FP16", 4) == 0:
            return DT_FP16
        if memcmp(p, b"FP64", 4) == 0:
            return DT_FP64
        if memcmp(p, b"INT8", 4) == 0:
            return DT_INT8
        if memcmp(p, b"BOOL", 4) == 0:
            return DT_BOOL
        if memcmp(p, b"BF16", 4) == 0:
            return DT_BF16
    elif s.len == 5:
        if memcmp(p, b"BYTES", 5) == 0:
            return DT_STRING
        if memcmp(p, b"INT64", 5) == 0:
            return DT_INT64
        if memcmp(p, b"INT32", 5) == 0:
            return DT_INT32
        if memcmp(p, b"UINT8", 5) == 0:
            return DT_UINT8
        if memcmp(p, b"INT16", 5) == 0:
            return DT_INT16
    elif s.len == 6:
        if memcmp(p, b"UINT64", 6) == 0:
            return DT_UINT64
        if memcmp(p, b"UINT32", 6) == 0:
            return DT_UINT32
        if memcmp(p, b"UINT16", 6) == 0:
            return DT_UINT16
    return DT_INVALID


cdef inline char dtype_kind(int32_t dtype) noexcept nogil:
    if dtype == DT_FP32 or dtype == DT_FP64:
        return c'f'
    if dtype >= DT_INT8 and dtype <= DT_INT64:
        return c'i'
    return c'b' if dtype == DT_BOOL else c'u'
