# From a whole body to a decoded, validated Request.
from libc.stdint cimport int32_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Model, Request
from triton_fast._native.http.head cimport Info, Limits
from triton_fast._native.http.plan cimport Plan


# block[at : at + n] is the body (block NULL: empty). On success the request has taken over the caller's reference of
# block; *planned says whether it was made from the plan. NULL with e filled when the body is refused.
cdef Request* body_request(Model* model, Info* info, Limits* limits, Plan* plan, Block* block, size_t at, size_t n,
                           bint* planned, tf_error* e) except? NULL
