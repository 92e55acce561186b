# The v2 infer response as JSON, with the order of its binary sections. C++ (std::to_chars).
from libc.stdint cimport int32_t, int64_t, uint32_t

from triton_fast._native.core.labels cimport LabelTable
from triton_fast._native.core.native cimport tf_buf, tf_error
from triton_fast._native.core.request cimport Request, Response
from triton_fast._native.core.tensor cimport Param, Tensor


# Write the JSON part of a successful response to out, and the indices (into p.outputs) of the tensors that must follow
# it as binary to binary_index (room for p.n_outputs). An output is binary when its Wanted says so, or the request's
# binary_default. Returns the number of binary tensors, or -1 with e filled (FP16/BF16 as JSON, ...).
cdef int32_t json_encode_reply(Response* p, LabelTable** labels, tf_buf* out, int32_t* binary_index,
                               tf_error* e) noexcept nogil
# Parameters as a JSON object; p may be NULL.
cdef void json_put_params(tf_buf* out, Param* p) noexcept nogil
# The value of one parameter.
cdef void json_put_param(tf_buf* out, Param* p) noexcept nogil
# The elements of an output, comma-separated, without brackets. 0, or -1 with e filled.
cdef int json_put_tensor(Request* r, Tensor* t, tf_buf* out, tf_error* e) noexcept nogil


cdef inline void output_name(Request* r, Tensor* t, const char** name, uint32_t* n) noexcept nogil:
    if r.model != NULL and 0 <= t.index < r.model.n_outputs:
        name[0] = r.model.outputs[t.index].name
        n[0] = r.model.outputs[t.index].name_len
    elif t.name != NULL:
        name[0] = t.name
        n[0] = t.name_len
    else:
        name[0] = b""
        n[0] = 0
