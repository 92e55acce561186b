# Part of client.pyx: payloads of the server. Records are copied out of the region once, checked in the copy, and read
# from it when the model asks. A payload that does not hold together raises ValueError.

cdef enum:
    MAX_RECORDS = 1 << 30
    NUMPY_RANK = 32         # what every numpy takes


cdef int bad(str what) except -1:
    raise ValueError(f"malformed message of the server: {what}")


# How many elements; -1 when that is no number of elements.
cdef inline int64_t count_of(const TensorRecord* t) noexcept nogil:
    return elements_of(<const int64_t*>(t + 1), t.ndim)


# A copy of the first n bytes of a lease's data.
cdef int keep_records(Lease lease, size_t n) except -1:
    lease.records = <char*>malloc(n if n else 1)
    if lease.records == NULL:
        raise MemoryError
    memcpy(lease.records, lease.node.data, n)
    return 0


# n bytes, padded, from at[0] on. Whether they are there.
cdef inline bint step(const char** at, size_t* left, size_t n) noexcept nogil:
    if n > left[0] or padded(n) > left[0]:
        return False
    at[0] += padded(n)
    left[0] -= padded(n)
    return True


# A tensor record with what follows it. `names`: how many an index may name; 0: the name must be text.
cdef int check_tensor(Lease lease, const char** at, size_t* left, size_t names) except -1:
    cdef const TensorRecord* t = <const TensorRecord*>at[0]
    cdef int64_t count, size = 0
    cdef uint64_t start = <uint64_t>(lease.node.data - lease.region.base)
    if not step(at, left, sizeof(TensorRecord)) or not step(at, left, <size_t>t.ndim * 8):
        return bad("a tensor ends early")
    if t.dtype < DT_BOOL or t.dtype >= DT_COUNT or t.ndim > NUMPY_RANK:
        return bad(f"a tensor of datatype {t.dtype} with {t.ndim} dims")
    if names == 0:
        if t.name >= 0 or not step(at, left, -1 - <size_t>t.name):
            return bad("the name of a tensor")
    elif t.name < 0 or <size_t>t.name >= names:
        return bad(f"tensor {t.name} of {names}")
    count = count_of(t)
    if count < 0 or (t.dtype != DT_STRING and (mul_overflow(count, dtype_size(t.dtype), &size)
                                               or <uint64_t>size != t.nbytes)):
        return bad(f"a tensor's {t.nbytes} bytes do not fit its shape")
    if t.nbytes and (t.off < start or t.off - start > lease.node.size
                     or t.nbytes > lease.node.size - (t.off - start)):
        return bad("a tensor lies outside of its message")
    return 0


cdef RequestCore request_new(Transport transport, Lease lease, const RequestRecord* h):
    cdef const char* p = <const char*>(h + 1)
    cdef size_t left = h.bytes - sizeof(RequestRecord)
    cdef size_t n_outputs = len(transport.outputs)
    cdef RequestCore r
    cdef uint32_t i
    cdef int32_t index
    if h.slot >= MAX_SLOTS:
        bad(f"slot {h.slot}")
    for i in range(h.n_inputs):
        check_tensor(lease, &p, &left, max(len(transport.inputs), 1))
    r = <RequestCore>new_of(transport.request_type)
    r.after = p
    if not step(&p, &left, <size_t>h.n_wanted * 4) or not step(&p, &left, h.id_len) \
            or not step(&p, &left, h.correlation_len) or not step(&p, &left, h.params_len) \
            or not step(&p, &left, h.trace_len):
        bad("a request ends early")
    for i in range(h.n_wanted):
        index = (<const int32_t*>r.after)[i]
        if index < 0 or <size_t>index >= n_outputs:
            bad(f"output {index} of {n_outputs}")
    r.transport = transport
    r.lease = lease
    r.record = h
    r._flags = h.flags
    r.timeout_us = h.timeout_us
    r._slot = h.slot
    r._generation = h.generation
    r._release = 1
    return r


def decode_batch(Transport transport not None, uint64_t off, uint64_t n):
    """Return the requests of an execution's payload, of the class that `Transport.bind` was given.

    The payload's memory goes back to the server when the last request, tensor and view of it has gone.

    Raises
    ------
    ValueError
        The payload does not hold together.
    """
    cdef Lease lease = lease_new(transport.region, off, n)
    cdef uint32_t count = 0, size = 0, i
    cdef size_t at = 8
    cdef const RequestRecord* h
    cdef list requests = []
    if transport.request_type is None:
        raise ValueError("the transport is not bound to classes")
    if n < 8:
        bad("an execution ends early")
    memcpy(&count, lease.node.data, 4)
    for i in range(count):
        if n - at < sizeof(RequestRecord):
            bad("an execution ends early")
        memcpy(&size, lease.node.data + at, 4)
        if size < sizeof(RequestRecord) or size & 7 or size > n - at:
            bad(f"a request of {size} bytes")
        at += size
    if at > MAX_RECORDS:
        bad(f"{at} bytes of records")
    keep_records(lease, at)
    n = at
    at = 8
    for i in range(count):
        h = <const RequestRecord*>(lease.records + at)
        # Sizes are looked at again in the copy: they may have changed in between.
        if n - at < sizeof(RequestRecord) or h.bytes < sizeof(RequestRecord) or h.bytes & 7 or h.bytes > n - at:
            bad(f"a request of {h.bytes} bytes")
        requests.append(request_new(transport, lease, h))
        at += h.bytes
    return requests


def decode_answer(Transport transport not None, uint64_t off, uint64_t n):
    """Return (response or None, whether it is the last) of an answer's payload; None carries only the flag.

    Raises
    ------
    ValueError
        The payload does not hold together.
    """
    cdef Lease lease = lease_new(transport.region, off, n)
    cdef const ResponseRecord* h
    cdef const TensorRecord* record
    cdef const char* p
    cdef size_t left
    cdef uint32_t size = 0, i
    cdef ResponseCore r
    if transport.request_type is None:
        raise ValueError("the transport is not bound to classes")
    if n < sizeof(ResponseRecord):
        bad("an answer ends early")
    memcpy(&size, lease.node.data, 4)
    if size < sizeof(ResponseRecord) or size > n or size > MAX_RECORDS:
        bad(f"an answer of {size} bytes")
    keep_records(lease, size)
    h = <const ResponseRecord*>lease.records
    is_last = (h.flags & RECORD_FINAL) != 0
    if h.kind == RECORD_NONE:
        return None, is_last
    if h.kind != RECORD_RESPONSE:
        bad(f"an answer of kind {h.kind}")
    r = <ResponseCore>new_of(transport.response_type)
    r.tensors = []
    p = <const char*>(h + 1)
    left = size - sizeof(ResponseRecord)
    for i in range(h.n_outputs):
        record = <const TensorRecord*>p
        check_tensor(lease, &p, &left, 0)
        r.tensors.append(tensor_new(transport, lease, record))
    text = p
    if not step(&p, &left, h.error_len):
        bad("an answer ends early")
    if h.code >= 0:
        r.failure = transport.error_type(text_of(text, h.error_len), h.code)
        r.tensors = []
    text = p
    if not step(&p, &left, h.params_len):
        bad("an answer ends early")
    if h.params_len:
        r.params_json = text_of(text, h.params_len)
    return r, is_last
