# distutils: language = c++
# The v2 infer request: JSON with optional binary sections, into a native Request. One pass over the text, no document
# tree, no recursion, no Python object. Knows nothing of HTTP; checks nothing against the model.
# The real server parses first and looks at members afterwards, in a fixed order. So an error of meaning is kept while
# the rest of the text is checked: a syntax error anywhere, or a meaning error of an earlier rank, takes its place.
from libc.stdint cimport INT64_MAX, UINT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from triton_fast._native.core.marks cimport FLAG_SEQUENCE_END, FLAG_SEQUENCE_START
from triton_fast._native.core.memory cimport Block, block_new, block_ref, block_unref
from triton_fast._native.core.native cimport (
    DT_BF16, DT_BOOL, DT_FP16, DT_FP32, DT_FP64, DT_INT8, DT_INT16, DT_INT32, DT_INT64, DT_INVALID, DT_STRING,
    DT_UINT8, DT_UINT16, DT_UINT32, DT_UINT64, TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE, TF_UNSUPPORTED,
    dtype_name, dtype_size, tf_error, tf_fail,
)
from triton_fast._native.core.model cimport MAX_RANK, ModelHandle
from triton_fast._native.core.regions cimport FOR_INPUT, Registry, SharedRegions, lent_kind, region_lend
from triton_fast._native.core.request cimport Request, request_alloc, request_free, request_new
from triton_fast._native.core.tensor cimport (
    Lent, MAX_TENSORS, PARAM_BOOL, PARAM_DOUBLE, PARAM_INT, PARAM_STRING, Param, Tensor, Wanted,
)
from triton_fast._native.wire.json_scan cimport (
    TFJ_A_DEEP, TFJ_A_MORE, TFJ_A_ROOM, TFJ_DEEP, TFJ_EMPTY, TFJ_MAX_NESTING, TFJ_POW_MAX, TFJ_POW_MIN, TFJ_ROOT,
    tf_json, tf_json_bytes, tf_json_element, tf_json_fail, tf_json_member, tf_json_names, tf_json_names_add,
    tf_json_names_free, tf_json_num, tf_json_number, tf_json_numbers, tf_json_plain, tf_json_reason, tf_json_seed,
    tf_json_set_power, tf_json_skip, tf_json_str, tf_json_string, tf_json_strings, tf_json_unescape, tf_json_ws,
)

include "json_parts.pxi"
include "json_inputs.pxi"
include "json_document.pxi"


# ---- outputs ----

cdef int read_output(Decoder* d, tf_json_str* name, int* has_name, Extras* x) noexcept nogil:
    cdef tf_json_str key
    cdef int first = 1, rc
    cdef bint has_params = False
    if d.c.p[0] != c'{':
        return tf_json_skip(&d.c, MAX_DEPTH)
    while True:
        rc = tf_json_member(&d.c, &first, &key)
        if rc <= 0:
            return rc
        if settle(d, &key):
            return -1
        if is_key(&key, b"name", 4) and not has_name[0]:
            rc = read_text(d, name, has_name)
        elif is_key(&key, b"parameters", 10) and not has_params:
            has_params = True
            rc = read_extras(d, x)
        else:
            rc = tf_json_skip(&d.c, MAX_DEPTH)
        if rc:
            return -1


cdef int finish_output(Decoder* d, tf_json_str* name, int has_name, Extras* x) noexcept nogil:
    cdef Wanted* w
    cdef Lent* lent = NULL
    cdef void* more
    cdef int rc
    if x.region:
        if x.classes:
            return tf_fail(d.e, TF_INVALID_ARG, b"Output can't set both 'shared_memory_region' and 'classification'")
        if x.binary == WRONG:
            return tf_fail(d.e, TF_INTERNAL,
                           b"Unable to set 'binary_data': attempt to access JSON non-boolean as boolean")
        if x.binary and x.binary_value:
            return tf_fail(d.e, TF_INVALID_ARG, b"Output can't set both 'shared_memory_region' and 'binary_data'")
    if has_name != GOOD:
        return missing(d, b"name", NON_STRING, has_name)
    rc = tf_json_names_add(&d.names, name.ptr, name.len)
    if rc < 0:
        return out_of_memory(d)
    if rc == 0:
        return tf_fail(d.e, TF_INVALID_ARG, b"output '%.*s' already exists in request", cut(name.len), name.ptr)
    if x.classes == WRONG:
        return tf_fail(d.e, TF_INTERNAL, b"Unable to set 'classification': attempt to access JSON non-unsigned-integer "
                       b"as unsigned-integer")
    if (x.region or x.offset or x.byte_size) and take_region(d, x, d.r.n_wanted, &lent):
        return -1
    if x.binary == WRONG:
        return tf_fail(d.e, TF_INTERNAL, NON_BOOL, <char*>b"binary_data")
    if d.r.n_wanted == d.cap:
        more = grow(d, d.r.wanted, d.r.n_wanted, sizeof(Wanted))
        if more == NULL:
            return out_of_memory(d)
        d.r.wanted = <Wanted*>more
    w = &d.r.wanted[d.r.n_wanted]
    w.name = name.ptr
    w.name_len = name.len
    w.index = -1
    # The real server gives JSON for an output named without binary_data, whatever binary_data_output says.
    w.binary = 1 if x.binary and x.binary_value else 0
    w.classes = 0
    if x.classes:
        w.classes = <uint32_t>x.classes_value if x.classes_value < UINT32_MAX else UINT32_MAX
    d.r.n_wanted += 1
    return 0


cdef int read_outputs(Decoder* d) noexcept nogil:
    cdef tf_json_str name
    cdef Extras x
    cdef int first = 1, rc, has_name
    d.cap = 0
    if d.c.p[0] != c'[':
        return tf_fail(d.e, TF_INTERNAL, NON_ARRAY, <char*>b"outputs")
    while True:
        rc = tf_json_element(&d.c, &first)
        if rc <= 0:
            return rc
        if d.r.n_wanted == MAX_TENSORS:
            return tf_fail(d.e, TF_INVALID_ARG, b"the request has more than %d outputs", <int>MAX_TENSORS)
        memset(&x, 0, <size_t>(<char*>&x.binary_size_value - <char*>&x))
        has_name = ABSENT
        if read_output(d, &name, &has_name, &x) or finish_output(d, &name, has_name, &x):
            return -1


# ---- parameters and id of the request ----

cdef int read_params(Decoder* d) noexcept nogil:
    cdef Request* r = d.r
    cdef tf_json_str key, text
    cdef int first = 1, rc, found
    cdef bint flag
    cdef uint64_t v = 0
    cdef uint32_t n = 0
    cdef Param** tail = &r.params
    if d.c.p[0] != c'{':
        return tf_fail(d.e, TF_INTERNAL, b"failed to get request params.: attempt to get members for non-object")
    while True:
        rc = tf_json_member(&d.c, &first, &key)
        if rc <= 0:
            return rc
        if settle(d, &key):
            return -1
        n += 1
        if n > MAX_PARAMS:
            return tf_fail(d.e, TF_INVALID_ARG, b"the request has more than %d parameters", <int>MAX_PARAMS)
        rc = tf_json_names_add(&d.names, key.ptr, key.len)
        if rc < 0:
            return out_of_memory(d)
        if rc == 0:
            rc = tf_json_skip(&d.c, MAX_DEPTH)
        elif is_key(&key, b"binary_data_output", 18):
            rc = read_bool(d, &flag, &found)
            if rc == 0 and found == WRONG:
                return tf_fail(d.e, TF_INTERNAL, NON_BOOL, <char*>b"binary_data_output")
            r.binary_default = flag
        elif is_key(&key, b"sequence_id", 11):
            if d.c.p[0] == c'"':
                rc = read_text(d, &text, &found)
                if rc:
                    return -1
                if text.len > MAX_SEQUENCE_TEXT:
                    return tf_fail(d.e, TF_UNSUPPORTED, b"string correlation ID cannot be longer than 128 characters")
                r.correlation_text = text.ptr
                r.correlation_len = text.len
            else:
                rc = read_uint(d, &r.correlation, &found)
                if rc == 0 and found == WRONG:
                    return tf_fail(d.e, TF_INTERNAL, NON_STRING, <char*>b"sequence_id")
        elif is_key(&key, b"sequence_start", 14):
            rc = read_bool(d, &flag, &found)
            if rc == 0 and found == WRONG:
                return tf_fail(d.e, TF_INTERNAL, NON_BOOL, <char*>b"sequence_start")
            r.flags |= FLAG_SEQUENCE_START if flag else 0
        elif is_key(&key, b"sequence_end", 12):
            rc = read_bool(d, &flag, &found)
            if rc == 0 and found == WRONG:
                return tf_fail(d.e, TF_INTERNAL, NON_BOOL, <char*>b"sequence_end")
            r.flags |= FLAG_SEQUENCE_END if flag else 0
        elif is_key(&key, b"priority", 8):
            rc = read_uint(d, &v, &found)
            if rc == 0 and found == WRONG:
                return tf_fail(d.e, TF_INTERNAL, NON_UINT, <char*>b"priority")
            r.priority = v
        elif is_key(&key, b"timeout", 7):
            rc = read_uint(d, &v, &found)
            if rc == 0 and found == WRONG:
                return tf_fail(d.e, TF_INTERNAL, NON_UINT, <char*>b"timeout")
            r.timeout_us = v
        elif key.len >= 7 and memcmp(key.ptr, b"triton_", 7) == 0:
            return tf_fail(d.e, TF_INVALID_ARG, b"parameter keys starting with 'triton_' are reserved for Triton usage "
                           b"and should not be specified.")
        else:
            rc = add_param(d, &key, &tail)
        if rc:
            return -1


cdef int read_id(Decoder* d) noexcept nogil:
    cdef tf_json_str text
    cdef int found
    if read_text(d, &text, &found):
        return -1
    if found == WRONG:
        return tf_fail(d.e, TF_INTERNAL, NON_STRING, <char*>b"id")
    d.r.id = text.ptr
    d.r.id_len = text.len
    return 0


# ---- the document ----

cdef inline int read_section(Decoder* d, int rank) noexcept nogil:
    if rank == RANK_ID:
        return read_id(d)
    # Each section starts with no names seen.
    d.names.count = 0
    if rank == RANK_INPUTS:
        rank = read_inputs(d)
    elif rank == RANK_OUTPUTS:
        rank = read_outputs(d)
    else:
        rank = read_params(d)
    tf_json_names_free(&d.names)
    return rank


cdef int read_root(Decoder* d) noexcept nogil:
    cdef tf_json_str key
    cdef int first = 1, rc, rank
    cdef uint32_t seen = 0
    cdef const char* start
    while True:
        rc = tf_json_member(&d.c, &first, &key)
        if rc == 0:
            break
        if rc < 0 or settle(d, &key):
            return -1
        rank = RANK_NONE
        if is_key(&key, b"inputs", 6):
            rank = RANK_INPUTS
        elif is_key(&key, b"outputs", 7):
            rank = RANK_OUTPUTS
        elif is_key(&key, b"id", 2):
            rank = RANK_ID
        elif is_key(&key, b"parameters", 10):
            rank = RANK_PARAMS
        if rank == RANK_NONE or seen >> rank & 1 or rank > d.rank:
            # Unknown, a repeated name (the first counts), or an error that the real server meets earlier is known.
            if rank != RANK_NONE:
                seen |= 1 << rank
            if tf_json_skip(&d.c, TFJ_MAX_NESTING + 4 if rank == RANK_INPUTS else MAX_DEPTH):
                return -1
            continue
        seen |= 1 << rank
        start = d.c.p
        if read_section(d, rank):
            if d.c.reason:
                return -1
            d.rank = rank
            d.c.p = start
            if tf_json_skip(&d.c, TFJ_MAX_NESTING + 4 if rank == RANK_INPUTS else MAX_DEPTH):
                return -1
    if not seen >> RANK_INPUTS & 1 and d.rank > RANK_INPUTS:
        d.rank = RANK_INPUTS
        missing(d, b"inputs", NON_ARRAY, ABSENT)
    return 0


cdef int read_document(Decoder* d) noexcept nogil:
    cdef char ch
    if d.c.end - d.c.p >= 3 and memcmp(d.c.p, b"\xef\xbb\xbf", 3) == 0:
        d.c.p += 3
    d.c.p = tf_json_ws(d.c.p)
    ch = d.c.p[0]
    if ch == c'{':
        if read_root(d):
            return -1
    elif ch == 0 or ch == c'}' or ch == c']' or ch == c',' or ch == c':':
        return tf_json_fail(&d.c, TFJ_EMPTY, d.c.p)
    else:
        if tf_json_skip(&d.c, MAX_DEPTH):
            return -1
        d.rank = RANK_INPUTS
        missing(d, b"inputs", NON_ARRAY, ABSENT)
    if d.c.p != d.c.end:
        d.c.p = tf_json_ws(d.c.p)
        if d.c.p != d.c.end:
            return tf_json_fail(&d.c, TFJ_ROOT, d.c.p)
    if d.rank == RANK_NONE and d.odd_input >= 0:
        return odd_strings(d)
    return 0 if d.rank == RANK_NONE else -1


# The count of BYTES elements is not the shape's: the words of the real server's validation.
cdef int odd_strings(Decoder* d) noexcept nogil:
    cdef Tensor* t = &d.r.inputs[d.odd_input]
    cdef const char* request_id = b"<id_unknown>"
    cdef int id_len = 12
    if d.r.id_len:
        request_id = d.r.id
        id_len = cut(d.r.id_len)
    if d.odd_got < d.odd_expected:
        return tf_fail(d.e, TF_INVALID_ARG,
                       b"[request id: %.*s] expected %lld string elements for inference input '%.*s' "
                       b"for model '%.*s', got %lld", id_len, request_id, <long long>d.odd_expected, cut(t.name_len),
                       t.name, model_len(d), model_name(d), <long long>d.odd_got)
    return tf_fail(d.e, TF_INVALID_ARG,
                   b"[request id: %.*s] unexpected number of string elements %lld for inference input "
                   b"'%.*s' for model '%.*s', expecting %lld", id_len, request_id, <long long>d.odd_expected + 1,
                   cut(t.name_len), t.name, model_len(d), model_name(d), <long long>d.odd_expected)


cdef int json_decode_infer(Request* r, const char* json, size_t json_len, const uint8_t* bin, size_t bin_len,
                           bint has_header_len, size_t max_input, Registry* regions, tf_error* e) noexcept nogil:
    cdef Decoder d
    if begin_decoder(&d, r, json_len, max_input, e):
        return -1
    d.bin = bin
    d.bin_len = bin_len
    d.has_header_len = has_header_len
    d.regions = regions
    return run_decoder(&d, json, json_len, read_document)


# ---- for tests and benchmarks ----

def decode(bytes json not None, bytes binary not None=b"", bint has_header_len=True, size_t max_input=64 << 20,
           ModelHandle model=None, SharedRegions regions=None):
    """Decode one infer body and return everything that the native request then holds."""
    from triton_fast import errors

    cdef size_t n = len(json), m = len(binary)
    # Copies of the exact size, so that a sanitizer sees a read past either part.
    cdef char* text = <char*>malloc(n if n else 1)
    cdef uint8_t* bin = <uint8_t*>malloc(m if m else 1)
    cdef Request* r = request_new(model.ptr if model is not None else NULL)
    cdef tf_error e
    cdef int rc
    try:
        if text == NULL or bin == NULL or r == NULL:
            raise MemoryError
        memcpy(text, <const char*>json, n)
        memcpy(bin, <const char*>binary, m)
        with nogil:
            rc = json_decode_infer(r, text, n, bin, m, has_header_len, max_input,
                                   regions.ptr if regions is not None else NULL, &e)
        if rc:
            raise errors.make(e.code, e.text[:e.len].decode("utf-8", "replace"))
        return request_dict(r, bin, m)
    finally:
        if r != NULL:
            request_free(r)
        free(text)
        free(bin)


def bench(bytes json not None, bytes binary not None=b"", int n=1):
    """Decode the same body n times without the interpreter; return how many succeeded."""
    cdef const char* text = json
    cdef const char* bin = binary
    cdef size_t text_len = len(json), bin_len = len(binary)
    cdef tf_error e
    cdef Request* r
    cdef int good = 0
    cdef int _i
    with nogil:
        for _i in range(n):
            r = request_new(NULL)
            if r == NULL:
                break
            if json_decode_infer(r, text, text_len, <const uint8_t*>bin, bin_len, True, <size_t>1 << 40, NULL,
                                 &e) == 0:
                good += 1
            request_free(r)
    return good
