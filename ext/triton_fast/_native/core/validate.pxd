# A decoded request against its model: the checks every protocol shares. See spec texts 27-36 of the HTTP page.
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Request


# Resolve names to indices, check counts, datatypes, shapes, byte sizes and string elements; set by_index, batch,
# shape_key. Returns 0, or -1 with e filled.
cdef int request_validate(Request* r, tf_error* e) noexcept nogil
# Turn a body that is the data of the model's only input into r.inputs (raw binary mode); bytes are borrowed.
cdef int request_from_raw(Request* r, const char* data, size_t n, tf_error* e) noexcept nogil
