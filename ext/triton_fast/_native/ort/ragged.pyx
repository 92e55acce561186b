# See ragged.pxd. What the tensors hold is told in the users' page on ragged batches, docs/ragged_batching.md.
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from triton_fast._native.core.memory cimport block_new
from triton_fast._native.core.native cimport DT_FP32, TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE, tf_fail
from triton_fast._native.core.model cimport MAX_RANK, IoSpec
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.ort.capi cimport OrtStatus, ort_fail
from triton_fast._native.ort.state cimport BatchInput, OrtRun

cdef int64_t MAX_ELEMENTS = <int64_t>1 << 46
cdef int64_t MAX_EXACT_INT32 = 0x7fffffff


# Elements of a checked tensor: its byte size is known to be within bounds, so the product is too.
cdef inline int64_t elements(const Tensor* t) noexcept nogil:
    cdef int64_t n = 1
    cdef int32_t k
    for k in range(t.ndim):
        n *= t.dims[k]
    return n


cdef int64_t ragged_count(OrtRun* s, Request** requests, int32_t n, int32_t i) noexcept nogil:
    cdef int64_t total = 0, count
    cdef int32_t k
    for k in range(n):
        count = elements(requests[k].by_index[i])
        if count > MAX_ELEMENTS - total:
            return -1
        total += count
    return total


# Values as they are computed, one after another, in the tensor's own datatype.
cdef inline void put(BatchInput* b, void* data, int64_t at, int64_t value) noexcept nogil:
    if b.dtype == DT_FP32:
        (<float*>data)[at] = <float>value
    else:
        (<int32_t*>data)[at] = <int32_t>value


# The shape of b for these requests, and how many values it has; -1 with s.error filled.
cdef int64_t shape_of(OrtRun* s, BatchInput* b, Request** requests, int32_t n, int64_t* dims, int32_t* ndim) \
        noexcept nogil:
    cdef const Tensor* t
    cdef int64_t most = 0, items = 0
    cdef int32_t k, rank = 0
    for k in range(n):
        t = requests[k].by_index[b.source]
        if t == NULL:
            return tf_fail(&s.error, TF_INVALID_ARG, b"batch input '%s' is made of an input that a request leaves out",
                           b.name)
        most = max(most, elements(t))
        items += requests[k].batch
        rank = t.ndim - 1
    if items > MAX_ELEMENTS // MAX_RANK:
        return tf_fail(&s.error, TF_INVALID_ARG, b"the batch has too many items for batch input '%s'", b.name)
    ndim[0] = 1
    if b.kind == ITEM_SHAPE:
        ndim[0] = 2
        dims[0] = items
        dims[1] = rank
        return items * rank
    if b.kind == ITEM_SHAPE_FLATTEN:
        dims[0] = items * rank
    elif b.kind == MAX_AS_SHAPE:
        dims[0] = most
    elif b.kind == ACCUMULATED_WITH_ZERO:
        dims[0] = <int64_t>n + 1
    else:
        dims[0] = n
    return dims[0]


cdef void fill(BatchInput* b, Request** requests, int32_t n, void* data) noexcept nogil:
    cdef const Tensor* t
    cdef int64_t at = 0, sum = 0, _row
    cdef int32_t k, j
    if b.kind == ACCUMULATED_WITH_ZERO:
        put(b, data, 0, 0)
        at = 1
    for k in range(n):
        t = requests[k].by_index[b.source]
        if b.kind == ITEM_SHAPE or b.kind == ITEM_SHAPE_FLATTEN:
            for _row in range(requests[k].batch):
                for j in range(1, t.ndim):
                    put(b, data, at, t.dims[j])
                    at += 1
            continue
        sum = elements(t) + (0 if b.kind == ELEMENT_COUNT else sum)
        put(b, data, at, sum)
        at += 1


cdef int add_batch_input(OrtRun* s, BatchInput* b, Request** requests, int32_t n) noexcept nogil:
    cdef int64_t[2] dims
    cdef int32_t ndim = 0
    cdef int64_t count = shape_of(s, b, requests, n, dims, &ndim)
    cdef int64_t total
    cdef OrtStatus* status
    cdef int32_t at = s.n_in
    if count < 0:
        return -1
    total = ragged_count(s, requests, n, b.source)
    if total < 0 or total > MAX_EXACT_INT32 or count > MAX_ELEMENTS // 4:
        return tf_fail(&s.error, TF_INVALID_ARG, b"the batch has more elements than batch input '%s' can count", b.name)
    s.in_names[at] = b.name
    s.in_values[at] = NULL
    s.in_blocks[at] = block_new(<size_t>count * 4)
    if s.in_blocks[at] == NULL:
        return tf_fail(&s.error, TF_UNAVAILABLE, b"out of memory for batch input '%s'", b.name)
    s.n_in += 1
    if b.kind == MAX_AS_SHAPE:
        # Only the shape counts. The content is nobody's old data.
        memset(s.in_blocks[at].data, 0, <size_t>count * 4)
    else:
        fill(b, requests, n, s.in_blocks[at].data)
    status = s.api.CreateTensorWithDataAsOrtValue(s.cpu, s.in_blocks[at].data, <size_t>count * 4, dims, <size_t>ndim,
                                                  b.element, &s.in_values[at])
    return 0 if status == NULL else ort_fail(&s.error, status)


cdef int add_batch_inputs(OrtRun* s, Request** requests, int32_t n) noexcept nogil:
    cdef int32_t k
    for k in range(s.n_batch_inputs):
        if add_batch_input(s, &s.batch_inputs[k], requests, n) != 0:
            return -1
    return 0


cdef int64_t part_of(OrtRun* s, Request* r, int32_t i, int64_t* dims, int32_t* ndim) noexcept nogil:
    cdef const IoSpec* spec = &r.model.outputs[i]
    cdef const Tensor* source = r.by_index[s.cut_by[i]]
    cdef int64_t count
    cdef int32_t k
    if source == NULL:
        return tf_fail(&s.error, TF_INVALID_ARG, b"output '%s' is cut by an input that the request leaves out",
                       spec.name)
    dims[0] = r.batch
    count = r.batch
    ndim[0] = spec.ndim + 1
    for k in range(spec.ndim):
        # A dimension that the config leaves open is that of the input at the same place.
        dims[k + 1] = spec.dims[k]
        if dims[k + 1] < 0:
            if k + 1 >= source.ndim:
                return tf_fail(&s.error, TF_INTERNAL,
                               b"output '%s' has more variable dimensions than the input that it is cut by", spec.name)
            dims[k + 1] = source.dims[k + 1]
        if dims[k + 1] > 0 and count > MAX_ELEMENTS // dims[k + 1]:
            return tf_fail(&s.error, TF_INTERNAL, b"output '%s' is too large", spec.name)
        count *= dims[k + 1]
    return count
