# Inputs of a batch as ORT values. A request that is the whole batch lends its bytes; several are copied back to back,
# in device memory where some of them lie there: ORT itself copies what lies in host memory, on its own stream. STRING
# elements move from the wire form (uint32 LE length + bytes) into an ORT string tensor. Knows no outputs.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memcpy

from triton_fast._native.core.memory cimport block_new, block_unref
from triton_fast._native.core.native cimport (
    DT_STRING, MEM_GPU, TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE, TF_UNSUPPORTED, tf_error, tf_fail,
)
from triton_fast._native.core.model cimport MAX_RANK, IoSpec
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.shape cimport elements_within
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.cuda.device_pool cimport device_block_new
from triton_fast._native.cuda.flow cimport Flow, flow_begin, flow_between, flow_end, flow_in
from triton_fast._native.ort.capi cimport OrtStatus, OrtValue, ort_fail
from triton_fast._native.ort.ragged cimport add_batch_inputs, ragged_count
from triton_fast._native.ort.state cimport NOTHING_SIZE, OrtIo, OrtRun

cdef uint8_t[NOTHING_SIZE] nothing

# What ORT's own allocator of device memory keeps to. A kernel that reads vectors from an address that is not aligned
# for them breaks the context of the whole process.
cdef enum:
    DEVICE_ALIGNMENT = 256


# The shape ORT gets for input i: batch rows first, the config's reshape applied. Returns the rank, or -1.
cdef int32_t shape_of(OrtRun* s, Request* r, int64_t rows, int32_t i, int64_t* dims) noexcept nogil:
    cdef const IoSpec* spec = &r.model.inputs[i]
    cdef const Tensor* t = r.by_index[i]
    cdef int32_t batched = 1 if s.max_batch > 0 else 0
    cdef int32_t k, ndim = 0, source = 0
    if s.inputs[i].rank == 0:
        return 0
    if spec.reshape_ndim < 0:
        if t.ndim > MAX_RANK:
            return -1
        memcpy(dims, t.dims, <size_t>t.ndim * sizeof(int64_t))
        if batched:
            dims[0] = rows
        return t.ndim
    if batched:
        dims[0] = rows
        ndim = 1
    for k in range(spec.reshape_ndim):
        dims[ndim] = spec.reshape[k]
        if dims[ndim] < 0:
            while source < spec.ndim and spec.dims[source] >= 0:
                source += 1
            if source >= spec.ndim:
                return -1
            dims[ndim] = t.dims[source + batched]
            source += 1
        ndim += 1
    return ndim


cdef int fill_strings(OrtRun* s, OrtValue* value, Request** requests, int32_t n, int32_t i, int64_t count) \
        noexcept nogil:
    cdef OrtStatus* status
    cdef const Tensor* t
    cdef const uint8_t* p
    cdef size_t left
    cdef uint32_t size
    cdef char* room = NULL
    cdef int64_t at = 0
    cdef int32_t k
    for k in range(n):
        t = requests[k].by_index[i]
        p = t.ptr
        left = t.nbytes
        while left:
            if left < 4 or at >= count:
                return tf_fail(&s.error, TF_INVALID_ARG, b"unexpected bytes after the last element of input '%s'",
                               s.inputs[i].name)
            memcpy(&size, p, 4)
            p += 4
            left -= 4
            if size > left:
                return tf_fail(&s.error, TF_INVALID_ARG, b"incomplete string data for inference input '%s'",
                               s.inputs[i].name)
            status = s.api.GetResizedStringTensorElementBuffer(value, <size_t>at, size, &room)
            if status != NULL:
                return ort_fail(&s.error, status)
            memcpy(room, p, size)
            p += size
            left -= size
            at += 1
        s.copied_bytes += <int64_t>t.nbytes
    if at != count:
        return tf_fail(&s.error, TF_INVALID_ARG, b"expected %lld string elements for inference input '%s', got %lld",
                       <long long>count, s.inputs[i].name, <long long>at)
    return 0


# Bytes of input i in all requests. Returns 0, or -1 with s.error filled.
cdef int sum_of(OrtRun* s, Request** requests, int32_t n, int32_t i, size_t* total) noexcept nogil:
    cdef int32_t k
    total[0] = 0
    for k in range(n):
        if requests[k].by_index[i].nbytes > (<size_t>1 << 46) - total[0]:
            return tf_fail(&s.error, TF_UNAVAILABLE, b"the batch of input '%s' is too large", s.inputs[i].name)
        total[0] += requests[k].by_index[i].nbytes
    return 0


# One contiguous stretch for all requests' bytes of input i, in in_blocks.
cdef int copy_together(OrtRun* s, Request** requests, int32_t n, int32_t i, void** data, size_t* nbytes) noexcept nogil:
    cdef size_t total = 0
    cdef int32_t k
    cdef const Tensor* t
    cdef uint8_t* p
    if sum_of(s, requests, n, i, &total) != 0:
        return -1
    s.in_blocks[s.n_in] = block_new(total)
    if s.in_blocks[s.n_in] == NULL:
        return tf_fail(&s.error, TF_UNAVAILABLE, b"out of memory for %zu bytes of input '%s'", total, s.inputs[i].name)
    p = s.in_blocks[s.n_in].data
    for k in range(n):
        t = requests[k].by_index[i]
        if t.nbytes:
            memcpy(p, t.ptr, t.nbytes)
            p += t.nbytes
    s.copied_bytes += <int64_t>total
    data[0] = s.in_blocks[s.n_in].data
    nbytes[0] = total
    return 0


# The same in device memory, begun only: the flow ends it. What lies in host memory comes along.
cdef int copy_on_device(OrtRun* s, Flow* flow, Request** requests, int32_t n, int32_t i, void** data, size_t* nbytes) \
        noexcept nogil:
    cdef size_t total = 0
    cdef int32_t k
    cdef int status = 0
    cdef const Tensor* t
    cdef uint8_t* p
    if sum_of(s, requests, n, i, &total) != 0:
        return -1
    s.in_blocks[s.n_in] = device_block_new(s.device, max(total, 1), &s.error)
    if s.in_blocks[s.n_in] == NULL:
        return -1
    p = s.in_blocks[s.n_in].data
    for k in range(n):
        t = requests[k].by_index[i]
        if t.nbytes == 0:
            continue
        if t.kind == MEM_GPU:
            status = flow_between(flow, s.device, p, t.device, t.ptr, t.nbytes, &s.error)
        else:
            status = flow_in(flow, s.device, p, t.ptr, t.nbytes, &s.error)
        if status != 0:
            return -1
        p += t.nbytes
    s.device_bytes += <int64_t>total
    data[0] = s.in_blocks[s.n_in].data
    nbytes[0] = total
    return 0


# Whether some request has input i in the memory of the instance's GPU; -1 with s.error filled where that can not be
# used, or where one has none.
cdef int on_device(OrtRun* s, Request** requests, int32_t n, int32_t i) noexcept nogil:
    cdef const Tensor* t
    cdef int32_t k
    cdef int found = 0
    for k in range(n):
        t = requests[k].by_index[i]
        if t != NULL and t.kind == MEM_GPU and s.gpu != NULL and t.device == s.device and t.dtype != DT_STRING:
            if t.nbytes:
                found = 1
        elif t == NULL or t.kind == MEM_GPU:
            return tf_fail(&s.error, TF_UNSUPPORTED, b"input '%s' must be in CPU memory", s.inputs[i].name)
    return found


cdef int gather(OrtRun* s, Request** requests, int32_t n, int64_t rows) noexcept nogil:
    cdef Flow flow
    cdef tf_error late
    flow_begin(&flow)
    cdef int status = gather_with(s, &flow, requests, n, rows)
    # Also after a failure: nobody may have the blocks while copies into them are under way.
    if flow_end(&flow, &late) != 0 and status == 0:
        s.error = late
        status = -1
    return status


cdef int gather_with(OrtRun* s, Flow* flow, Request** requests, int32_t n, int64_t rows) noexcept nogil:
    cdef int64_t[MAX_RANK + 2] dims
    cdef int32_t i, ndim
    cdef int away
    cdef int64_t count
    cdef const Tensor* t
    cdef OrtIo* io
    cdef void* data = NULL
    cdef size_t nbytes = 0
    cdef OrtStatus* status
    s.n_in = 0
    for i in range(s.n_inputs):
        t = requests[0].by_index[i]
        if t == NULL:
            continue
        io = &s.inputs[i]
        away = on_device(s, requests, n, i)
        if away < 0:
            return -1
        if requests[0].model.inputs[i].ragged and s.max_batch > 0:
            dims[0] = ragged_count(s, requests, n, i)
            ndim = 1 if dims[0] >= 0 else -1
        else:
            ndim = shape_of(s, requests[0], rows, i, dims)
        if ndim < 0:
            return tf_fail(&s.error, TF_INTERNAL, b"the shape of input '%s' can not be passed on", io.name)
        s.in_blocks[s.n_in] = NULL
        s.in_values[s.n_in] = NULL
        s.in_names[s.n_in] = io.name
        if io.dtype == DT_STRING:
            count = elements_within(dims, ndim, <int64_t>1 << 62)
            status = s.api.CreateTensorAsOrtValue(s.allocator, dims, <size_t>ndim, io.element, &s.in_values[s.n_in])
            if status != NULL:
                return ort_fail(&s.error, status)
            s.n_in += 1
            if fill_strings(s, s.in_values[s.n_in - 1], requests, n, i, count) != 0:
                return -1
            continue
        if n == 1 and (<size_t>t.ptr & <size_t>((DEVICE_ALIGNMENT if away else io.size) - 1)) == 0:
            data = t.ptr
            nbytes = t.nbytes
            s.borrowed += 1
        elif away:
            if copy_on_device(s, flow, requests, n, i, &data, &nbytes) != 0:
                s.n_in += 1         # release_inputs lets go of the block, when the flow has ended
                return -1
        elif copy_together(s, requests, n, i, &data, &nbytes) != 0:
            return -1
        if nbytes == 0 and not away:
            data = nothing
        s.n_in += 1
        status = s.api.CreateTensorWithDataAsOrtValue(
            s.gpu if away else s.cpu, data, nbytes, dims, <size_t>ndim, io.element, &s.in_values[s.n_in - 1])
        if status != NULL:
            return ort_fail(&s.error, status)
    return add_batch_inputs(s, requests, n)


cdef void release_inputs(OrtRun* s) noexcept nogil:
    cdef int32_t i
    for i in range(s.n_in):
        if s.in_values[i] != NULL:
            s.api.ReleaseValue(s.in_values[i])
        block_unref(s.in_blocks[i])
    s.n_in = 0
