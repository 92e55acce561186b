# See plan.pxd. Only heads whose tensors are all binary and of fixed element size are remembered: JSON data differ from
# request to request, and BYTES elements must be walked each time anyway.
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memcmp, memcpy

from triton_fast._native.core.native cimport DT_STRING, tf_buf_free, tf_buf_put, tf_error
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Request, Response, request_alloc, request_free, request_new
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.core.validate cimport request_validate
from triton_fast._native.wire.json_infer cimport json_decode_infer


# Whether a tensor is borrowed from the binary part; small JSON tensors lie in the request's arena instead.
cdef inline bint lies_in(Tensor* t, const uint8_t* bin, size_t bin_len) noexcept nogil:
    return t.block == NULL and t.ptr != NULL and bin <= t.ptr <= bin + bin_len and (
        t.nbytes <= bin_len - <size_t>(t.ptr - bin))


cdef bint plan_matches(Plan* p, Model* m, const char* json, size_t json_len, size_t bin_len) noexcept nogil:
    return (p.proto != NULL and p.proto.model == m and p.json.len == json_len and p.bin_len == bin_len
            and memcmp(p.json.data, json, json_len) == 0)


cdef Request* plan_request(Plan* p, const uint8_t* bin) noexcept nogil:
    cdef Request* proto = p.proto
    cdef Request* r = request_new(proto.model)
    cdef int32_t i, n = proto.n_inputs, k = proto.model.n_inputs
    if r == NULL:
        return NULL
    r.inputs = <Tensor*>request_alloc(r, <size_t>n * sizeof(Tensor))
    r.by_index = <Tensor**>request_alloc(r, <size_t>k * sizeof(Tensor*))
    if r.inputs == NULL or r.by_index == NULL:
        request_free(r)
        return NULL
    memcpy(r.inputs, proto.inputs, <size_t>n * sizeof(Tensor))
    for i in range(n):
        r.inputs[i].ptr = <uint8_t*>bin + p.offsets[i]
    for i in range(k):
        r.by_index[i] = NULL if proto.by_index[i] == NULL else r.inputs + (proto.by_index[i] - proto.inputs)
    r.n_inputs = n
    r.wanted = proto.wanted
    r.n_wanted = proto.n_wanted
    r.binary_default = proto.binary_default
    r.id = proto.id
    r.id_len = proto.id_len
    r.flags = proto.flags
    r.correlation = proto.correlation
    r.correlation_text = proto.correlation_text
    r.correlation_len = proto.correlation_len
    r.priority = proto.priority
    r.timeout_us = proto.timeout_us
    r.batch = proto.batch
    r.shape_key = proto.shape_key
    return r


cdef void plan_forget(Plan* p) noexcept nogil:
    if p.proto != NULL:
        request_free(p.proto)
        p.proto = NULL
    p.has_reply = False
    p.json.len = 0


cdef void plan_learn(Plan* p, Request* r, const char* json, size_t json_len, const uint8_t* bin, size_t bin_len,
                     size_t max_input) noexcept nogil:
    cdef int32_t i
    cdef tf_error e
    cdef Request* proto
    cdef bint again = (p.proto == NULL and p.json.len == json_len and p.bin_len == bin_len
                       and memcmp(p.json.data, json, json_len) == 0)
    plan_forget(p)
    if json_len == 0 or json_len > PLAN_MAX_JSON or r.n_inputs > PLAN_MAX_TENSORS or r.params != NULL or r.lent != NULL:
        return
    for i in range(r.n_inputs):
        if r.inputs[i].dtype == DT_STRING or not lies_in(&r.inputs[i], bin, bin_len):
            return
    for i in range(r.n_wanted):
        if r.wanted[i].classes:     # classification changes the wanted outputs of its request
            return
    tf_buf_put(&p.json, json, json_len)
    p.bin_len = bin_len
    if p.json.failed:
        tf_buf_free(&p.json)
        return
    if not again:
        return
    proto = request_new(r.model)
    if proto == NULL:
        return
    if (json_decode_infer(proto, p.json.data, json_len, bin, bin_len, True, max_input, NULL, &e) != 0
            or request_validate(proto, &e) != 0):
        request_free(proto)
        return
    for i in range(proto.n_inputs):
        p.offsets[i] = <size_t>(proto.inputs[i].ptr - bin)
        proto.inputs[i].ptr = NULL
    p.proto = proto


cdef bint plan_reply_matches(Plan* p, Response* r) noexcept nogil:
    cdef int32_t i, d
    cdef Tensor* t
    if not p.has_reply or r.n_outputs != p.n_outputs or r.params != NULL:
        return False
    for i in range(r.n_outputs):
        t = &r.outputs[i]
        if (t.index != p.out_index[i] or t.ndim != p.out_ndim[i] or t.dtype != p.out_dtype[i]
                or t.nbytes != p.out_nbytes[i]):
            return False
        for d in range(t.ndim):
            if t.dims[d] != p.out_dims[i * 8 + d]:
                return False
    return True


cdef void plan_reply_learn(Plan* p, Response* r, const char* head, size_t n, int32_t n_binary,
                           const int32_t* binary_index) noexcept nogil:
    cdef int32_t i, d
    cdef Tensor* t
    p.has_reply = False
    # Every output must be binary: JSON data are part of the text and differ.
    if r.n_outputs > PLAN_MAX_TENSORS or r.params != NULL or n > 4 * PLAN_MAX_JSON:
        return
    for i in range(r.n_outputs):
        t = &r.outputs[i]
        if t.ndim > 8 or t.dtype == DT_STRING or t.nbytes == 0:
            return
        p.out_index[i] = t.index
        p.out_ndim[i] = t.ndim
        p.out_dtype[i] = t.dtype
        p.out_nbytes[i] = t.nbytes
        for d in range(t.ndim):
            p.out_dims[i * 8 + d] = t.dims[d]
    if n_binary != r.n_outputs:
        return
    p.n_outputs = r.n_outputs
    p.n_binary = n_binary
    for i in range(n_binary):
        p.binary_index[i] = binary_index[i]
    p.reply.len = 0
    tf_buf_put(&p.reply, head, n)
    p.has_reply = not p.reply.failed


cdef void plan_free(Plan* p) noexcept nogil:
    plan_forget(p)
    tf_buf_free(&p.json)
    tf_buf_free(&p.reply)
