# A decoded request against its model: the checks every protocol shares. See spec texts 27-36 of the HTTP page.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.tensor cimport Tensor


# Resolve names to indices, check counts, datatypes, shapes, byte sizes and string elements; set by_index, batch,
# shape_key. Returns 0, or -1 with e filled.
cdef int request_validate(Request* r, tf_error* e) noexcept nogil
# Of an input of `count` strings that request_validate could not look into (kind MEM_GPU), once its bytes are in host
# memory: what there was left to check. Same returns.
cdef int check_strings(Request* r, Tensor* t, int64_t count, tf_error* e) noexcept nogil
# Turn a body that is the data of the model's only input into r.inputs (raw binary mode); bytes are borrowed.
cdef int request_from_raw(Request* r, const char* data, size_t n, tf_error* e) noexcept nogil


# Elements of a tensor whose dims were checked.
cdef inline int64_t text_count(Tensor* t) noexcept nogil:
    cdef int64_t n = 1
    cdef int32_t i
    for i in range(t.ndim):
        n *= t.dims[i]
    return n
