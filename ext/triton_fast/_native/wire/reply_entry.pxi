# Part of json_reply.pyx and pb_reply.pyx: native responses from Python values, for tests and instruction counts.
# Knows no protocol.


cdef char* keep(Request* r, bytes text, uint32_t* n) except NULL:
    cdef char* p = <char*>request_alloc(r, <size_t>len(text) + 1)
    if p == NULL:
        raise MemoryError
    memcpy(p, <const char*>text, <size_t>len(text) + 1)
    n[0] = <uint32_t>len(text)
    return p


cdef void* room(Request* r, Py_ssize_t count, size_t size) except NULL:
    cdef void* p = request_alloc(r, <size_t>(count + 1) * size)
    if p == NULL:
        raise MemoryError
    memset(p, 0, <size_t>(count + 1) * size)
    return p


cdef Param* make_params(Request* r, dict parameters) except? NULL:
    cdef Param* first = NULL
    cdef Param* p
    for key, value in reversed(list(parameters.items())):
        p = <Param*>room(r, 1, sizeof(Param))
        p.key = keep(r, key.encode(), &p.key_len)
        if isinstance(value, bool):
            p.kind = PARAM_BOOL
            p.integer = value
        elif isinstance(value, int):
            p.kind = PARAM_UINT if value >= 1 << 63 else PARAM_INT
            p.integer = <int64_t><uint64_t>value if value >= 1 << 63 else <int64_t>value
        elif isinstance(value, float):
            p.kind = PARAM_DOUBLE
            p.number = value
        else:
            p.kind = PARAM_STRING
            p.text = keep(r, value.encode(), &p.text_len)
        p.next = first
        first = p
    return first

cdef int fill_response(Request* r, str id, list outputs, parameters) except -1:
    cdef Response* p = &r.response
    cdef Tensor* t
    cdef Py_ssize_t k, j
    r.id = keep(r, id.encode(), &r.id_len)
    if parameters:
        p.params = make_params(r, parameters)
    if response_outputs(p, <int32_t>len(outputs)) == NULL:
        raise MemoryError
    for k in range(len(outputs)):
        index, dtype, dims, data = outputs[k]
        t = &p.outputs[k]
        t.index = index
        t.dtype = int(dtype)
        t.ndim = <int32_t>len(dims)
        t.dims = <int64_t*>room(r, len(dims), sizeof(int64_t))
        for j in range(t.ndim):
            t.dims[j] = dims[j]
        t.ptr = <uint8_t*><const char*>data
        t.nbytes = <size_t>len(data)
    return 0
