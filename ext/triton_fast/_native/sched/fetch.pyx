# See fetch.pxd. A tensor whose copy is under way has kind MEM_GPU still and a block that has not. The region that it is
# copied from is held by its client's request (Request.lent), which outlives all that is made of it.
from libc.stdint cimport INT32_MAX, int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from triton_fast._native.core.marks cimport FLAG_DEVICE, FLAG_LENT
from triton_fast._native.core.memory cimport FIRST_BODY, Block, block_ref, block_unref, body_whole
from triton_fast._native.core.model cimport ModelHandle
from triton_fast._native.core.native cimport (
    DT_STRING, MEM_CLIENT, MEM_CPU, MEM_GPU, TF_INVALID_ARG, TF_OK, TF_UNAVAILABLE, tf_error, tf_fail,
)
from triton_fast._native.core.regions cimport FOR_INPUT, SharedRegions, lent_kind, lent_settle, region_lend
from triton_fast._native.core.request cimport Request, request_alloc, request_free, request_new, response_fail_error
from triton_fast._native.core.tensor cimport Lent, Tensor
from triton_fast._native.core.validate cimport check_strings, text_count
from triton_fast._native.cuda.flow cimport Flow, flow_begin, flow_end, flow_out

from triton_fast.errors import NO_ROOM as NO_ROOM_TEXT, make

cdef bytes NO_ROOM_BYTES = NO_ROOM_TEXT.encode()
cdef const char* NO_ROOM = NO_ROOM_BYTES


cdef inline bint is_away(Tensor* t) noexcept nogil:
    return t.block == NULL or t.block.kind == MEM_GPU


# Begin to copy t. -1 with e: with memory of its own all the same, unless there was none.
cdef int begin(Flow* flow, Tensor* t, tf_error* e) noexcept nogil:
    # The client says how much; it counts as if it had sent it.
    cdef Block* block = body_whole(t.nbytes)
    cdef void* origin = t.ptr
    if block == NULL:
        return tf_fail(e, TF_UNAVAILABLE, "%s", NO_ROOM)
    block_unref(t.block)
    t.block = block
    t.ptr = block.data
    return flow_out(flow, t.device, t.ptr, origin, t.nbytes, e)


# What the backend gets for a tensor that could not be had, if it must get one.
cdef void clear(Tensor* t) noexcept nogil:
    if t.dtype == DT_STRING:
        t.nbytes = <size_t>text_count(t) * 4    # empty ones; request_validate saw that there is room
    memset(t.ptr, 0, t.nbytes)


cdef inline bint stays(Tensor* t, int32_t device) noexcept nogil:
    return t.device == device and t.dtype != DT_STRING


cdef inline bint is_wanted(Tensor* t, int32_t device) noexcept nogil:
    return t.kind == MEM_GPU and not stays(t, device)


cdef void begin_all(Flow* flow, Request* r, int32_t device) noexcept nogil:
    cdef tf_error e
    cdef int32_t i
    for i in range(r.n_inputs):
        if is_wanted(&r.inputs[i], device) and begin(flow, &r.inputs[i], &e) != 0:
            response_fail_error(&r.response, &e)


# The copies have ended, or failed with `broken`. -1: an input got no memory, so nothing can be executed in r's place.
cdef int finish_all(Request* r, int32_t device, tf_error* broken) noexcept nogil:
    cdef tf_error e
    cdef Tensor* t
    cdef int32_t i
    for i in range(r.n_inputs):
        t = &r.inputs[i]
        if not is_wanted(t, device):
            continue
        if is_away(t):
            return -1
        t.kind = MEM_CPU
        t.device = 0
        if broken != NULL:
            response_fail_error(&r.response, broken)
        elif t.dtype == DT_STRING and r.response.code == TF_OK and check_strings(r, t, text_count(t), &e) != 0:
            response_fail_error(&r.response, &e)
        if r.response.code != TF_OK:
            clear(t)
    return 0


# Copy r's inputs out of its client's memory. -1: one got no memory of its own, so nothing can be executed in r's place.
cdef int settle_all(Request* r) noexcept nogil:
    cdef tf_error e
    cdef Tensor* t
    cdef int32_t i
    for i in range(r.n_inputs):
        t = &r.inputs[i]
        if lent_settle(r, t, &e) != 0:
            response_fail_error(&r.response, &e)
            if t.block.kind == MEM_CLIENT:
                return -1
    return 0


cdef int32_t fetch_batch(Request** requests, int32_t n, int32_t device, bint placed,
                         int32_t copies_from) noexcept nogil:
    cdef Flow flow
    cdef Request* r
    cdef tf_error e
    cdef tf_error* broken
    cdef int32_t i, good = 0, left = n
    cdef bint lacking = False
    flow_begin(&flow)
    for i in range(n):
        if requests[i].flags & FLAG_DEVICE:
            begin_all(&flow, requests[i], device)
    broken = &e if flow_end(&flow, &e) != 0 else NULL
    for i in range(n):
        if requests[i].flags & FLAG_DEVICE and finish_all(requests[i], device, broken) != 0:
            lacking = True
        if requests[i].response.code != TF_OK and not placed:
            left -= 1
    # So many the backend gets, and what it does with their inputs depends on that.
    if left < copies_from:
        for i in range(n):
            if requests[i].flags & FLAG_LENT and settle_all(requests[i]) != 0:
                lacking = True
    if placed and lacking:
        tf_fail(&e, TF_UNAVAILABLE, "%s", NO_ROOM)
        for i in range(n):
            if requests[i].response.code == TF_OK:
                response_fail_error(&requests[i].response, &e)
    elif placed:
        return n
    for i in range(n):
        r = requests[i]
        r.order = <uint64_t>i
        if r.response.code == TF_OK:
            requests[i] = requests[good]
            requests[good] = r
            good += 1
    return good


# An insertion sort: most are where they belong.
cdef void fetch_restore(Request** requests, int32_t n) noexcept nogil:
    cdef Request* r
    cdef int32_t i, k, kept = 0
    for i in range(n):
        r = requests[i]
        if r == NULL:
            continue
        k = kept
        while k > 0 and requests[k - 1].order > r.order:
            requests[k] = requests[k - 1]
            k -= 1
        requests[k] = r
        kept += 1
    for i in range(kept, n):
        requests[i] = NULL


cdef int fetch_tensor(Tensor* t, tf_error* e) noexcept nogil:
    cdef Flow flow
    cdef tf_error later
    cdef int status
    flow_begin(&flow)
    status = begin(&flow, t, e)
    if flow_end(&flow, &later if status != 0 else e) != 0:
        status = -1
    if is_away(t):
        return -1
    t.kind = MEM_CPU
    t.device = 0
    if status != 0:
        memset(t.ptr, 0, t.nbytes)
    return status


cdef int fetch_texts(Request* r, tf_error* e) noexcept nogil:
    cdef Tensor* t
    cdef int32_t i
    for i in range(r.n_inputs):
        t = &r.inputs[i]
        if t.kind != MEM_GPU or t.dtype != DT_STRING:
            continue
        if t.nbytes > FIRST_BODY:       # the network's thread waits for this
            return tf_fail(e, TF_INVALID_ARG,
                           b"texts in GPU memory of a request that is cut may have %d bytes, input '%.*s' has %zu",
                           <int>FIRST_BODY, <int>min(t.name_len, 200), t.name, t.nbytes)
        if fetch_tensor(t, e) != 0 or check_strings(r, t, text_count(t), e) != 0:
            return -1
    return 0


# ---- tests

cdef int lend(Request* r, SharedRegions regions, Tensor* t, object row) except -1:
    cdef tf_error e
    cdef Lent* lent
    cdef int32_t k
    name, dtype, shape, offset, nbytes = row
    cdef bytes text = name
    lent = region_lend(regions.ptr, r, text, <unsigned int>len(text), <uint64_t>offset, <uint64_t>nbytes, FOR_INPUT, &e)
    t.dims = <int64_t*>request_alloc(r, (len(shape) + 1) * sizeof(int64_t))
    if lent == NULL or t.dims == NULL:
        raise make(e.code, e.text[:e.len].decode()) if lent == NULL else MemoryError()
    t.name = b"X"
    t.name_len = 1
    t.dtype = int(dtype)
    t.ndim = <int32_t>len(shape)
    for k in range(t.ndim):
        t.dims[k] = shape[k]
    t.ptr = lent.ptr
    t.nbytes = lent.nbytes
    t.block = lent.block
    t.kind = lent_kind(lent)
    t.device = t.block.device
    block_ref(t.block)
    return 0


cdef tuple shown(Request* r):
    cdef Tensor* t
    cdef int32_t i
    inputs = []
    for i in range(r.n_inputs):
        t = &r.inputs[i]
        kind = MEM_CLIENT if t.block != NULL and t.block.kind == MEM_CLIENT else t.kind
        inputs.append((kind, t.device, (<char*>t.ptr)[:t.nbytes] if t.kind == MEM_CPU else None))
    return (r.order, r.response.text[:r.response.text_len].decode() if r.response.code != TF_OK else None, inputs)


def fetched(SharedRegions regions not None, ModelHandle model not None, list rows, int32_t device=-1,
            bint placed=False, int32_t copies_from=INT32_MAX, bint restored=False, kept=()):
    cdef Request** requests = <Request**>calloc(len(rows) + 1, sizeof(Request*))
    cdef Request* r
    cdef int32_t n = 0, good
    if requests == NULL:
        raise MemoryError
    try:
        for inputs in rows:
            r = request_new(model.ptr)
            if r == NULL:
                raise MemoryError
            requests[n] = r
            r.order = <uint64_t>n
            r.flags = FLAG_DEVICE | FLAG_LENT
            n += 1
            r.inputs = <Tensor*>request_alloc(r, (len(inputs) + 1) * sizeof(Tensor))
            if r.inputs == NULL:
                raise MemoryError
            memset(r.inputs, 0, (len(inputs) + 1) * sizeof(Tensor))
            for row in inputs:
                lend(r, regions, &r.inputs[r.n_inputs], row)
                r.n_inputs += 1
        with nogil:
            good = fetch_batch(requests, n, device, placed, copies_from)
        for k in range(good if restored else 0):
            if requests[k].order in kept:       # as a backend does with those that it executes
                request_free(requests[k])
                requests[k] = NULL
        if restored:
            fetch_restore(requests, n)
            while n and requests[n - 1] == NULL:
                n -= 1
        return good, [shown(requests[k]) for k in range(n)]
    finally:
        for k in range(n):
            request_free(requests[k])
        free(requests)
