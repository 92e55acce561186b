# Part of pb_infer.pyx: what tests, the fuzzer and instruction counts call. Knows nothing of the wire format.


cdef object text_of(const char* p, uint32_t n):
    return p[:n].decode() if n else ""


cdef object param_value(const Param* p):
    if p.kind == PARAM_STRING:
        return text_of(p.text, p.text_len)
    if p.kind == PARAM_BOOL:
        return bool(p.integer)
    return p.integer if p.kind == PARAM_INT else p.number


cdef dict request_dict(Request* r, const uint8_t* msg, size_t n):
    cdef int32_t i, j
    cdef Tensor* t
    cdef Wanted* w
    cdef Param* p = r.params
    inputs = []
    for i in range(r.n_inputs):
        t = &r.inputs[i]
        inputs.append({
            "name": text_of(t.name, t.name_len),
            "datatype": dtype_name(t.dtype).decode(),
            "shape": [t.dims[j] for j in range(t.ndim)],
            "data": t.ptr[:t.nbytes] if t.nbytes else b"",
            "borrowed": t.nbytes > 0 and msg <= t.ptr < msg + n,
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


def head(bytes message not None):
    """Return (model_name, model_version, id) of a serialized ModelInferRequest."""
    from triton_fast import errors

    cdef size_t n = len(message)
    cdef uint8_t* msg = <uint8_t*>malloc(n if n else 1)
    cdef PbHead h
    cdef tf_error e
    try:
        if msg == NULL:
            raise MemoryError
        memcpy(msg, <const char*>message, n)
        if pb_infer_head(msg, n, &h, &e):
            raise errors.make(e.code, e.text[:e.len].decode("utf-8", "replace"))
        return (text_of(h.model_name, h.model_name_len), text_of(h.version, h.version_len), text_of(h.id, h.id_len))
    finally:
        free(msg)


def decode(bytes message not None, size_t max_input=64 << 20, ModelHandle model=None, SharedRegions regions=None):
    """Decode one serialized ModelInferRequest and return everything that the native request then holds."""
    from triton_fast import errors

    cdef size_t n = len(message)
    # A copy of the exact size, so that a sanitizer sees a read past it.
    cdef uint8_t* msg = <uint8_t*>malloc(n if n else 1)
    cdef Request* r = request_new(model.ptr if model is not None else NULL)
    cdef PbHead h
    cdef tf_error e
    cdef int rc
    try:
        if msg == NULL or r == NULL:
            raise MemoryError
        memcpy(msg, <const char*>message, n)
        with nogil:
            rc = pb_infer_head(msg, n, &h, &e)
            if rc == 0:
                rc = pb_decode_infer(r, msg, n, max_input, regions.ptr if regions is not None else NULL, &e)
        if rc:
            raise errors.make(e.code, e.text[:e.len].decode("utf-8", "replace"))
        return request_dict(r, msg, n)
    finally:
        if r != NULL:
            request_free(r)
        free(msg)


def bench(bytes message not None, int n=1):
    """Walk and decode the same message n times without the interpreter; return how many times it succeeded."""
    cdef const char* msg = message
    cdef size_t size = len(message)
    cdef PbHead h
    cdef tf_error e
    cdef Request* r
    cdef int good = 0
    cdef int _i
    with nogil:
        for _i in range(n):
            r = request_new(NULL)
            if r == NULL:
                break
            if pb_infer_head(<const uint8_t*>msg, size, &h, &e) == 0 and \
                    pb_decode_infer(r, <const uint8_t*>msg, size, <size_t>1 << 40, NULL, &e) == 0:
                good += 1
            request_free(r)
    return good
