# What a connection remembers of its last infer request, so that an equal JSON head is not parsed twice and an equal
# reply head is not printed twice. Knows structs only; no sockets, no Python objects.
from libc.stdint cimport int32_t, int64_t, uint8_t

from triton_fast._native.core.native cimport tf_buf, tf_error
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Request, Response

cdef enum:
    PLAN_MAX_JSON = 4096
    PLAN_MAX_TENSORS = 16

# json: the last head, copied. proto: that head decoded and validated against a model; it is never submitted, requests
# made from it borrow its names, dims and wanted outputs. So the plan must outlive them and must not change while one
# is in flight (a connection has one request in flight at a time).
cdef struct Plan:
    tf_buf json
    size_t bin_len
    Request* proto
    size_t[16] offsets                  # of each input in the binary part
    bint has_reply
    tf_buf reply                        # HTTP head and JSON of the last reply made from proto
    int32_t n_outputs
    int32_t n_binary
    int32_t[16] binary_index
    int32_t[16] out_index
    int32_t[16] out_ndim
    int32_t[16] out_dtype
    int64_t[128] out_dims            # 8 for each output
    size_t[16] out_nbytes


# Whether the plan knows this head for this model; then plan_request makes the request (NULL: out of memory).
cdef bint plan_matches(Plan* p, Model* m, const char* json, size_t json_len, size_t bin_len) noexcept nogil
cdef Request* plan_request(Plan* p, const uint8_t* bin) noexcept nogil
# Remember a head that just decoded into r. The first time only its text is kept; when the next one is equal, it is
# decoded once more into a prototype.
cdef void plan_learn(Plan* p, Request* r, const char* json, size_t json_len, const uint8_t* bin, size_t bin_len,
                     size_t max_input) noexcept nogil
cdef bint plan_reply_matches(Plan* p, Response* r) noexcept nogil
cdef void plan_reply_learn(Plan* p, Response* r, const char* head, size_t n, int32_t n_binary,
                           const int32_t* binary_index) noexcept nogil
cdef void plan_forget(Plan* p) noexcept nogil
cdef void plan_free(Plan* p) noexcept nogil
