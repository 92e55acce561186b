# distutils: language = c++
# The v2 infer response as JSON, with its binary outputs announced. Reads native structs only; knows nothing of HTTP or
# sockets. Everything runs without the GIL but the test entries.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset, strlen

from triton_fast._native.core.native cimport (
    DT_BF16, DT_FP16, DT_STRING, MEM_CLIENT, MEM_GPU, TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE, dtype_name,
    dtype_size, tf_buf, tf_buf_char, tf_buf_free, tf_buf_put, tf_error, tf_fail,
)
from triton_fast._native.core.model cimport Model, ModelHandle
from triton_fast._native.core.request cimport (
    Request, Response, request_alloc, request_free, request_new, response_outputs,
)
from triton_fast._native.core.shape cimport elements_of, mul_overflow
from triton_fast._native.core.tensor cimport (
    PARAM_BOOL, PARAM_DOUBLE, PARAM_INT, PARAM_STRING, PARAM_UINT, Param, Tensor, Wanted,
)
from triton_fast._native.wire.classify cimport reply_classify
from triton_fast._native.wire.json_text cimport (
    json_put_double, json_put_int, json_put_numbers, json_put_strings, json_put_uint, json_quote,
)

from triton_fast.errors import make


# --- tensors ----------------------------------------------------------------------------------------------------------

cdef int no_memory(tf_error* e) noexcept nogil:
    return tf_fail(e, TF_UNAVAILABLE, b"out of memory while writing the response")


cdef int fail_output(Request* r, Tensor* t, const char* before, const char* after, tf_error* e) noexcept nogil:
    cdef const char* name
    cdef uint32_t n
    output_name(r, t, &name, &n)
    return tf_fail(e, TF_INTERNAL, b"%s '%.*s'%s", before, <int>(n if n < 1024 else 1024), name, after)


cdef int json_put_tensor(Request* r, Tensor* t, tf_buf* out, tf_error* e) noexcept nogil:
    cdef int64_t count, nbytes = 0
    cdef int32_t size = dtype_size(t.dtype)
    cdef int status = 0
    if t.dtype == DT_FP16 or t.dtype == DT_BF16:
        return tf_fail(e, TF_INVALID_ARG, b"sending %s data via JSON is not supported. Please use the binary data "
                       b"format for output", dtype_name(t.dtype))
    if size == 0 and t.dtype != DT_STRING:
        return tf_fail(e, TF_INVALID_ARG, b"Invalid data type for output tensor")
    if t.kind == MEM_GPU:
        return fail_output(r, t, b"output", b" lies in GPU memory and cannot be written as JSON", e)
    count = elements_of(t.dims, t.ndim)
    if t.dtype == DT_STRING:
        status = json_put_strings(out, t.ptr, t.nbytes, count) if count >= 0 else -2
        if status == -2:
            return fail_output(r, t, b"output tensor shape does not match size of output for", b"", e)
    else:
        if count < 0 or mul_overflow(count, size, &nbytes) or t.nbytes != <size_t>nbytes:
            return fail_output(r, t, b"Failed to write 'data' field: output tensor shape does not match size of output "
                                     b"for", b"", e)
        status = json_put_numbers(out, t.dtype, t.ptr, count)
    return no_memory(e) if status else 0


# --- the reply --------------------------------------------------------------------------------------------------------

cdef void json_put_param(tf_buf* out, Param* p) noexcept nogil:
    if p.kind == PARAM_STRING:
        json_quote(out, p.text, p.text_len)
    elif p.kind == PARAM_BOOL:
        if p.integer:
            tf_buf_put(out, b"true", 4)
        else:
            tf_buf_put(out, b"false", 5)
    elif p.kind == PARAM_DOUBLE:
        json_put_double(out, p.number)
    elif p.kind == PARAM_UINT:
        json_put_uint(out, <uint64_t>p.integer)
    else:
        json_put_int(out, p.integer)


cdef void json_put_params(tf_buf* out, Param* p) noexcept nogil:
    tf_buf_char(out, 123)
    while p != NULL:
        json_quote(out, p.key, p.key_len)
        tf_buf_char(out, 58)
        json_put_param(out, p)
        p = p.next
        if p != NULL:
            tf_buf_char(out, 44)
    tf_buf_char(out, 125)


cdef void put_shape(tf_buf* out, int64_t* dims, int32_t n) noexcept nogil:
    cdef int32_t i
    for i in range(n):
        if i:
            tf_buf_char(out, 44)
        json_put_int(out, dims[i])


# For each of the model's outputs the Wanted that asks for it; NULL when there are none or memory ran out.
cdef Wanted** wanted_by_index(Request* r) noexcept nogil:
    cdef Wanted** table
    cdef int32_t i
    cdef size_t nbytes = <size_t>r.model.n_outputs * sizeof(Wanted*)
    table = <Wanted**>request_alloc(r, nbytes)
    if table != NULL:
        memset(table, 0, nbytes)
        for i in range(r.n_wanted):
            if 0 <= r.wanted[i].index < r.model.n_outputs:
                table[r.wanted[i].index] = &r.wanted[i]
    return table


cdef int put_output(Response* p, int32_t i, bint binary, tf_buf* out, tf_error* e) noexcept nogil:
    cdef Tensor* t = &p.outputs[i]
    cdef const char* name
    cdef uint32_t n
    output_name(p.request, t, &name, &n)
    if i:
        tf_buf_char(out, 44)
    tf_buf_put(out, b'{"name":', 8)
    json_quote(out, name, n)
    tf_buf_put(out, b',"datatype":"', 13)
    name = dtype_name(t.dtype)
    tf_buf_put(out, name, strlen(name))
    tf_buf_put(out, b'","shape":[', 11)
    put_shape(out, t.dims, t.ndim)
    if t.kind == MEM_CLIENT:
        tf_buf_put(out, b"]}", 2)
        return 0
    if binary:
        tf_buf_put(out, b'],"parameters":{"binary_data_size":', 35)
        json_put_uint(out, t.nbytes)
        tf_buf_put(out, b"}}", 2)
        return 0
    tf_buf_put(out, b'],"data":[', 10)
    if json_put_tensor(p.request, t, out, e):
        return -1
    tf_buf_put(out, b"]}", 2)
    return 0


cdef int32_t json_encode_reply(Response* p, LabelTable** labels, tf_buf* out, int32_t* binary_index,
                               tf_error* e) noexcept nogil:
    cdef Request* r = p.request
    cdef Model* m = r.model
    cdef Wanted** asked = NULL
    cdef Wanted* w
    cdef int32_t i, binary, n_binary = 0
    cdef size_t start = out.len
    if reply_classify(p, labels, e):
        return -1
    if r.n_wanted:
        asked = wanted_by_index(r)
        if asked == NULL:
            return no_memory(e)
    tf_buf_char(out, 123)
    if r.id_len:
        tf_buf_put(out, b'"id":', 5)
        json_quote(out, r.id, r.id_len)
        tf_buf_char(out, 44)
    tf_buf_put(out, b'"model_name":', 13)
    json_quote(out, m.name, m.name_len)
    tf_buf_put(out, b',"model_version":"', 18)
    tf_buf_put(out, m.version_text, m.version_len)
    tf_buf_char(out, 34)
    if p.params != NULL:
        tf_buf_put(out, b',"parameters":', 14)
        json_put_params(out, p.params)
    tf_buf_put(out, b',"outputs":[', 12)
    for i in range(p.n_outputs):
        binary = r.binary_default
        if asked != NULL and 0 <= p.outputs[i].index < m.n_outputs:
            w = asked[p.outputs[i].index]
            if w != NULL and w.binary >= 0:
                binary = w.binary
        if put_output(p, i, binary, out, e):
            out.len = start
            return -1
        if binary and p.outputs[i].nbytes:
            binary_index[n_binary] = i
            n_binary += 1
    tf_buf_put(out, b"]}", 2)
    if out.failed:
        out.len = start
        return no_memory(e)
    return n_binary


# --- tests ------------------------------------------------------------------------------------------------------------

include "reply_entry.pxi"


cdef LabelTable** make_labels(Request* r, object labels) except NULL:
    cdef LabelTable** tables = <LabelTable**>room(r, r.model.n_outputs, sizeof(LabelTable*))
    cdef LabelTable* table
    cdef Py_ssize_t k
    for index, texts in labels.items():
        table = <LabelTable*>room(r, 1, sizeof(LabelTable))
        table.n = <uint32_t>len(texts)
        table.text = <char**>room(r, len(texts), sizeof(char*))
        table.text_len = <uint32_t*>room(r, len(texts), sizeof(uint32_t))
        for k in range(len(texts)):
            table.text[k] = keep(r, texts[k].encode(), &table.text_len[k])
        tables[<Py_ssize_t>index] = table
    return tables


def encode(ModelHandle model, outputs, wanted=(), str id="", labels=None, parameters=None, int binary_default=0,
           int repeat=1):
    cdef tf_error e
    cdef tf_buf out
    cdef Request* r = request_new(model.ptr)
    cdef Response* p
    cdef LabelTable** tables = NULL
    cdef int32_t* binary = NULL
    cdef int32_t n_binary = 0, i, _turn
    cdef Py_ssize_t k
    if r == NULL:
        raise MemoryError
    memset(&out, 0, sizeof(out))
    try:
        p = &r.response
        outputs = list(outputs)
        wanted = list(wanted)
        fill_response(r, id, outputs, parameters)
        r.binary_default = binary_default
        if labels is not None:
            tables = make_labels(r, labels)
        r.wanted = <Wanted*>room(r, len(wanted), sizeof(Wanted))
        for k in range(len(wanted)):
            r.wanted[k].index, r.wanted[k].binary, r.wanted[k].classes = wanted[k]
        r.n_wanted = <int32_t>len(wanted)
        binary = <int32_t*>room(r, len(outputs), sizeof(int32_t))
        with nogil:
            for _turn in range(repeat):
                out.len = 0
                n_binary = json_encode_reply(p, tables, &out, binary, &e)
        if n_binary < 0:
            raise make(e.code, e.text[:e.len].decode(errors="replace"))
        sections = [(<char*>p.outputs[binary[i]].ptr)[:p.outputs[binary[i]].nbytes] for i in range(n_binary)]
        return out.data[:out.len], sections
    finally:
        tf_buf_free(&out)
        request_free(r)
