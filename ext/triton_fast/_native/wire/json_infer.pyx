# distutils: language = c++
# The v2 infer request: JSON with optional binary sections, into a native Request; and the generate request. No document
# tree, no recursion, no Python object. Knows nothing of HTTP; checks nothing against the model.
# The real server parses first and looks at members afterwards, in a fixed order. So an error of meaning is kept while
# the rest of the text is checked: a syntax error anywhere, or a meaning error of an earlier rank, takes its place.
from libc.stdint cimport INT64_MAX, UINT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memmove, memset, strlen

from triton_fast._native.core.memory cimport Block, block_new, block_unref
from triton_fast._native.core.native cimport (
    DT_BF16, DT_BOOL, DT_FP16, DT_FP32, DT_FP64, DT_INT8, DT_INT16, DT_INT32, DT_INT64, DT_INVALID, DT_STRING,
    DT_UINT8, DT_UINT16, DT_UINT32, DT_UINT64, MEM_CPU, TF_INTERNAL, TF_INVALID_ARG, TF_NOT_FOUND, TF_UNAVAILABLE,
    TF_UNSUPPORTED, dtype_name, dtype_size, tf_error, tf_fail,
)
from triton_fast._native.core.request cimport (
    FLAG_SEQUENCE_END, FLAG_SEQUENCE_START, MAX_RANK, MAX_TENSORS, PARAM_BOOL, PARAM_DOUBLE, PARAM_INT, PARAM_STRING,
    IoSpec, Model, ModelHandle, Param, Request, Tensor, Wanted, request_alloc, request_free, request_new,
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
include "json_generate.pxi"


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
    if check_region(d, x):
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
        memset(&x, 0, sizeof(x))
        has_name = ABSENT
        if read_output(d, &name, &has_name, &x) or finish_output(d, &name, has_name, &x):
            return -1


# ---- parameters and id of the request ----

cdef int add_param(Decoder* d, const tf_json_str* key, Param*** tail) noexcept nogil:
    cdef tf_json_str text
    cdef tf_json_num n
    cdef char ch = d.c.p[0]
    cdef Param* p
    if ch == c'{' or ch == c'[' or ch == c'n':
        return tf_fail(d.e, TF_INVALID_ARG,
                       b"parameter '%.*s' has invalid type. It should be either 'int', 'bool', or 'string'.",
                       cut(key.len), key.ptr)
    p = <Param*>request_alloc(d.r, sizeof(Param))
    if p == NULL:
        return out_of_memory(d)
    memset(p, 0, sizeof(Param))
    p.key = key.ptr
    p.key_len = key.len
    if ch == c'"':
        if tf_json_string(&d.c, &text) or settle(d, &text):
            return -1
        p.kind = PARAM_STRING
        p.text = text.ptr
        p.text_len = text.len
    elif ch == c't' or ch == c'f':
        if tf_json_skip(&d.c, MAX_DEPTH):
            return -1
        p.kind = PARAM_BOOL
        p.integer = ch == c't'
    else:
        if tf_json_number(&d.c, &n):
            return -1
        if n.kind == 0:
            p.kind = PARAM_INT
            p.integer = <int64_t>n.u
        else:
            p.kind = PARAM_DOUBLE               # integers past int64 too, as in the real server
            p.number = n.d
    tail[0][0] = p
    tail[0] = &p.next
    return 0


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


cdef inline bint blank(char ch) noexcept nogil:
    return ch == c' ' or ch == c'\n' or ch == c'\r' or ch == c'\t' or ch == 0


cdef int json_decode_infer(Request* r, const char* json, size_t json_len, const uint8_t* bin, size_t bin_len,
                           bint has_header_len, size_t max_input, tf_error* e) noexcept nogil:
    cdef Decoder d
    if begin_decoder(&d, r, json_len, max_input, e):
        return -1
    d.bin = bin
    d.bin_len = bin_len
    d.has_header_len = has_header_len
    return run_decoder(&d, json, json_len, read_document)


cdef int begin_decoder(Decoder* d, Request* r, size_t json_len, size_t max_input, tf_error* e) noexcept nogil:
    if json_len > max_input:
        return tf_fail(e, TF_INVALID_ARG,
                       b"request JSON size of %llu bytes exceeds the maximum allowed input size of %llu "
                       b"bytes. Use --http-max-input-size to increase the limit.", <unsigned long long>json_len,
                       <unsigned long long>max_input)
    e.code = TF_INTERNAL
    e.len = 0
    memset(d, 0, sizeof(Decoder))
    d.r = r
    d.e = e
    d.rank = RANK_NONE
    d.max_input = max_input if max_input < <size_t>INT64_MAX else <size_t>INT64_MAX
    d.odd_input = -1
    return 0


# Let `read` go over the text, and say what it found wrong with its syntax.
cdef int run_decoder(Decoder* d, const char* json, size_t json_len,
                     int (*read)(Decoder*) noexcept nogil) noexcept nogil:
    cdef const char* end = json + json_len
    cdef char* copy = NULL
    cdef int rc
    # White space and NULs (a C client's terminator) may follow the document.
    while end > json and blank((end - 1)[0]):
        end -= 1
    if end > json and (end - 1)[0] == c'}':
        d.c.base = json
        d.c.end = end
        d.c.lim = json + json_len
    else:
        # No request ends like this; parse a copy with the NUL that the scanner needs, for the sake of the error's text.
        copy = <char*>malloc(json_len + 1)
        if copy == NULL:
            return out_of_memory(d)
        memcpy(copy, json, json_len)
        copy[json_len] = 0
        d.c.base = copy
        d.c.end = copy + json_len
        d.c.lim = d.c.end
    d.c.p = d.c.base
    rc = read(d)
    if rc == 0 and copy != NULL:
        # Only a text of NULs and white space gets here, and it has no document.
        rc = tf_json_fail(&d.c, TFJ_EMPTY, d.c.p)
    if rc and d.c.reason == TFJ_DEEP:
        if not d.deep_said:
            tf_fail(d.e, TF_INVALID_ARG, b"JSON nesting depth exceeds maximum allowed limit (%d)",
                    <int>(TFJ_MAX_NESTING if d.flat else MAX_DEPTH))
    elif rc and d.c.reason:
        tf_fail(d.e, TF_INTERNAL, b"failed to parse the request JSON buffer: %s at %llu", tf_json_reason(d.c.reason),
                <unsigned long long>d.c.at)
    if rc:
        drop(d.r, copy != NULL)
    free(copy)
    return rc


# Leave nothing half decoded behind, and nothing that points into a copy of the text.
cdef void drop(Request* r, bint copied) noexcept nogil:
    cdef int32_t i
    for i in range(r.n_inputs):
        block_unref(r.inputs[i].block)
    r.n_inputs = 0
    r.n_wanted = 0
    r.params = NULL
    r.correlation_text = NULL
    r.correlation_len = 0
    if copied:
        r.id = NULL
        r.id_len = 0


def _prepare():
    # 5^q to 128 bits, truncated; for negative q its reciprocal, rounded up (the product's error bound needs that).
    import os

    five = 5                # Python's integers, not C's
    for q in range(<object>TFJ_POW_MIN, <object>TFJ_POW_MAX + 1):
        if q >= 0:
            value = five**q
            size = value.bit_length()
            value = value << (128 - size) if size <= 128 else value >> (size - 128)
        else:
            power = five**-q
            size = (power - 1).bit_length()
            value = (1 << (size + 127 if q >= -27 else 2 * size + 128)) // power + 1
            value >>= max(0, value.bit_length() - 128)
        tf_json_set_power(q, value >> 64, value & 0xFFFFFFFFFFFFFFFF)
    tf_json_seed[0] = int.from_bytes(os.urandom(8), "little")
    tf_json_seed[1] = int.from_bytes(os.urandom(8), "little") | 1


_prepare()


# ---- for tests and benchmarks ----

cdef object text_of(const char* p, uint32_t n):
    return p[:n].decode("utf-8", "surrogateescape") if n else ""


cdef object param_value(const Param* p):
    if p.kind == PARAM_STRING:
        return text_of(p.text, p.text_len)
    if p.kind == PARAM_BOOL:
        return bool(p.integer)
    return p.integer if p.kind == PARAM_INT else p.number


cdef dict request_dict(Request* r, const uint8_t* bin, size_t bin_len):
    cdef int32_t i, j
    cdef Tensor* t
    cdef Wanted* w
    cdef Param* p = r.params
    cdef bint borrowed
    inputs = []
    for i in range(r.n_inputs):
        t = &r.inputs[i]
        borrowed = t.nbytes > 0 and t.ptr >= bin and t.ptr < bin + bin_len
        inputs.append({
            "name": text_of(t.name, t.name_len),
            "datatype": dtype_name(t.dtype).decode(),
            "shape": [t.dims[j] for j in range(t.ndim)],
            "data": t.ptr[:t.nbytes] if t.nbytes else b"",
            "borrowed": borrowed,
        })
    outputs = []
    for i in range(r.n_wanted):
        w = &r.wanted[i]
        outputs.append({"name": text_of(w.name, w.name_len), "binary": w.binary, "classes": w.classes})
    params = []
    while p != NULL:
        params.append((text_of(p.key, p.key_len), param_value(p)))
        p = p.next
    return {
        "id": text_of(r.id, r.id_len),
        "inputs": inputs,
        "outputs": outputs,
        "parameters": params,
        "sequence_id": text_of(r.correlation_text, r.correlation_len) if r.correlation_text != NULL else r.correlation,
        "flags": r.flags,
        "priority": r.priority,
        "timeout": r.timeout_us,
        "binary_data_output": bool(r.binary_default),
    }


def decode(bytes json not None, bytes binary not None=b"", bint has_header_len=True, size_t max_input=64 << 20,
           ModelHandle model=None):
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
            rc = json_decode_infer(r, text, n, bin, m, has_header_len, max_input, &e)
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
            if json_decode_infer(r, text, text_len, <const uint8_t*>bin, bin_len, True, <size_t>1 << 40, &e) == 0:
                good += 1
            request_free(r)
    return good
