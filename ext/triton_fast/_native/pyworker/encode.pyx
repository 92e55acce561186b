# See encode.pxd. Offsets of tensors are known only when all records are: until then they count from the first tensor.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from triton_fast._native.core.native cimport TF_OK, tf_buf_free, tf_buf_put
from triton_fast._native.core.model cimport IoSpec
from triton_fast._native.core.outputs cimport request_wants
from triton_fast._native.core.request cimport Request, Response
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.pyworker.layout cimport (
    HEADER, Message, RECORD_FINAL, RECORD_NONE, RECORD_RESPONSE, RequestRecord, ResponseRecord, TensorRecord, padded,
)
from triton_fast._native.pyworker.region cimport Chunk, Region, inbound_new
from triton_fast._native.wire.json_reply cimport json_put_params

cdef struct Piece:
    size_t at               # of the offset, in the records
    const uint8_t* ptr
    size_t nbytes
    size_t place            # from the first tensor

cdef char[8] zeros
memset(zeros, 0, 8)


cdef void encoder_free(Encoder* e) noexcept nogil:
    tf_buf_free(&e.records)
    tf_buf_free(&e.pieces)
    tf_buf_free(&e.text)


cdef inline void begin(Encoder* e) noexcept nogil:
    e.records.len = 0
    e.records.failed = 0
    e.pieces.len = 0
    e.pieces.failed = 0
    e.data = 0


cdef inline void put_text(Encoder* e, const char* text, size_t n) noexcept nogil:
    if n:
        tf_buf_put(&e.records, text, n)
        tf_buf_put(&e.records, zeros, padded(n) - n)


cdef void put_tensor(Encoder* e, Tensor* t, int32_t index, const char* name, uint32_t name_len) noexcept nogil:
    cdef TensorRecord record
    cdef Piece piece
    record.dtype = <uint16_t>t.dtype
    record.ndim = <uint16_t>t.ndim
    record.name = index if name == NULL else -1 - <int32_t>name_len
    record.off = 0
    record.nbytes = t.nbytes
    piece.at = e.records.len + 8
    piece.ptr = t.ptr
    piece.nbytes = t.nbytes
    piece.place = e.data
    tf_buf_put(&e.records, &record, sizeof(TensorRecord))
    tf_buf_put(&e.records, t.dims, <size_t>t.ndim * sizeof(int64_t))
    if name != NULL:
        put_text(e, name, name_len)
    tf_buf_put(&e.pieces, &piece, sizeof(Piece))
    e.data += (t.nbytes + 63) & ~<size_t>63


cdef void encoder_execution(Encoder* e, uint32_t n) noexcept nogil:
    cdef uint32_t[2] head
    begin(e)
    head[0] = n
    head[1] = 0
    tf_buf_put(&e.records, head, 8)


cdef void put_request(Encoder* e, Request* r, uint32_t slot, uint32_t generation) noexcept nogil:
    cdef RequestRecord record
    cdef size_t start = e.records.len
    cdef int32_t i, index
    cdef uint32_t n_wanted = 0
    e.text.len = 0
    e.text.failed = 0
    if r.params != NULL:
        json_put_params(&e.text, r.params)
    record.slot = slot
    record.generation = generation
    record.flags = r.flags & 3
    record.correlation = r.correlation
    record.timeout_us = r.timeout_us
    record.priority = r.priority
    record.id_len = r.id_len
    record.correlation_len = r.correlation_len
    record.params_len = 0 if e.text.failed else <uint32_t>e.text.len
    record.trace_len = r.trace_len
    record.n_inputs = <uint32_t>r.n_inputs
    tf_buf_put(&e.records, &record, sizeof(RequestRecord))
    for i in range(r.n_inputs):
        put_tensor(e, &r.inputs[i], r.inputs[i].index, NULL, 0)
    # What the client wants, then what only the scheduler does.
    for i in range(r.n_wanted):
        index = r.wanted[i].index
        tf_buf_put(&e.records, &index, 4)
        n_wanted += 1
    for i in range(r.model.n_all_outputs):
        if r.n_wanted == 0 or (r.model.outputs[i].kept and not request_wants(r, i)):
            tf_buf_put(&e.records, &i, 4)
            n_wanted += 1
    if n_wanted & 1:
        tf_buf_put(&e.records, zeros, 4)
    put_text(e, r.id, r.id_len)
    put_text(e, r.correlation_text, r.correlation_len)
    put_text(e, e.text.data, record.params_len)
    put_text(e, r.trace, r.trace_len)
    if not e.records.failed:
        (<RequestRecord*>(e.records.data + start)).bytes = <uint32_t>(e.records.len - start)
        (<RequestRecord*>(e.records.data + start)).n_wanted = n_wanted


cdef void encoder_answer(Encoder* e, Response* p, int32_t code, const char* text, size_t n,
                         bint is_final) noexcept nogil:
    cdef ResponseRecord record
    cdef IoSpec* spec
    cdef int32_t i
    begin(e)
    memset(&record, 0, sizeof(record))
    e.text.len = 0
    e.text.failed = 0
    if p != NULL:
        code = p.code
        text = p.text
        n = p.text_len
        if p.params != NULL and code == TF_OK:
            json_put_params(&e.text, p.params)
    record.kind = RECORD_RESPONSE
    record.code = code
    if code == TF_OK:
        n = 0
        record.params_len = 0 if e.text.failed else <uint32_t>e.text.len
        record.n_outputs = <uint32_t>p.n_outputs
        if p.n_outputs == 0 and p.params == NULL and is_final and p.request.model.decoupled:
            record.kind = RECORD_NONE
    record.error_len = <uint32_t>n
    record.flags = RECORD_FINAL if is_final else 0
    tf_buf_put(&e.records, &record, sizeof(ResponseRecord))
    for i in range(<int32_t>record.n_outputs):
        spec = &p.request.model.outputs[p.outputs[i].index]
        put_tensor(e, &p.outputs[i], 0, spec.name, spec.name_len)
    put_text(e, text, n)
    put_text(e, e.text.data, record.params_len)
    if not e.records.failed:
        (<ResponseRecord*>e.records.data).bytes = <uint32_t>e.records.len


cdef size_t encoder_size(Encoder* e) noexcept nogil:
    if e.records.failed or e.pieces.failed or e.records.len > <size_t>0xFFFFFFF0:
        return 0
    return ((e.records.len + 63) & ~<size_t>63) + e.data


cdef Chunk* encoder_place(Encoder* e, Region* g, Message* m) noexcept nogil:
    cdef size_t first = (e.records.len + 63) & ~<size_t>63
    cdef Piece* piece = <Piece*>e.pieces.data
    cdef size_t i, n = e.pieces.len // sizeof(Piece)
    cdef Chunk* chunk
    cdef uint8_t* data
    if encoder_size(e) == 0:
        return NULL
    chunk = inbound_new(g, first + e.data)
    if chunk == NULL:
        return NULL
    data = chunk.header + HEADER
    m.off = <uint64_t>(data - g.base)
    m.len = first + e.data
    m.arg = 0
    for i in range(n):
        (<uint64_t*>(e.records.data + piece[i].at))[0] = m.off + first + piece[i].place
        if piece[i].nbytes:
            memcpy(data + first + piece[i].place, piece[i].ptr, piece[i].nbytes)
    memcpy(data, e.records.data, e.records.len)
    return chunk
