# Part of client.pyx: payloads to the server: records, then tensors, in one outbound allocation. Offsets of tensors are
# known only when all records are: until then they count from the first tensor.

cdef enum:
    COPY_WITHOUT_GIL = 65536
    REFER_MIN = 16384       # bytes; smaller outputs are copied even if they are the server's own

cdef struct Piece:
    size_t at               # of the tensor's offset, in the records
    size_t place            # from the first tensor
    const uint8_t* ptr
    size_t nbytes
    Py_ssize_t strings      # which of the string arrays it is; -1: bytes at ptr

cdef char[8] zeros
memset(zeros, 0, 8)


@cython.final
@cython.no_gc
cdef class Encoder:
    cdef tf_buf records
    cdef tf_buf pieces
    cdef tf_buf strings         # of Strings
    cdef size_t data
    cdef list kept              # leases of tensors that are not copied
    cdef list others            # by string array: elements that are neither str nor bytes

    def __dealloc__(self):
        self.close_strings()
        tf_buf_free(&self.records)
        tf_buf_free(&self.pieces)
        tf_buf_free(&self.strings)

    cdef void close_strings(self):
        cdef Strings* s = <Strings*>self.strings.data
        cdef size_t i
        for i in range(self.strings.len // sizeof(Strings)):
            strings_close(&s[i])
        self.strings.len = 0

    cdef inline void put(self, const void* p, size_t n) noexcept:
        tf_buf_put(&self.records, p, n)

    cdef inline void put_text(self, const char* p, size_t n) noexcept:
        tf_buf_put(&self.records, p, n)
        tf_buf_put(&self.records, zeros, padded(n) - n)

    # The length to write in the record before, then the text.
    cdef const char* text(self, object text, uint32_t* n) except NULL:
        cdef Py_ssize_t size = 0
        cdef const char* p = PyUnicode_AsUTF8AndSize(text, &size)
        if size > 0x7FFFFFF0:
            raise ValueError(f"a text of {size} bytes is too long")
        n[0] = <uint32_t>size
        return p

    cdef int put_tensor(self, Region region, TensorCore t, dict indices, bint may_refer) except -1:
        cdef TensorRecord record
        cdef Piece piece
        cdef Strings strings
        # Of strings the model may have changed the array that it got.
        cdef bint is_as_sent = t.record != NULL and (t.dtype != DT_STRING or t.array is None)
        cdef Lease lease
        cdef const char* name = NULL
        cdef uint32_t name_len = 0
        cdef int64_t size
        cdef int i
        cdef PyObject* index
        cdef tuple dims
        key = t.tensor_name if t.tensor_name is not None else t.name()
        index = PyDict_GetItem(indices, key) if indices is not None else NULL
        if index != NULL:
            record.name = <int32_t>PyLong_AsLong(<object>index)
        else:
            name = self.text(key, &name_len)
            record.name = -1 - <int32_t>name_len
        record.dtype = <uint16_t>t.dtype
        record.off = 0
        piece.at = self.records.len + 8
        piece.place = self.data
        piece.strings = -1
        lease = None
        if is_as_sent:
            record.nbytes = t.record.nbytes
            piece.ptr = t.lease.region.base + t.record.off if record.nbytes else t.lease.node.data
            if t.lease.region is region:
                lease = t.lease
        elif t.record == NULL and not t.has_view:
            raise ValueError(f"tensor '{key}' has no data")
        elif t.dtype == DT_STRING:
            others = []
            strings_open(&strings, t.array, others)
            tf_buf_put(&self.strings, &strings, sizeof(Strings))
            if self.strings.failed:
                strings_close(&strings)
                raise MemoryError
            if self.others is None:
                self.others = []
            piece.strings = len(self.others)
            self.others.append(others)
            record.nbytes = strings.nbytes
            piece.ptr = NULL
        else:
            record.nbytes = <uint64_t>t.view.len
            piece.ptr = <const uint8_t*>t.view.buf
            if record.nbytes >= REFER_MIN and <size_t>(piece.ptr - region.base) < region.size:
                lease = region.lease_at(piece.ptr, record.nbytes)
        if may_refer and lease is not None and record.nbytes >= REFER_MIN \
                and <size_t>(piece.ptr - region.base) & 7 == 0:
            record.off = <uint64_t>(piece.ptr - region.base)
            if self.kept is None:
                self.kept = []
            self.kept.append(lease)
        if t.record != NULL:
            record.ndim = t.record.ndim
            self.put(&record, sizeof(TensorRecord))
            self.put(t.record + 1, <size_t>record.ndim * 8)
        elif t.dims is None:
            record.ndim = <uint16_t>t.view.ndim
            self.put(&record, sizeof(TensorRecord))
            for i in range(t.view.ndim):
                size = t.view.shape[i]
                self.put(&size, 8)
        else:
            dims = <tuple>t.dims
            record.ndim = <uint16_t>len(dims)
            self.put(&record, sizeof(TensorRecord))
            for item in dims:
                size = item
                self.put(&size, 8)
        if name != NULL:
            self.put_text(name, name_len)
        if record.off == 0 and record.nbytes:
            piece.nbytes = record.nbytes
            tf_buf_put(&self.pieces, &piece, sizeof(Piece))
            if record.nbytes > <uint64_t>1 << 40:
                raise MemoryError(f"tensor '{key}' is too large")
            self.data += (record.nbytes + 63) & ~<size_t>63
        return 0

    cdef int put_params(self, dict params) except -1:
        cdef ParamRecord record
        cdef uint32_t[2] head
        cdef const char* key
        cdef const char* text
        head[0] = <uint32_t>len(params)
        head[1] = 0
        self.put(head, 8)
        for name, value in params.items():
            key = self.text(name, &record.key_len)
            text = NULL
            if value is True or value is False:
                record.kind = 2
                record.value = value is True
            elif isinstance(value, int):
                record.kind = 1
                if not -(1 << 63) <= value < 1 << 63:
                    raise OverflowError("Unsupported value type on parameters")
                record.value = <uint64_t><int64_t>value
            else:
                record.kind = 0
                text = self.text(value, &head[0])
                record.value = head[0]
            self.put(&record, sizeof(ParamRecord))
            self.put_text(key, record.key_len)
            if text != NULL:
                self.put_text(text, record.value)
        return 0

    # `wanted`: names of outputs; None: those of the request r, which may be None for all.
    cdef int put_response(self, Region region, ResponseCore p, uint32_t slot, uint32_t generation, uint32_t flags,
                          RequestCore r, object wanted, dict indices) except -1:
        cdef ResponseRecord record
        cdef ResponseRecord* written
        cdef size_t start = self.records.len, end
        cdef const char* text = NULL
        memset(&record, 0, sizeof(ResponseRecord))
        record.kind = RECORD_RESPONSE
        record.slot = slot
        record.generation = generation
        record.code = TF_OK
        record.flags = flags
        if p.failure is not None:
            record.code = p.failure.code()
            # Errors may name files, whose names need not be text.
            message = str(p.failure.message()).encode("utf-8", "replace").decode()
            text = self.text(message, &record.error_len)
        self.put(&record, sizeof(ResponseRecord))
        if p.failure is None:
            for item in p.tensors or ():
                if is_wanted(r, wanted, <TensorCore>item, indices):
                    # Before the last response the model may go on writing where an output lies.
                    self.put_tensor(region, <TensorCore>item, indices, flags & RECORD_FINAL != 0)
                    record.n_outputs += 1
        else:
            self.put_text(text, record.error_len)
        end = self.records.len
        if p.params:
            self.put_params(<dict>p.params)
        if self.records.failed or self.records.len - start > 0xFFFFFFF0:
            raise MemoryError
        written = <ResponseRecord*>(self.records.data + start)
        written.bytes = <uint32_t>(self.records.len - start)
        written.n_outputs = record.n_outputs
        written.params_len = <uint32_t>(self.records.len - end)
        return 0

    # Only a record's head.
    cdef void put_mark(self, uint32_t slot, uint32_t generation, uint32_t kind, uint32_t flags) noexcept:
        cdef ResponseRecord record
        memset(&record, 0, sizeof(ResponseRecord))
        record.bytes = sizeof(ResponseRecord)
        record.kind = kind
        record.slot = slot
        record.generation = generation
        record.code = TF_OK
        record.flags = flags
        self.put(&record, sizeof(ResponseRecord))

    # Everything into one outbound allocation; out: its message's offset and length. The rest as of Region.take.
    cdef int place(self, Region region, Message* m, bint may_wait=True, list requests=None, uint32_t slot=0,
                   uint32_t generation=0) except -1:
        cdef size_t first = (self.records.len + 63) & ~<size_t>63
        cdef Piece* piece = <Piece*>self.pieces.data
        cdef Strings* s = <Strings*>self.strings.data
        cdef size_t i, n = self.pieces.len // sizeof(Piece)
        cdef Py_ssize_t k
        cdef Chunk* chunk
        cdef uint8_t* data
        if self.records.failed or self.pieces.failed:
            raise MemoryError
        chunk = region.take(first + self.data, may_wait, requests, slot, generation)
        data = chunk.header + HEADER
        m.off = <uint64_t>(data - region.base)
        m.len = first + self.data
        m.arg = 0
        try:
            for i in range(n):
                (<uint64_t*>(self.records.data + piece[i].at))[0] = m.off + first + piece[i].place
                k = piece[i].strings
                if k >= 0:
                    strings_write(&s[k], <list>self.others[k], data + first + piece[i].place)
        except BaseException:
            tf_store32(<int32_t*>chunk.header, 0)
            raise
        if self.data > COPY_WITHOUT_GIL:
            with nogil:
                copy_pieces(piece, n, data + first)
        else:
            copy_pieces(piece, n, data + first)
        memcpy(data, self.records.data, self.records.len)
        if self.kept is not None:
            # Until the server has read the message, and so has references of its own.
            tf_lock(&region.heap.lock)
            Py_INCREF(self.kept)
            chunk.kept = <PyObject*>self.kept
            region.heap.n_kept += 1
            tf_unlock(&region.heap.lock)
        return 0


cdef void copy_pieces(const Piece* piece, size_t n, uint8_t* to) noexcept nogil:
    cdef size_t i
    for i in range(n):
        if piece[i].strings < 0:
            memcpy(to + piece[i].place, piece[i].ptr, piece[i].nbytes)


# Whether an output was asked for. One that the model does not have goes too: the server says so to the client.
cdef bint is_wanted(RequestCore r, object names, TensorCore t, dict indices) except -1:
    cdef const int32_t* wanted
    cdef PyObject* index
    cdef int32_t k
    cdef uint32_t i
    if names is not None:
        return t.name() in names or PyDict_GetItem(indices, t.name()) == NULL
    if r is None or r.record == NULL:
        return True
    index = PyDict_GetItem(indices, t.name())
    if index == NULL:
        return True
    if r.record.n_wanted == <uint32_t>len(indices):
        return True
    k = <int32_t>PyLong_AsLong(<object>index)
    wanted = <const int32_t*>r.after
    for i in range(r.record.n_wanted):
        if wanted[i] == k:
            return True
    return False


# The transport's spare encoder, or a new one. encoder_give lets go of what it holds.
cdef Encoder encoder_take(Transport transport):
    cdef Encoder e = transport.spare
    transport.spare = None
    if e is None:
        e = Encoder.__new__(Encoder)
    return e


cdef void encoder_give(Transport transport, Encoder e):
    e.close_strings()
    e.kept = None
    e.others = None
    e.data = 0
    e.pieces.len = 0
    if e.records.cap <= SPARE_BYTES and not e.records.failed and not e.pieces.failed:
        e.records.len = 0
        transport.spare = e


cdef int done_into(Transport transport, list requests, responses, Message* m) except -1:
    cdef Encoder e
    cdef DoneRecord head
    cdef Py_ssize_t i
    cdef RequestCore r
    if type(responses) is not list or len(<list>responses) != len(requests):
        raise TypeError("responses must be a list of as many members as there are requests")
    e = encoder_take(transport)
    try:
        head.n = <uint32_t>len(requests)
        head.code = TF_OK
        head.error_len = 0
        head.spare = 0
        e.put(&head, sizeof(DoneRecord))
        for i in range(len(requests)):
            r = requests[i]
            if i >= len(<list>responses):
                raise TypeError("responses changed while they were read")
            response = (<list>responses)[i]
            if isinstance(response, ResponseCore):
                e.put_response(transport.region, <ResponseCore>response, r._slot, r._generation, RECORD_FINAL, r, None,
                               transport.indices)
            elif response is None:
                e.put_mark(r._slot, r._generation, RECORD_RESCHEDULED if r._release == 2 else RECORD_BY_SENDER, 0)
            else:
                raise TypeError(f"a response must be an InferenceResponse or None, not {type(response)}")
        e.place(transport.region, m, True, requests)
    finally:
        encoder_give(transport, e)
    return 0


def encode_done(Transport transport not None, list requests not None, responses):
    """Put the responses of an execution into outbound memory; return (offset, bytes) for `Transport.publish_done`.

    None stands for a request that its sender answers, or that was rescheduled (``_release`` 2).

    Raises
    ------
    TypeError
        Not a list of as many responses or None as there are requests: the caller has the texts for models.
    """
    cdef Message m
    done_into(transport, requests, responses, &m)
    return m.off, m.len


def encode_failure(Transport transport not None, int code, str text not None):
    """The same for an execution that failed as a whole."""
    cdef Message m
    cdef DoneRecord head
    cdef const char* p
    cdef Encoder e = encoder_take(transport)
    try:
        head.n = 0
        head.code = code
        head.spare = 0
        text = text.encode("utf-8", "replace").decode()
        p = e.text(text, &head.error_len)
        e.put(&head, sizeof(DoneRecord))
        e.put_text(p, head.error_len)
        e.place(transport.region, &m)
    finally:
        encoder_give(transport, e)
    return m.off, m.len


def encode_response(Transport transport not None, uint32_t slot, uint32_t generation, ResponseCore response, wanted,
                    uint32_t flags, bint may_wait=True):
    """The same for one response of a sender, an event; None carries only the flags.

    ``wanted``: names of the outputs that go, None for all. ``may_wait``: for memory.

    The request itself is not named, so that its memory can go
    back to the server while its sender lives.
    """
    cdef Message m
    cdef Encoder e = encoder_take(transport)
    try:
        if response is None:
            e.put_mark(slot, generation, RECORD_NONE, flags)
        else:
            e.put_response(transport.region, response, slot, generation, flags, None, wanted, transport.indices)
        e.place(transport.region, &m, may_wait, None, slot, generation)
    finally:
        encoder_give(transport, e)
    return m.off, m.len


def encode_bls(Transport transport not None, RequestCore request not None, str model not None, int64_t version,
               uint32_t options, uint32_t parent_slot=0, uint32_t parent_generation=0):
    """The same for a request to another model, an event."""
    cdef Message m
    cdef BlsRecord h
    cdef uint32_t n
    cdef const char* p
    cdef size_t start
    cdef Encoder e
    memset(&h, 0, sizeof(BlsRecord))
    h.options = options
    h.flags = request._flags
    h.timeout_us = request.timeout_us
    h.version = version
    h.parent_slot = parent_slot
    h.parent_generation = parent_generation
    inputs = request_tensors(request)
    wanted = request._wanted
    h.n_inputs = <uint32_t>len(inputs)
    h.n_wanted = <uint32_t>len(wanted)
    correlation = request.correlation_id()
    texts = [model, request.request_id(), "", None, request._trace_text()]
    if isinstance(correlation, str):
        texts[2] = correlation
    else:
        h.correlation = correlation
    e = encoder_take(transport)
    try:
        e.put(&h, sizeof(BlsRecord))
        for item in inputs:
            e.put_tensor(transport.region, <TensorCore>item, None, False)
        for name in wanted:
            p = e.text(name, &n)
            e.put(&n, 4)
            e.put(p, n)
            e.put(zeros, padded(4 + <size_t>n) - 4 - n)
        e.put_text(e.text(texts[0], &h.model_len), h.model_len)
        e.put_text(e.text(texts[1], &h.id_len), h.id_len)
        e.put_text(e.text(texts[2], &h.correlation_len), h.correlation_len)
        start = e.records.len
        if request.params:
            e.put_params(<dict>request.params)
        h.params_len = <uint32_t>(e.records.len - start)
        e.put_text(e.text(texts[4], &h.trace_len), h.trace_len)
        if e.records.failed or e.records.len > 0xFFFFFFF0:
            raise MemoryError
        h.bytes = <uint32_t>e.records.len
        memcpy(e.records.data, &h, sizeof(BlsRecord))
        e.place(transport.region, &m, True, None, parent_slot, parent_generation)
    finally:
        encoder_give(transport, e)
    return m.off, m.len
