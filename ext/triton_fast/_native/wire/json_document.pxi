# Part of json_infer.pyx and json_generate.pyx: how a text is gone over and what is said of its syntax; request
# parameters; tables; and what tests see of a decoded request.

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


cdef inline bint blank(char ch) noexcept nogil:
    return ch == c' ' or ch == c'\n' or ch == c'\r' or ch == c'\t' or ch == 0


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


cdef inline int begin_decoder(Decoder* d, Request* r, size_t json_len, size_t max_input, tf_error* e) noexcept nogil:
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


# Let `read` go over the text, and say what it found wrong with its syntax. Inline, so that the compiler knows `read`.
cdef inline int run_decoder(Decoder* d, const char* json, size_t json_len,
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
