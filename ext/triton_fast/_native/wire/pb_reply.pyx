# The v2 infer response as protobuf wire bytes. Room for a whole head is made once, from a bound on its size; after that
# it is written without looking. Tensors' bytes are left out, so that they can be sent from where they lie.
# Reads native structs only; everything runs without the GIL but the test entries.
from libc.stdint cimport INT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove, memset, strlen

from triton_fast._native.core.native cimport (
    MEM_GPU, TF_INTERNAL, TF_UNAVAILABLE, dtype_name, tf_buf, tf_buf_free, tf_buf_put, tf_buf_reserve,
    tf_error, tf_fail,
)
from triton_fast._native.core.model cimport Model, ModelHandle
from triton_fast._native.core.request cimport (
    Request, Response, request_alloc, request_free, request_new, response_outputs,
)
from triton_fast._native.core.tensor cimport (
    PARAM_BOOL, PARAM_DOUBLE, PARAM_INT, PARAM_STRING, PARAM_UINT, Param, Tensor,
)
from triton_fast._native.wire.pb_scan cimport (
    tf_pb_put_bytes, tf_pb_put_text, tf_pb_put_varint, tf_pb_varint_size, tf_utf8_char,
)

from triton_fast.errors import make

cdef enum:
    FIELD_ROOM = 11         # a tag of one byte and the longest varint
    LEAD_ROOM = FIELD_ROOM  # kept free in front of a message that is wrapped once its size is known
    FINAL_SIZE = 29

# The map entry triton_final_response -> bool_param, all but its last byte.
cdef const char* FINAL = b"\x22\x1b\x0a\x15triton_final_response\x12\x02\x08"


cdef int no_memory(tf_error* e) noexcept nogil:
    return tf_fail(e, TF_UNAVAILABLE, b"out of memory while writing the response")


# ---- parameters ----

cdef inline size_t params_room(const Param* p) noexcept nogil:
    cdef size_t room = 0
    while p != NULL:
        room += 4 * FIELD_ROOM + <size_t>p.key_len + (p.text_len if p.kind == PARAM_STRING else 0)
        p = p.next
    return room


cdef char* put_params(char* o, const Param* p) noexcept nogil:
    cdef uint64_t key, value
    while p != NULL:
        if p.kind == PARAM_STRING:
            value = 1 + tf_pb_varint_size(p.text_len) + p.text_len
        elif p.kind == PARAM_BOOL:
            value = 2
        elif p.kind == PARAM_DOUBLE:
            value = 9
        else:
            value = 1 + tf_pb_varint_size(<uint64_t>p.integer)
        key = 1 + tf_pb_varint_size(p.key_len) + p.key_len
        o[0] = 0x22
        o = tf_pb_put_varint(o + 1, key + 1 + tf_pb_varint_size(value) + value)
        o = tf_pb_put_bytes(o, 0x0a, p.key, p.key_len)
        o[0] = 0x12
        o = tf_pb_put_varint(o + 1, value)
        if p.kind == PARAM_STRING:
            o = tf_pb_put_bytes(o, 0x1a, p.text, p.text_len)
        elif p.kind == PARAM_BOOL:
            o[0] = 0x08
            o[1] = p.integer != 0
            o += 2
        elif p.kind == PARAM_DOUBLE:
            o[0] = 0x21
            memcpy(o + 1, &p.number, 8)
            o += 9
        else:
            o[0] = 0x28 if p.kind == PARAM_UINT else 0x10
            o = tf_pb_put_varint(o + 1, <uint64_t>p.integer)
        p = p.next
    return o


cdef inline char* put_final(char* o, int final) noexcept nogil:
    if final < 0:
        return o
    memcpy(o, FINAL, FINAL_SIZE - 1)
    o[FINAL_SIZE - 1] = final != 0
    return o + FINAL_SIZE


# ---- outputs ----

cdef inline const char* output_name(Model* m, const Tensor* t, uint32_t* n) noexcept nogil:
    if 0 <= t.index < m.n_outputs:
        n[0] = m.outputs[t.index].name_len
        return m.outputs[t.index].name
    n[0] = t.name_len if t.name != NULL else 0
    return t.name


cdef inline char* put_output(char* o, Model* m, const Tensor* t) noexcept nogil:
    cdef uint32_t name_len, kind_len
    cdef const char* name = output_name(m, t, &name_len)
    cdef const char* kind = dtype_name(t.dtype)
    cdef uint64_t size, dims = 0
    cdef int32_t i
    kind_len = <uint32_t>strlen(kind)
    for i in range(t.ndim):
        dims += tf_pb_varint_size(<uint64_t>t.dims[i])
    size = 2 + kind_len
    if name_len:
        size += 1 + tf_pb_varint_size(name_len) + name_len
    if t.ndim:
        size += 1 + tf_pb_varint_size(dims) + dims
    o[0] = 0x2a
    o = tf_pb_put_varint(o + 1, size)
    o = tf_pb_put_text(o, 0x0a, name, name_len)
    o = tf_pb_put_bytes(o, 0x12, kind, kind_len)
    if t.ndim:
        o[0] = 0x1a
        o = tf_pb_put_varint(o + 1, dims)
        for i in range(t.ndim):
            o = tf_pb_put_varint(o, <uint64_t>t.dims[i])
    return o


# ---- messages ----

# The reply behind `lead` bytes that are kept free. Returns the size of the message without them, or -1.
cdef inline int64_t encode(Response* p, int final, size_t lead, tf_buf* out, size_t* cut, tf_error* e) noexcept nogil:
    cdef Request* r = p.request
    cdef Model* m = r.model
    cdef const Tensor* t
    cdef uint32_t name_len
    cdef int32_t i
    cdef size_t room = lead + 4 * FIELD_ROOM + FINAL_SIZE + m.name_len + m.version_len + r.id_len
    cdef int64_t total = 0
    cdef char* o
    room += params_room(p.params)
    for i in range(p.n_outputs):
        t = &p.outputs[i]
        if t.kind == MEM_GPU:
            return tf_fail(e, TF_INTERNAL, b"an output lies in GPU memory and cannot be written to the response")
        if t.nbytes > <size_t>(INT64_MAX // 2 - total):
            return tf_fail(e, TF_INTERNAL, b"the outputs of the response are too large")
        total += <int64_t>t.nbytes
        output_name(m, t, &name_len)
        # Fields: the output, name, datatype with at most 9 letters, shape, data.
        room += 6 * FIELD_ROOM + name_len + <size_t>t.ndim * 10
    if tf_buf_reserve(out, room):
        return no_memory(e)
    o = out.data + out.len + lead
    o = tf_pb_put_text(o, 0x0a, m.name, m.name_len)
    o = tf_pb_put_text(o, 0x12, m.version_text, m.version_len)
    o = tf_pb_put_text(o, 0x1a, r.id, r.id_len)
    if p.params != NULL:
        o = put_params(o, p.params)
    o = put_final(o, final)
    for i in range(p.n_outputs):
        o = put_output(o, m, &p.outputs[i])
    for i in range(p.n_outputs):
        o[0] = 0x32
        o = tf_pb_put_varint(o + 1, p.outputs[i].nbytes)
        cut[i] = <size_t>(o - out.data)
    total += o - (out.data + out.len + lead)
    out.len = <size_t>(o - out.data)
    return total


cdef int64_t pb_encode_reply(Response* p, int final, tf_buf* out, size_t* cut, tf_error* e) noexcept nogil:
    return encode(p, final, 0, out, cut, e)


# Write infer_response's tag and length before the message that starts LEAD_ROOM behind `start`, and close the gap.
# Returns how many bytes the tag and length take.
cdef size_t wrap(tf_buf* out, size_t start, uint64_t size) noexcept nogil:
    cdef char* o = out.data + start
    cdef size_t lead = 1 + tf_pb_varint_size(size)
    o[0] = 0x12
    tf_pb_put_varint(o + 1, size)
    memmove(o + lead, o + LEAD_ROOM, out.len - start - LEAD_ROOM)
    out.len -= LEAD_ROOM - lead
    return lead


cdef int64_t pb_encode_stream_reply(Response* p, int final, tf_buf* out, size_t* cut, tf_error* e) noexcept nogil:
    cdef size_t start = out.len
    cdef size_t lead
    cdef int32_t i
    cdef int64_t size = encode(p, final, LEAD_ROOM, out, cut, e)
    if size < 0:
        return -1
    lead = wrap(out, start, <uint64_t>size)
    for i in range(p.n_outputs):
        cut[i] -= LEAD_ROOM - lead
    return size + <int64_t>lead


cdef size_t clean_size(const uint8_t* p, const uint8_t* end) noexcept nogil:
    cdef size_t size = 0
    cdef int n
    while p < end:
        n = 1 if p[0] < 0x80 else tf_utf8_char(p, end)
        size += <size_t>n if n else 3
        p += n if n else 1
    return size


# A text field with U+FFFD for each byte that is not UTF-8; room for three times n.
cdef char* put_clean(char* o, uint8_t tag, const uint8_t* p, const uint8_t* end) noexcept nogil:
    cdef int n
    o[0] = <char>tag
    o = tf_pb_put_varint(o + 1, clean_size(p, end))
    while p < end:
        n = 1 if p[0] < 0x80 else tf_utf8_char(p, end)
        if n:
            memcpy(o, p, <size_t>n)
            o += n
            p += n
        else:
            memcpy(o, b"\xef\xbf\xbd", 3)
            o += 3
            p += 1
    return o


# infer_response without outputs: id, model_name, model_version, triton_final_response.
cdef char* put_bare(char* o, const char* id, size_t id_len, const char* name, size_t name_len, const char* version,
                    size_t version_len, int final) noexcept nogil:
    cdef uint64_t size = 0
    if name_len:
        size += 1 + tf_pb_varint_size(name_len) + name_len
    if version_len:
        size += 1 + tf_pb_varint_size(version_len) + version_len
    if id_len:
        size += 1 + tf_pb_varint_size(id_len) + id_len
    if final >= 0:
        size += FINAL_SIZE
    o[0] = 0x12
    o = tf_pb_put_varint(o + 1, size)
    o = tf_pb_put_text(o, 0x0a, name, name_len)
    o = tf_pb_put_text(o, 0x12, version, version_len)
    o = tf_pb_put_text(o, 0x1a, id, id_len)
    return put_final(o, final)


cdef void pb_encode_stream_error(tf_buf* out, const char* text, size_t text_len, const char* id, size_t id_len,
                                 Model* model, int final) noexcept nogil:
    cdef const char* name = model.name if model != NULL else NULL
    cdef size_t name_len = model.name_len if model != NULL else 0
    cdef const char* version = model.version_text if model != NULL else NULL
    cdef size_t version_len = model.version_len if model != NULL else 0
    cdef char* o
    if tf_buf_reserve(out, 5 * FIELD_ROOM + FINAL_SIZE + 3 * text_len + id_len + name_len + version_len):
        return
    o = put_clean(out.data + out.len, 0x0a, <const uint8_t*>text, <const uint8_t*>text + text_len)
    o = put_bare(o, id, id_len, name, name_len, version, version_len, final)
    out.len = <size_t>(o - out.data)


cdef void pb_encode_stream_final(tf_buf* out, const char* id, size_t id_len, const char* name, size_t name_len,
                                 const char* version, size_t version_len) noexcept nogil:
    cdef char* o
    if tf_buf_reserve(out, 5 * FIELD_ROOM + FINAL_SIZE + id_len + name_len + version_len):
        return
    o = put_bare(out.data + out.len, id, id_len, name, name_len, version, version_len, 1)
    out.len = <size_t>(o - out.data)


# ---- for tests and benchmarks ----

include "reply_entry.pxi"


def encode_reply(ModelHandle model, outputs, str id="", parameters=None, int final=-1, bint stream=False,
                 bytes before=b"", int repeat=1):
    cdef tf_error e
    cdef tf_buf out
    cdef Request* r = request_new(model.ptr)
    cdef size_t* cut
    cdef int64_t size = 0
    cdef int32_t i, _turn
    cdef size_t start = <size_t>len(before)
    if r == NULL:
        raise MemoryError
    memset(&out, 0, sizeof(out))
    try:
        outputs = list(outputs)
        fill_response(r, id, outputs, parameters)
        cut = <size_t*>room(r, len(outputs), sizeof(size_t))
        if start:
            tf_buf_put(&out, <const char*>before, start)
        with nogil:
            for _turn in range(repeat):
                out.len = start
                if stream:
                    size = pb_encode_stream_reply(&r.response, final, &out, cut, &e)
                else:
                    size = pb_encode_reply(&r.response, final, &out, cut, &e)
        if size < 0:
            raise make(e.code, e.text[:e.len].decode(errors="replace"))
        return out.data[:out.len], [cut[i] for i in range(r.response.n_outputs)], size
    finally:
        tf_buf_free(&out)
        request_free(r)


def encode_error(bytes text not None, str id="", ModelHandle model=None, int final=-1):
    cdef tf_buf out
    cdef bytes encoded = id.encode()
    memset(&out, 0, sizeof(out))
    try:
        pb_encode_stream_error(&out, text, <size_t>len(text), encoded, <size_t>len(encoded),
                               model.ptr if model is not None else NULL, final)
        if out.failed:
            raise MemoryError
        return out.data[:out.len]
    finally:
        tf_buf_free(&out)


def encode_final(str id, str name, str version):
    cdef tf_buf out
    cdef bytes a = id.encode(), b = name.encode(), c = version.encode()
    memset(&out, 0, sizeof(out))
    try:
        pb_encode_stream_final(&out, a, <size_t>len(a), b, <size_t>len(b), c, <size_t>len(c))
        if out.failed:
            raise MemoryError
        return out.data[:out.len]
    finally:
        tf_buf_free(&out)
