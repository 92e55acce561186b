# Part of validate.pyx: requests from Python values, for tests and instruction counts.


cdef object result_of(Request* r):
    cdef int32_t i
    return {
        "batch": r.batch,
        "shape_key": r.shape_key,
        "order": [None if r.by_index[i] == NULL else r.by_index[i] - r.inputs for i in range(r.model.n_inputs)],
        "wanted": [r.wanted[i].index for i in range(r.n_wanted)],
    }


cdef const char* keep(Request* r, bytes text) except NULL:
    cdef char* p = <char*>request_alloc(r, <size_t>len(text) + 1)
    if p == NULL:
        raise MemoryError
    memcpy(p, <const char*>text, <size_t>len(text) + 1)
    return p


cdef Request* request_with(ModelHandle model, bytes id) except NULL:
    cdef Request* r = request_new(model.ptr)
    if r == NULL:
        raise MemoryError
    try:
        r.id = keep(r, id)
    except MemoryError:
        request_free(r)
        raise
    r.id_len = <uint32_t>len(id)
    return r


cdef int fill(Request* r, list inputs, list outputs) except -1:
    cdef Py_ssize_t n = len(inputs), k, j
    cdef Tensor* t
    r.inputs = <Tensor*>request_alloc(r, <size_t>(n + 1) * sizeof(Tensor))
    r.wanted = <Wanted*>request_alloc(r, <size_t>(len(outputs) + 1) * sizeof(Wanted))
    if r.inputs == NULL or r.wanted == NULL:
        raise MemoryError
    memset(r.wanted, 0, <size_t>(len(outputs) + 1) * sizeof(Wanted))
    for k in range(n):
        name, dtype, dims, data = inputs[k]
        encoded = name.encode()
        t = &r.inputs[k]
        memset(t, 0, sizeof(Tensor))
        t.name = keep(r, encoded)
        t.name_len = <uint32_t>len(encoded)
        t.dtype = int(dtype)
        t.ndim = <int32_t>len(dims)
        t.dims = <int64_t*>request_alloc(r, <size_t>(len(dims) + 1) * sizeof(int64_t))
        if t.dims == NULL:
            raise MemoryError
        for j in range(t.ndim):
            t.dims[j] = dims[j]
        t.ptr = <uint8_t*><const char*>data
        t.nbytes = <size_t>len(data)
        r.n_inputs += 1
    for k in range(len(outputs)):
        encoded = outputs[k].encode()
        r.wanted[k].name = keep(r, encoded)
        r.wanted[k].name_len = <uint32_t>len(encoded)
        r.n_wanted += 1
    return 0


def check(ModelHandle model, inputs, outputs=(), str id="", int repeat=1):
    cdef tf_error e
    cdef int status = 0, _turn
    cdef Request* r = request_with(model, id.encode())
    try:
        inputs = list(inputs)
        fill(r, inputs, list(outputs))
        with nogil:
            for _turn in range(repeat):
                status = request_validate(r, &e)
        if status:
            raise make(e.code, e.text[:e.len].decode(errors="replace"))
        return result_of(r)
    finally:
        request_free(r)


def check_raw(ModelHandle model, bytes data, str id=""):
    cdef tf_error e
    cdef int status
    cdef int32_t i
    cdef const char* p = data
    cdef size_t n = <size_t>len(data)
    cdef Request* r = request_with(model, id.encode())
    try:
        with nogil:
            status = request_from_raw(r, p, n, &e)
            if status == 0:
                status = request_validate(r, &e)
        if status:
            raise make(e.code, e.text[:e.len].decode(errors="replace"))
        result = result_of(r)
        result["shape"] = [r.inputs[0].dims[i] for i in range(r.inputs[0].ndim)]
        result["data"] = (<char*>r.inputs[0].ptr)[:r.inputs[0].nbytes]
        result["binary_default"] = r.binary_default
        return result
    finally:
        request_free(r)
