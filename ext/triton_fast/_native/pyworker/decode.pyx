# See decode.pxd. Every length is held against what is left of the record, every tensor against region and shape.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy

from triton_fast._native.core.marks cimport FLAG_SEQUENCE_END, FLAG_SEQUENCE_START
from triton_fast._native.core.memory cimport Block, block_new, block_ref, block_unref
from triton_fast._native.core.native cimport (
    DT_COUNT, DT_STRING, MEM_CPU, TF_CANCELLED, TF_INTERNAL, TF_INVALID_ARG, TF_OK, dtype_size, tf_buf, tf_buf_put,
    tf_error, tf_fail, tf_text_clean,
)
from triton_fast._native.core.model cimport MAX_RANK, Model
from triton_fast._native.core.outputs cimport request_needs
from triton_fast._native.core.request cimport (
    Request, Response, request_alloc, request_free, request_new, response_fail, response_outputs,
)
from triton_fast._native.core.shape cimport elements_of, mul_overflow
from triton_fast._native.core.tensor cimport MAX_TENSORS, PARAM_BOOL, PARAM_STRING, Param, Tensor, Wanted
from triton_fast._native.core.validate cimport request_validate
from triton_fast._native.pyworker.layout cimport (
    BlsRecord, ParamRecord, ResponseRecord, TensorRecord, padded,
)
from triton_fast._native.pyworker.region cimport (
    Region, inbound_block, is_outbound, outbound_block, outbound_release,
)

cdef enum:
    MAX_RECORD = 268435456


cdef struct Reader:
    const char* p
    size_t left


cdef int copy_out(Region* g, uint64_t off, uint64_t n, tf_buf* out) noexcept nogil:
    if n > MAX_RECORD or not is_outbound(g, off, n):
        return -1
    out.len = 0
    out.failed = 0
    tf_buf_put(out, g.base + off, n)
    return -1 if out.failed else 0


cdef int copy_record(Region* g, uint64_t off, size_t least, uint64_t limit, tf_buf* out) noexcept nogil:
    cdef uint32_t n = 0
    if limit < least or not is_outbound(g, off, least):
        return -1
    memcpy(&n, g.base + off, 4)
    if n < least or n > limit or n & 7 or copy_out(g, off, n, out) != 0:
        return -1
    memcpy(out.data, &n, 4)     # the worker may have changed it between the two looks
    return 0


cdef void source_begin(Source* s, Region* g, uint64_t off) noexcept nogil:
    s.region = g
    s.off = off
    s.block = NULL


cdef void source_end(Source* s) noexcept nogil:
    if s.block != NULL:
        block_unref(s.block)
    elif s.off:
        outbound_release(s.region, s.off)
    s.block = NULL
    s.off = 0


# n bytes, padded; NULL: there are not so many.
cdef inline const char* take(Reader* d, size_t n) noexcept nogil:
    cdef const char* p = d.p
    if n > d.left or padded(n) > d.left:
        return NULL
    d.p += padded(n)
    d.left -= padded(n)
    return p


# A text of n bytes, copied into r's memory and made UTF-8, with its length; *out is NULL for none. -1: it is not there.
cdef int take_text(Reader* d, Request* r, uint32_t n, const char** out, uint32_t* length) noexcept nogil:
    cdef const char* p = take(d, n)
    out[0] = NULL
    length[0] = 0
    if p == NULL:
        return -1
    return copy_text(r, p, n, out, length) if n else 0


cdef int copy_text(Request* r, const char* p, uint32_t n, const char** out, uint32_t* length) noexcept nogil:
    cdef size_t size = tf_text_clean(p, n, NULL)
    cdef char* copy = <char*>request_alloc(r, size)
    if copy == NULL or size > <size_t>0xFFFFFFFF:
        return -1
    tf_text_clean(p, n, copy)
    out[0] = copy
    length[0] = <uint32_t>size
    return 0


cdef bint are_strings(const uint8_t* p, size_t left, int64_t count) noexcept nogil:
    cdef uint32_t n = 0
    while count > 0:
        if left < 4:
            return False
        memcpy(&n, p, 4)
        left -= 4
        if n > left:
            return False
        p += 4 + n
        left -= n
        count -= 1
    return left == 0


# Dims, and data that lie at record.off, into t. 0; 1: size and shape disagree; -1: no worker writes that.
cdef int fill_tensor(Source* s, TensorRecord* record, const char* dims, Request* r, Tensor* t,
                     bint private) noexcept nogil:
    cdef int64_t count, size = 0
    t.dtype = record.dtype
    t.ndim = record.ndim
    t.dims = <int64_t*>request_alloc(r, (<size_t>t.ndim + 1) * sizeof(int64_t))
    if t.dims == NULL:
        return -1
    memcpy(t.dims, dims, <size_t>t.ndim * sizeof(int64_t))
    count = elements_of(t.dims, t.ndim)
    if count < 0 or (record.dtype != DT_STRING
                     and (mul_overflow(count, dtype_size(t.dtype), &size) or <uint64_t>size != record.nbytes)):
        return 1
    t.kind = MEM_CPU
    t.device = 0
    t.nbytes = record.nbytes
    if record.nbytes == 0:
        return 1 if record.dtype == DT_STRING and count != 0 else 0
    if is_outbound(s.region, record.off, record.nbytes):
        if not private and record.dtype != DT_STRING:
            if s.block == NULL:
                s.block = outbound_block(s.region, s.off, 0)
                if s.block == NULL:
                    return -1
            block_ref(s.block)
            t.block = s.block
            t.ptr = s.region.base + record.off
            return 0
        t.block = block_new(record.nbytes)
        if t.block == NULL:
            return -1
        memcpy(t.block.data, s.region.base + record.off, record.nbytes)
        t.ptr = t.block.data
        if record.dtype == DT_STRING and not are_strings(t.ptr, t.nbytes, count):
            return 1
        return 0
    t.block = inbound_block(s.region, record.off, record.nbytes)
    if t.block == NULL:
        return -1
    t.ptr = t.block.data
    # Readers take numbers as they lie: those of a slice that is not aligned are copied too.
    if private or record.dtype == DT_STRING or record.off % dtype_size(t.dtype) != 0:
        return copy_private(t, count)
    return 0


# Have t's data in memory that no worker can change.
cdef int copy_private(Tensor* t, int64_t count) noexcept nogil:
    cdef Block* shared = t.block
    t.block = block_new(t.nbytes)
    if t.block == NULL:
        t.block = shared
        return -1
    memcpy(t.block.data, shared.data, t.nbytes)
    t.ptr = t.block.data
    block_unref(shared)
    return 1 if t.dtype == DT_STRING and not are_strings(t.ptr, t.nbytes, count) else 0


cdef int take_record(Reader* d, TensorRecord* record, const char** dims) noexcept nogil:
    cdef const char* p = take(d, sizeof(TensorRecord))
    if p == NULL:
        return -1
    memcpy(record, p, sizeof(TensorRecord))
    if record.dtype <= 0 or record.dtype >= DT_COUNT or record.ndim > MAX_RANK:
        return -1
    dims[0] = take(d, <size_t>record.ndim * sizeof(int64_t))
    return -1 if dims[0] == NULL else 0


# The binary form that workers send parameters in.
cdef int take_params(Reader* whole, uint32_t nbytes, Request* r, Param** first) noexcept nogil:
    cdef ParamRecord record
    cdef Param* p
    cdef Param** link = first
    cdef Reader d
    cdef const char* at
    cdef uint32_t n = 0
    d.p = take(whole, nbytes)
    d.left = nbytes
    first[0] = NULL
    if d.p == NULL:
        return -1
    if nbytes == 0:
        return 0
    at = take(&d, 8)
    if at == NULL:
        return -1
    memcpy(&n, at, 4)
    while n > 0:
        at = take(&d, sizeof(ParamRecord))
        p = <Param*>request_alloc(r, sizeof(Param))
        if at == NULL or p == NULL:
            return -1
        memcpy(&record, at, sizeof(ParamRecord))
        if record.kind > PARAM_BOOL or take_text(&d, r, record.key_len, &p.key, &p.key_len) != 0:
            return -1
        p.next = NULL
        p.kind = <int32_t>record.kind
        p.integer = <int64_t>record.value
        p.number = 0
        p.text = NULL
        p.text_len = 0
        if record.kind == PARAM_STRING:
            if record.value > <uint64_t>0xFFFFFFFF \
                    or take_text(&d, r, <uint32_t>record.value, &p.text, &p.text_len) != 0:
                return -1
        link[0] = p
        link = &p.next
        n -= 1
    return 0


cdef int32_t find_output(Model* m, const char* name, uint32_t n) noexcept nogil:
    cdef int32_t i
    for i in range(m.n_all_outputs):
        if m.outputs[i].name_len == n and memcmp(m.outputs[i].name, name, n) == 0:
            return i
    return -1


cdef void fail_with(Response* p, const char* before, const char* name, size_t n, const char* after) noexcept nogil:
    cdef tf_error e
    cdef Model* m = p.request.model
    tf_fail(&e, TF_INTERNAL, b"%s'%.*s'%s'%.*s'", before, <int>(n if n < 4096 else 4096), name, after,
            <int>m.name_len, m.name)
    response_fail(p, TF_INTERNAL, e.text, e.len)


cdef int decode_response(Source* s, const char* data, size_t n, Response* p) noexcept nogil:
    cdef ResponseRecord head
    cdef TensorRecord record
    cdef Request* r = p.request
    cdef Model* m = r.model
    cdef Reader d
    cdef Tensor* t
    cdef uint32_t _i
    cdef int32_t index, filled = 0, status
    cdef uint64_t total = 0
    cdef const char* dims = NULL
    cdef const char* text
    d.p = data
    d.left = n
    text = take(&d, sizeof(ResponseRecord))
    if text == NULL:
        return -1
    memcpy(&head, text, sizeof(ResponseRecord))
    if head.n_outputs > d.left // sizeof(TensorRecord) or head.n_outputs > MAX_TENSORS or head.code > TF_CANCELLED:
        return -1
    if head.code != TF_OK:
        # The tensors of an error are ignored, but must be skipped.
        for _i in range(head.n_outputs):
            if take_record(&d, &record, &dims) != 0 or (record.name < 0 and take(&d, -1 - <size_t>record.name) == NULL):
                return -1
        text = take(&d, head.error_len)
        if text == NULL:
            return -1
        response_fail(p, head.code if head.code >= 0 else TF_INTERNAL, text, head.error_len)
        return 0
    # Counted one by one: a record that ends half-way leaves whole tensors only.
    t = response_outputs(p, <int32_t>head.n_outputs)
    if t == NULL:
        return -1
    p.n_outputs = 0
    for _i in range(head.n_outputs):
        if take_record(&d, &record, &dims) != 0:
            return -1
        if record.name >= 0:
            index = record.name
            if index >= m.n_all_outputs:
                return -1
        else:
            text = take(&d, -1 - <size_t>record.name)
            if text == NULL:
                return -1
            index = find_output(m, text, <uint32_t>(-1 - record.name))
            if index < 0:
                fail_with(p, b"unexpected inference output ", text, -1 - <size_t>record.name, b" for model ")
                return 0
        if not request_needs(r, index):
            continue
        # An output may come twice, and of another type than the config's, as with Triton. But thousands of the same
        # memory would have no bound.
        total += record.nbytes
        if record.nbytes > s.region.size or total > s.region.size * <uint64_t>m.n_outputs:
            return -1
        t.index = index
        p.n_outputs = filled + 1
        # What the scheduler keeps must not change, nor keep the worker's memory.
        status = fill_tensor(s, &record, dims, r, t, m.outputs[index].kept)
        if status < 0:
            return -1
        if status > 0:
            fail_with(p, b"data size does not match the shape of output ", m.outputs[index].name,
                      m.outputs[index].name_len, b" of model ")
            return 0
        t += 1
        filled += 1
    if take(&d, head.error_len) == NULL:
        return -1
    return take_params(&d, head.params_len, r, &p.params)


cdef int bls_model(const char* data, size_t n, const char** name) noexcept nogil:
    cdef BlsRecord head
    cdef TensorRecord record
    cdef const char* dims = NULL
    cdef const char* text
    cdef uint32_t _i, length = 0
    cdef Reader d
    d.p = data
    d.left = n
    text = take(&d, sizeof(BlsRecord))
    if text == NULL:
        return -1
    memcpy(&head, text, sizeof(BlsRecord))
    if head.n_inputs > MAX_TENSORS or head.n_wanted > MAX_TENSORS:
        return -1
    for _i in range(head.n_inputs):
        if take_record(&d, &record, &dims) != 0 or record.name >= 0 or take(&d, -1 - <size_t>record.name) == NULL:
            return -1
    for _i in range(head.n_wanted):
        if d.left < 4:
            return -1
        memcpy(&length, d.p, 4)
        if take(&d, 4 + <size_t>length) == NULL:
            return -1
    name[0] = take(&d, head.model_len)
    return -1 if name[0] == NULL else 0


# After bls_model found the record whole up to the model's name.
cdef int fill_bls(Source* s, const char* data, size_t n, Request* r, tf_error* e) noexcept nogil:
    cdef BlsRecord head
    cdef TensorRecord record
    cdef const char* dims = NULL
    cdef const char* text
    cdef Tensor* t
    cdef uint32_t i, length = 0
    cdef uint64_t total = 0, most = s.region.size * <uint64_t>(r.model.n_inputs + 1)
    cdef int status
    cdef Reader d
    memcpy(&head, data, sizeof(BlsRecord))
    d.p = data + sizeof(BlsRecord)
    d.left = n - sizeof(BlsRecord)
    r.flags = head.flags & (FLAG_SEQUENCE_START | FLAG_SEQUENCE_END)
    r.correlation = head.correlation
    r.timeout_us = head.timeout_us
    r.inputs = <Tensor*>request_alloc(r, (<size_t>head.n_inputs + 1) * sizeof(Tensor))
    r.wanted = <Wanted*>request_alloc(r, (<size_t>head.n_wanted + 1) * sizeof(Wanted))
    if r.inputs == NULL or r.wanted == NULL:
        return -1
    for i in range(head.n_inputs):
        take_record(&d, &record, &dims)
        t = &r.inputs[i]
        t.block = NULL
        t.ptr = NULL
        t.index = -1
        if take_text(&d, r, <uint32_t>(-1 - record.name), &t.name, &t.name_len) != 0:
            return -1
        if t.name == NULL:
            t.name = b""
        r.n_inputs = <int32_t>(i + 1)
        # The same memory may come for two inputs, but thousands of them would have no bound.
        total += record.nbytes
        if record.nbytes > s.region.size or total > most:
            return -1
        status = fill_tensor(s, &record, dims, r, t, True)
        if status < 0:
            return -1
        if status > 0:
            return tf_fail(e, TF_INVALID_ARG, b"data size does not match the shape of input '%.*s'",
                           <int>t.name_len, t.name)
    for i in range(head.n_wanted):
        memcpy(&length, d.p, 4)
        text = take(&d, 4 + <size_t>length)
        if copy_text(r, text + 4, length, &r.wanted[i].name, &r.wanted[i].name_len) != 0:
            return -1
        r.wanted[i].index = -1
        r.wanted[i].binary = 1
        r.wanted[i].classes = 0
    r.n_wanted = <int32_t>head.n_wanted
    take(&d, head.model_len)
    if take_text(&d, r, head.id_len, &r.id, &r.id_len) != 0 \
            or take_text(&d, r, head.correlation_len, &r.correlation_text, &r.correlation_len) != 0 \
            or take_params(&d, head.params_len, r, &r.params) != 0:
        return -1
    return take_text(&d, r, head.trace_len, &r.trace, &r.trace_len)


cdef Request* decode_bls(Source* s, const char* data, size_t n, Model* model, tf_error* e) noexcept nogil:
    cdef Request* r = request_new(model)
    tf_fail(e, TF_INTERNAL, b"malformed request, or out of memory")
    if r == NULL:
        return NULL
    if fill_bls(s, data, n, r, e) != 0 or request_validate(r, e) != 0:
        request_free(r)
        return NULL
    return r
