# See body.pxd. JSON with binary tensors, or raw binary data; the plan short-cuts a head seen before.
from libc.stdint cimport uint8_t
from libc.string cimport memcpy

from triton_fast._native.core.memory cimport Block, body_grow, body_whole
from triton_fast._native.core.native cimport TF_INVALID_ARG, TF_UNSUPPORTED, tf_error, tf_fail
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Request, request_free, request_new
from triton_fast._native.core.validate cimport request_from_raw, request_validate
from triton_fast._native.http.head cimport Info, Limits
from triton_fast._native.http.plan cimport Plan, plan_learn, plan_matches, plan_request
from triton_fast._native.wire.chunked cimport Chunked, chunked_feed
from triton_fast._native.wire.json_infer cimport json_decode_infer

from triton_fast.errors import NO_ROOM, Unavailable

cdef enum:
    NOGIL_JSON = 65536          # JSON of this size takes long enough to let other threads have the GIL


cdef Request* body_request(Model* model, Info* info, Limits* limits, Plan* plan, Block* block, size_t at, size_t n,
                           bint* planned, tf_error* e) except? NULL:
    cdef const char* json = b""
    cdef size_t json_len = n
    cdef const uint8_t* binary
    cdef size_t binary_len
    cdef Request* r
    cdef int rc
    cdef bint raw = info.has_header_len and info.header_len == 0
    planned[0] = False
    if block != NULL:
        json = <const char*>block.data + at
    if model.decoupled:
        tf_fail(e, TF_UNSUPPORTED, "HTTP end point doesn't support models with decoupled transaction policy")
        return NULL
    if info.has_header_len and not raw:
        if info.header_len < 0 or <size_t>info.header_len > n:
            tf_fail(e, TF_INVALID_ARG, "inference header size should be in range (0, %zu), got: %lld", n,
                    <long long>info.header_len)
            return NULL
        json_len = <size_t>info.header_len
    if raw and n > limits.max_input:
        tf_fail(e, TF_INVALID_ARG, "Raw input has a byte_size (%zu bytes) that exceeds the maximum allowed value of "
                "%zu bytes. Use --http-max-input-size to increase the limit.", n, limits.max_input)
        return NULL
    if json_len > limits.max_input:
        tf_fail(e, TF_INVALID_ARG, "request JSON size of %zu bytes exceeds the maximum allowed input size of %zu "
                "bytes. Use --http-max-input-size to increase the limit.", json_len, limits.max_input)
        return NULL
    binary = <const uint8_t*>json + json_len
    binary_len = n - json_len
    if not raw and plan_matches(plan, model, json, json_len, binary_len):
        r = plan_request(plan, binary)
        if r == NULL:
            raise MemoryError
        planned[0] = True
    else:
        r = request_new(model)
        if r == NULL:
            raise MemoryError
        if raw:
            rc = request_from_raw(r, json, n, e)
        elif json_len >= NOGIL_JSON:
            with nogil:
                rc = json_decode_infer(r, json, json_len, binary, binary_len, info.has_header_len,
                                       limits.max_input, limits.regions, e)
        else:
            rc = json_decode_infer(r, json, json_len, binary, binary_len, info.has_header_len,
                                   limits.max_input, limits.regions, e)
        if rc == 0:
            rc = request_validate(r, e)
        if rc != 0:
            request_free(r)
            return NULL
        if not raw and info.has_header_len:
            plan_learn(plan, r, json, json_len, binary, binary_len, limits.max_input)
    r.body = block
    return r


cdef Block* block_of(bytes data) except NULL:
    cdef Block* block = body_whole(len(data))
    if block == NULL:
        raise Unavailable(NO_ROOM)
    memcpy(block.data, <const char*>data, len(data))
    return block


cdef int chunks_take(Chunked* c, Block** block, size_t at, size_t* received, const uint8_t* data, size_t n,
                     size_t* used) noexcept:
    cdef size_t taken, made
    cdef int rc
    used[0] = 0
    while True:
        if received[0] == block[0].cap - at:
            if body_grow(block, at, received[0], 2 * block[0].cap) != 0:
                return CHUNKS_NO_MEMORY
        rc = chunked_feed(c, data + used[0], n - used[0], block[0].data + at + received[0],
                          block[0].cap - at - received[0], &taken, &made)
        used[0] += taken
        received[0] += made
        if rc != 0 or used[0] == n:
            return rc
