# From the bytes of a body to a decoded, validated Request.
from libc.stdint cimport uint8_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Request
from triton_fast._native.http.head cimport Info, Limits
from triton_fast._native.http.plan cimport Plan
from triton_fast._native.wire.chunked cimport Chunked


cdef enum:
    CHUNKS_NO_MEMORY = -2

# Decode n bytes of a chunked body behind the *received bytes at block[at:], which grows as it must. 1 the body is
# whole, 0 all n bytes were used, -1 refused (c says why), or CHUNKS_NO_MEMORY. *used: bytes of data that belong to
# the body.
cdef int chunks_take(Chunked* c, Block** block, size_t at, size_t* received, const uint8_t* data, size_t n,
                     size_t* used) noexcept
# A block that holds a copy of data.
cdef Block* block_of(bytes data) except NULL
# block[at : at + n] is the body (block NULL: empty). On success the request has taken over the caller's reference of
# block; *planned says whether it was made from the plan. NULL with e filled when the body is refused.
cdef Request* body_request(Model* model, Info* info, Limits* limits, Plan* plan, Block* block, size_t at, size_t n,
                           bint* planned, tf_error* e) except? NULL
