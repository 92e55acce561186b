# distutils: language = c++
# A generate request, which is one flat object, into a native Request. Members named like an input of the model are its
# data, a scalar or a list; the others are request parameters; those of "parameters" count like the rest.
# Syntax is checked over the whole text first, then members are taken in their order: the first error is the answer.
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memmove, memset, strlen

from triton_fast._native.core.memory cimport Block, block_new, block_ref, block_unref
from triton_fast._native.core.native cimport (
    DT_BF16, DT_BOOL, DT_FP16, DT_FP32, DT_FP64, DT_INT8, DT_INT16, DT_INT32, DT_INT64, DT_INVALID, DT_STRING,
    DT_UINT8, DT_UINT16, DT_UINT32, DT_UINT64, TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE,
    dtype_name, dtype_size, tf_error, tf_fail,
)
from triton_fast._native.core.model cimport MAX_RANK, IoSpec, Model, ModelHandle
from triton_fast._native.core.regions cimport FOR_INPUT, Registry, lent_kind, region_lend
from triton_fast._native.core.request cimport Request, request_alloc, request_free, request_new
from triton_fast._native.core.tensor cimport (
    MAX_TENSORS, PARAM_BOOL, PARAM_DOUBLE, PARAM_INT, PARAM_STRING, Lent, Param, Tensor, Wanted,
)
from triton_fast._native.wire.json_scan cimport (
    TFJ_A_DEEP, TFJ_A_MORE, TFJ_A_ROOM, TFJ_A_TYPE, TFJ_DEEP, TFJ_EMPTY, TFJ_MAX_NESTING, TFJ_POW_MAX, TFJ_POW_MIN,
    TFJ_ROOT,
    tf_json, tf_json_bytes, tf_json_element, tf_json_fail, tf_json_member, tf_json_names, tf_json_names_add,
    tf_json_names_free, tf_json_num, tf_json_number, tf_json_numbers, tf_json_plain, tf_json_reason, tf_json_seed,
    tf_json_set_power, tf_json_skip, tf_json_str, tf_json_string, tf_json_strings, tf_json_unescape, tf_json_ws,
)

cdef extern from "tf_error.h" nogil:
    enum: TF_ERROR_TEXT

include "json_parts.pxi"
include "json_inputs.pxi"
include "json_document.pxi"

cdef enum:
    FLAT_DEPTH = 101        # below the root: "parameters", and as many arrays as data may nest

cdef const char* CONVERTING = b"Converting keyword: 'parameters': "


cdef int bad_flat_shape(Decoder* d, Input* t) noexcept nogil:
    return tf_fail(d.e, TF_INVALID_ARG, b"The schema can not convert input '%.*s' to tensor with proper shape",
                   cut(t.name.len), t.name.ptr)


# Spread n elements over the dims that the model's metadata shows: the fixed ones must divide n, the innermost variable
# one takes the rest, other variable ones are 1. The batch dimension is a variable one.
cdef int spread(Decoder* d, Input* t, const IoSpec* s, int64_t n) noexcept nogil:
    cdef int32_t i, batched = 1 if d.r.model.max_batch > 0 else 0
    cdef int64_t left = n
    if s.ndim > MAX_RANK - batched:
        return bad_flat_shape(d, t)
    t.ndim = s.ndim + batched
    t.dims[0] = -1
    for i in range(s.ndim):
        t.dims[i + batched] = s.dims[i]
    for i in range(t.ndim):
        if t.dims[i] < 0:
            continue
        if t.dims[i] == 0 or left % t.dims[i]:
            return bad_flat_shape(d, t)
        left //= t.dims[i]
    for i in range(t.ndim - 1, -1, -1):
        if t.dims[i] < 0:
            t.dims[i] = left
            left = 1
    return 0 if left == 1 else bad_flat_shape(d, t)


# The elements of the array at d.c.p, which stays there; nested ones are one element each.
cdef int count_flat(Decoder* d, int64_t* n) noexcept nogil:
    cdef const char* start = d.c.p
    cdef int first = 1, rc
    n[0] = 0
    while True:
        rc = tf_json_element(&d.c, &first)
        if rc <= 0:
            break
        if tf_json_skip(&d.c, FLAT_DEPTH):
            return -1
        n[0] += 1
    d.c.p = start
    return rc


# A value that is no array, into the one element of t.
cdef int read_scalar(Decoder* d, Input* t, int32_t size) noexcept nogil:
    cdef tf_json_num n
    cdef char ch = d.c.p[0], kind = dtype_kind(t.dtype)
    cdef float single
    if kind == c'b':
        if ch != c't' and ch != c'f':
            return bad_data(d, t.dtype, TFJ_A_TYPE)
        t.ptr[0] = ch == c't'
        return tf_json_skip(&d.c, FLAT_DEPTH)
    if not starts_number(ch) and ch != c'N' and ch != c'I':
        return bad_data(d, t.dtype, TFJ_A_TYPE)
    if tf_json_number(&d.c, &n):
        return -1
    if kind == c'f':
        if size == 8:
            memcpy(t.ptr, &n.d, 8)
        else:
            single = <float>n.d
            memcpy(t.ptr, &single, 4)
        return 0
    if n.kind == 2 or (n.kind == 1 if kind == c'i' else n.kind == 0 and <int64_t>n.u < 0):
        return bad_data(d, t.dtype, TFJ_A_TYPE)
    memcpy(t.ptr, &n.u, <size_t>size)       # narrowing is silent, as for lists
    return 0


cdef int read_text_scalar(Decoder* d, Input* t) noexcept nogil:
    cdef tf_json_str s
    cdef uint32_t n
    cdef size_t total
    if d.c.p[0] != c'"':
        return bad_data(d, DT_STRING, TFJ_A_TYPE)
    if tf_json_string(&d.c, &s):
        return -1
    total = <size_t>s.len + 4
    if total > d.max_input - d.decoded:
        return too_large(d, t, <uint64_t>total + <uint64_t>d.decoded)
    if room(d, t, total):
        return -1
    n = s.len
    if s.escaped:
        n = <uint32_t>tf_json_unescape(&s, <char*>t.ptr + 4)
    else:
        memcpy(t.ptr + 4, s.ptr, n)
    memcpy(t.ptr, &n, 4)
    t.nbytes = <size_t>n + 4
    d.decoded += t.nbytes
    return 0


cdef int read_flat_numbers(Decoder* d, Input* t, int64_t n, bint is_list) noexcept nogil:
    cdef int32_t size = dtype_size(t.dtype)
    cdef size_t total, count = 0
    cdef int why = 0
    if t.dtype == DT_FP16 or t.dtype == DT_BF16:
        return tf_fail(d.e, TF_INVALID_ARG, b"receiving %s data via JSON is not supported. Please use the binary data "
                       b"format for input %.*s", dtype_name(t.dtype), cut(t.name.len), t.name.ptr)
    if size == 0:
        return tf_fail(d.e, TF_INVALID_ARG, b"input '%.*s' has unsupported datatype %s", cut(t.name.len), t.name.ptr,
                       dtype_name(t.dtype))
    total = <size_t>n * <size_t>size        # an element took a character at least
    if total > d.max_input - d.decoded:
        return too_large(d, t, <uint64_t>total + <uint64_t>d.decoded)
    if n == 0:
        return tf_json_skip(&d.c, FLAT_DEPTH)
    if room(d, t, total):
        return -1
    if not is_list:
        if read_scalar(d, t, size):
            return -1
    elif tf_json_numbers(&d.c, dtype_kind(t.dtype), size, t.ptr, <size_t>n, &count, &why):
        return -1 if d.c.reason else bad_data(d, t.dtype, why)
    elif count != <size_t>n:
        return bad_data(d, t.dtype, TFJ_A_MORE)
    t.nbytes = total
    d.decoded += total
    return 0


# The value at d.c.p as data of input k of the model.
cdef int read_flat_input(Decoder* d, Input* t, int32_t k) noexcept nogil:
    cdef const IoSpec* s = &d.r.model.inputs[k]
    cdef bint is_list = d.c.p[0] == c'['
    cdef int64_t n = 1
    t.name.ptr = s.name
    t.name.len = s.name_len
    t.dtype = s.dtype
    if is_list and count_flat(d, &n):
        return -1
    if s.dtype != DT_STRING:
        return -1 if spread(d, t, s, n) else read_flat_numbers(d, t, n, is_list)
    # Whether strings number what the shape says is left to the validation, as in the real server.
    if (read_strings(d, t, n) if is_list else read_text_scalar(d, t)):
        return -1
    return spread(d, t, s, n)


cdef int32_t flat_input(Model* m, const tf_json_str* key) noexcept nogil:
    cdef int32_t k
    for k in range(m.n_inputs):
        if key.len == m.inputs[k].name_len and memcmp(key.ptr, m.inputs[k].name, key.len) == 0:
            return k
    return -1


# A member that is no keyword. seen: one byte for each of the model's inputs.
cdef int read_flat_member(Decoder* d, const tf_json_str* key, char* seen, Param*** tail) noexcept nogil:
    cdef Input t
    cdef int32_t k = flat_input(d.r.model, key)
    cdef int rc
    if k < 0:
        rc = tf_json_names_add(&d.names, key.ptr, key.len)
        if rc < 0:
            return out_of_memory(d)
        if rc == 0:
            return tf_json_skip(&d.c, FLAT_DEPTH)       # of members with the same name the first counts
        if d.n_flat == MAX_PARAMS:
            return tf_fail(d.e, TF_INVALID_ARG, b"the request has more than %d parameters", <int>MAX_PARAMS)
        d.n_flat += 1
        return add_param(d, key, tail)
    if seen[k]:
        return tf_fail(d.e, TF_INVALID_ARG, b"input '%.*s' already exists in request", cut(key.len), key.ptr)
    seen[k] = 1
    input_clear(&t)
    rc = read_flat_input(d, &t, k)
    if rc == 0:
        rc = add_input(d, &t)
    block_unref(t.block)
    return rc


# Put CONVERTING before the error's text.
cdef int converting(tf_error* e) noexcept nogil:
    cdef size_t n = strlen(CONVERTING), kept = e.len
    if kept > <size_t>TF_ERROR_TEXT - 1 - n:
        kept = <size_t>TF_ERROR_TEXT - 1 - n
    memmove(e.text + n, e.text, kept)
    memcpy(e.text, CONVERTING, n)
    e.len = <uint32_t>(n + kept)
    e.text[e.len] = 0
    return -1


# The object "parameters" at d.c.p. Its names are its own: a parameter given here and beside it comes twice, and the
# later one counts.
cdef int read_nested(Decoder* d, char* seen, Param*** tail) noexcept nogil:
    cdef tf_json_names outer = d.names
    cdef tf_json_str key
    cdef int first = 1, rc
    if d.c.p[0] != c'{':
        return tf_fail(d.e, TF_INTERNAL,
                       b"Expected JSON object for keyword: 'parameters': attempt to access JSON non-object as object")
    memset(&d.names, 0, sizeof(tf_json_names))
    while True:
        rc = tf_json_member(&d.c, &first, &key)
        if rc <= 0:
            break
        rc = settle(d, &key)
        if rc == 0:
            rc = read_flat_member(d, &key, seen, tail)
        if rc:
            converting(d.e)
            break
    tf_json_names_free(&d.names)
    d.names = outer
    return rc


# Check the syntax of the whole text and find the id, which is looked at first.
cdef int scan_flat(Decoder* d, int* found) noexcept nogil:
    cdef tf_json_str key, text
    cdef int first = 1, rc
    cdef char ch
    found[0] = ABSENT
    if d.c.end - d.c.p >= 3 and memcmp(d.c.p, b"\xef\xbb\xbf", 3) == 0:
        d.c.p += 3
    d.c.p = tf_json_ws(d.c.p)
    ch = d.c.p[0]
    if ch == 0 or ch == c'}' or ch == c']' or ch == c',' or ch == c':':
        return tf_json_fail(&d.c, TFJ_EMPTY, d.c.p)
    if ch != c'{':
        if tf_json_skip(&d.c, FLAT_DEPTH):
            return -1
    else:
        while True:
            rc = tf_json_member(&d.c, &first, &key)
            if rc == 0:
                break
            if rc < 0 or settle(d, &key):
                return -1
            if found[0] or not is_key(&key, b"id", 2):
                if tf_json_skip(&d.c, FLAT_DEPTH):
                    return -1
            else:
                if read_text(d, &text, found):
                    return -1
                if found[0] == GOOD:
                    d.r.id = text.ptr
                    d.r.id_len = text.len
    if d.c.p != d.c.end:
        d.c.p = tf_json_ws(d.c.p)
        if d.c.p != d.c.end:
            return tf_json_fail(&d.c, TFJ_ROOT, d.c.p)
    if found[0] == WRONG:
        return tf_fail(d.e, TF_INTERNAL, NON_STRING, <char*>b"id")
    return 0 if ch == c'{' else tf_fail(d.e, TF_INTERNAL, b"attempt to get members for non-object")


cdef int read_flat(Decoder* d) noexcept nogil:
    cdef Request* r = d.r
    cdef tf_json_str key
    cdef Param** tail = &r.params
    cdef char* seen
    cdef const char* start = d.c.p
    cdef bint nested = False, inside = False
    cdef int32_t before = 0
    cdef int first = 1, rc, found
    if scan_flat(d, &found):
        return -1
    seen = <char*>request_alloc(r, <size_t>r.model.n_inputs)
    if seen == NULL:
        return out_of_memory(d)
    memset(seen, 0, <size_t>r.model.n_inputs)
    d.c.p = start
    while d.c.p[0] != c'{':
        d.c.p += 1
    while True:
        rc = tf_json_member(&d.c, &first, &key)
        if rc <= 0:
            break
        rc = settle(d, &key)
        if rc:
            break
        if not is_key(&key, b"parameters", 10):
            rc = read_flat_member(d, &key, seen, &tail)
        elif flat_input(r.model, &key) >= 0:
            rc = tf_fail(d.e, TF_INVALID_ARG,
                         b"Keyword 'parameters' for nested schema also given as input tensor name")
        elif not nested:
            nested = True
            before = r.n_inputs
            rc = read_nested(d, seen, &tail)
            inside = r.n_inputs > before
        elif not inside:
            rc = tf_json_skip(&d.c, FLAT_DEPTH)
        else:
            # The first of the name counts, so its inputs come again.
            tf_fail(d.e, TF_INVALID_ARG, b"input '%.*s' already exists in request", cut(r.inputs[before].name_len),
                    r.inputs[before].name)
            rc = converting(d.e)
        if rc:
            break
    tf_json_names_free(&d.names)
    d.c.p = d.c.end
    return rc


cdef int json_decode_generate(Request* r, const char* json, size_t json_len, size_t max_input,
                              tf_error* e) noexcept nogil:
    cdef Decoder d
    if begin_decoder(&d, r, json_len, max_input, e):
        return -1
    d.flat = True
    return run_decoder(&d, json, json_len, read_flat)


def decode(bytes json not None, ModelHandle model not None, size_t max_input=64 << 20):
    from triton_fast import errors

    cdef size_t n = len(json)
    cdef char* text = <char*>malloc(n if n else 1)      # of the exact size: see decode
    cdef Request* r = request_new(model.ptr)
    cdef tf_error e
    cdef int rc
    try:
        if text == NULL or r == NULL:
            raise MemoryError
        memcpy(text, <const char*>json, n)
        with nogil:
            rc = json_decode_generate(r, text, n, max_input, &e)
        if rc:
            raise errors.make(e.code, e.text[:e.len].decode("utf-8", "replace"))
        return request_dict(r, <const uint8_t*>b"", 0)
    finally:
        if r != NULL:
            request_free(r)
        free(text)
