# What goes to the device and back. Each request's bytes go as they lie, or several requests' small ones together by way
# of one block; outputs come into blocks that responses keep, so that nothing is copied on the host after a run.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memset

from triton_fast._native.arrays.arrays cimport Array, arrays_free, elements, shape_of
from triton_fast._native.core.memory cimport Block, block_new, block_unref
from triton_fast._native.core.model cimport IoSpec
from triton_fast._native.core.native cimport (
    DT_INT32, MEM_GPU, TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE, dtype_size, tf_error, tf_fail,
)
from triton_fast._native.core.outputs cimport request_needs
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.cuda.copies cimport (
    cuda_copy_device, cuda_copy_in, cuda_copy_out, cuda_copy_peer, cuda_wait, stream_close,
)
from triton_fast._native.cuda.device_pool cimport device_block_new
from triton_fast._native.cuda.driver cimport cuda_api, cuda_check, cuda_enter, tf_cu_handle
from triton_fast._native.tensorrt.shapes cimport TRT_RANK, Seen, shapes_free

cdef enum:
    ALIGNMENT = 256         # TensorRT's, of every address
    DIRECT = 65536          # bytes of a request's input from which on it is copied to the device by itself


cdef int out_of_memory(TrtRun* s, size_t n) noexcept nogil:
    return tf_fail(&s.arrays.error, TF_UNAVAILABLE, b"out of memory for %zu bytes", n)


# --- what a batch asks for -------------------------------------------------------------------------------------------

# The values of a shape tensor, as the first row of the first request has them, behind the batch's size where there is
# one. All requests of a run have the same.
cdef int read_values(TrtRun* s, TrtIo* io, const Tensor* t, const IoSpec* spec, int64_t rows,
                     bint batched) noexcept nogil:
    cdef int64_t* out = s.key + io.at
    cdef int32_t i, n = io.n_values - (1 if batched else 0)
    cdef int32_t narrow
    cdef size_t size = <size_t>dtype_size(io.dtype)
    if t.kind == MEM_GPU:
        return tf_fail(&s.arrays.error, TF_INVALID_ARG, b"shape tensor for input '%s' must be in single contiguous "
                       b"buffer on CPU", spec.name)
    if n < 0 or t.nbytes < <size_t>n * size:
        return tf_fail(&s.arrays.error, TF_INVALID_ARG, b"mismatch between the number of shape values. Expecting %d. "
                       b"Got %zu", <int>n, t.nbytes // size)
    if batched:
        out[0] = rows
        out += 1
    for i in range(n):
        if io.dtype == DT_INT32:
            memcpy(&narrow, t.ptr + <size_t>i * 4, 4)
            out[i] = narrow
        else:
            memcpy(&out[i], t.ptr + <size_t>i * 8, 8)
    return 0


cdef int trt_describe(TrtRun* s, Request** requests, int32_t n, int64_t rows) noexcept nogil:
    cdef int32_t i, k
    cdef int64_t count
    cdef bint batched = s.arrays.max_batch > 0
    cdef const IoSpec* spec
    cdef const Tensor* t
    cdef Array* array
    cdef TrtIo* io
    s.arrays.rows = rows
    for i in range(s.arrays.n_outputs):
        s.arrays.outputs[i].wanted = False
        for k in range(n):
            if request_needs(requests[k], i):
                s.arrays.outputs[i].wanted = True
                break
    for i in range(s.arrays.n_inputs):
        spec = &requests[0].model.inputs[i]
        array = &s.arrays.inputs[i]
        io = &s.inputs[i]
        array.nbytes = 0
        for k in range(n):
            t = requests[k].by_index[i]
            if t == NULL or t.dtype != io.dtype:
                return tf_fail(&s.arrays.error, TF_INVALID_ARG, b"input '%s' is missing or of another datatype",
                               spec.name)
            if t.nbytes > (<size_t>1 << MAX_BYTES_SHIFT) - array.nbytes:
                return tf_fail(&s.arrays.error, TF_UNAVAILABLE, b"the batch of input '%s' is too large", spec.name)
            array.nbytes += t.nbytes
        t = requests[0].by_index[i]
        if io.n_values:
            if read_values(s, io, t, spec, rows, batched) != 0:
                return -1
            continue
        if shape_of(array, spec, t, rows, batched) != 0:
            return tf_fail(&s.arrays.error, TF_INTERNAL, b"the shape of input '%s' can not be passed on", spec.name)
        if io.rank == 0:
            array.ndim = 0          # a config has no word for a scalar: it says [1]
        if array.ndim != io.rank:
            return tf_fail(&s.arrays.error, TF_INVALID_ARG, b"input '%s': model expected %d dimensions but received %d "
                           b"dimensions", spec.name, <int>io.rank, <int>array.ndim)
        count = elements(array.dims, array.ndim)
        if count < 0 or array.nbytes != <size_t>count * <size_t>dtype_size(io.dtype):
            return tf_fail(&s.arrays.error, TF_INVALID_ARG, b"input '%s' has %zu bytes, which is not what its shape "
                           b"needs", spec.name, array.nbytes)
        memcpy(s.key + io.at, array.dims, <size_t>io.rank * sizeof(int64_t))
    return 0


# --- inputs ----------------------------------------------------------------------------------------------------------

cdef void trt_fill_values(TrtRun* s, TrtIo* io) noexcept nogil:
    cdef int32_t i, narrow
    for i in range(io.n_values):
        if io.dtype == DT_INT32:
            narrow = <int32_t>s.key[io.at + i]
            memcpy(io.block.data + <size_t>i * 4, &narrow, 4)
        else:
            memcpy(io.block.data + <size_t>i * 8, &s.key[io.at + i], 8)


cdef int copy_one(TrtRun* s, const Tensor* t, uint8_t* to) noexcept nogil:
    s.copied_in += <int64_t>t.nbytes
    if t.kind != MEM_GPU:
        return cuda_copy_in(s.device, to, t.ptr, t.nbytes, s.stream, &s.arrays.error)
    if t.device == s.device:
        return cuda_copy_device(s.device, to, t.ptr, t.nbytes, s.stream, &s.arrays.error)
    return cuda_copy_peer(s.device, to, s.device, t.ptr, t.device, t.nbytes, s.stream, &s.arrays.error)


cdef int gather_small(TrtRun* s, Request** requests, int32_t n, int32_t i) noexcept nogil:
    cdef Block* block = block_new(s.arrays.inputs[i].nbytes)
    cdef size_t at = 0
    cdef int32_t k
    cdef const Tensor* t
    if block == NULL:
        return out_of_memory(s, s.arrays.inputs[i].nbytes)
    s.staged[i] = block
    for k in range(n):
        t = requests[k].by_index[i]
        if t.nbytes:
            memcpy(block.data + at, t.ptr, t.nbytes)
            at += t.nbytes
    s.gathered += <int64_t>at
    s.copied_in += <int64_t>at
    return cuda_copy_in(s.device, s.inputs[i].block.data, block.data, at, s.stream, &s.arrays.error)


cdef int send_input(TrtRun* s, Request** requests, int32_t n, int32_t i, bint fixed) noexcept nogil:
    cdef TrtIo* io = &s.inputs[i]
    cdef const Tensor* t = requests[0].by_index[i]
    cdef size_t at = 0
    cdef int32_t k
    cdef bint gather = n > 1
    s.wanted[i] = <uint64_t><uintptr_t>io.block.data
    if io.on_host:
        trt_fill_values(s, io)
        return 0
    if s.arrays.inputs[i].nbytes > io.cap:
        return tf_fail(&s.arrays.error, TF_INTERNAL, b"input '%s' has %zu bytes, there is room for %zu",
                       requests[0].model.inputs[i].name, s.arrays.inputs[i].nbytes, io.cap)
    if n == 1 and t.kind == MEM_GPU and t.device == s.device and not fixed and t.nbytes \
            and (<uintptr_t>t.ptr & (ALIGNMENT - 1)) == 0:
        s.wanted[i] = <uint64_t><uintptr_t>t.ptr
        s.in_place += 1
        return 0
    for k in range(n):
        t = requests[k].by_index[i]
        if t.kind == MEM_GPU or t.nbytes >= DIRECT:
            gather = False
            break
    s.queued = True
    if gather:
        return gather_small(s, requests, n, i)
    for k in range(n):
        t = requests[k].by_index[i]
        if t.nbytes and copy_one(s, t, io.block.data + at) != 0:
            return -1
        at += t.nbytes
    return 0


cdef int trt_send(TrtRun* s, Request** requests, int32_t n, bint fixed) noexcept nogil:
    cdef int32_t i
    for i in range(s.arrays.n_inputs):
        if send_input(s, requests, n, i, fixed) != 0:
            return -1
    return 0


# --- outputs ---------------------------------------------------------------------------------------------------------

# Graphs know the old address, so they go.
cdef int trt_grow(TrtRun* s, int32_t i, size_t n) noexcept nogil:
    cdef TrtIo* io = &s.outputs[i]
    cdef Block* block
    if n <= io.cap and io.block != NULL:
        return 0
    if n > <size_t>1 << MAX_BYTES_SHIFT:
        return out_of_memory(s, n)
    forget_graphs(s)
    block = device_block_new(s.device, n if n else 1, &s.arrays.error)
    if block == NULL:
        return -1
    if io.block != NULL and s.queued and cuda_wait(s.device, s.stream, &s.arrays.error) != 0:
        block_unref(block)
        return -1
    block_unref(io.block)
    io.block = block
    io.cap = block.cap
    return 0


cdef int trt_fetch(TrtRun* s, Seen* seen) noexcept nogil:
    cdef Array* array
    cdef TrtIo* io
    cdef int32_t i
    for i in range(s.arrays.n_outputs):
        array = &s.arrays.outputs[i]
        io = &s.outputs[i]
        if not array.wanted or io.on_host:
            continue
        array.dtype = io.dtype
        array.ndim = seen.ndim[i]
        memcpy(array.dims, seen.dims + <size_t>i * TRT_RANK, <size_t>array.ndim * sizeof(int64_t))
        array.nbytes = seen.nbytes[i]
        if array.nbytes > io.cap:
            return tf_fail(&s.arrays.error, TF_INTERNAL, b"output %d has %zu bytes, there is room for %zu", <int>i,
                           array.nbytes, io.cap)
        array.block = block_new(array.nbytes if array.nbytes else 1)
        if array.block == NULL:
            return out_of_memory(s, array.nbytes)
        array.data = array.block.data
        if array.nbytes and cuda_copy_out(s.device, array.data, io.block.data, array.nbytes, s.stream,
                                          &s.arrays.error) != 0:
            return -1
        s.copied_out += <int64_t>array.nbytes
        array.present = True
    return 0


# Outputs that are shape tensors lie in host memory: the values behind the batch's size, the same for each row.
cdef int trt_read_values(TrtRun* s) noexcept nogil:
    cdef Array* array
    cdef TrtIo* io
    cdef int32_t i
    cdef int64_t k, rows, first = 1 if s.arrays.max_batch > 0 else 0
    cdef size_t row
    for i in range(s.arrays.n_outputs):
        array = &s.arrays.outputs[i]
        io = &s.outputs[i]
        if not array.wanted or not io.on_host:
            continue
        rows = s.arrays.rows if first else 1
        row = <size_t>(io.n_values - first) * <size_t>dtype_size(io.dtype)
        if row and <size_t>rows > (<size_t>1 << MAX_BYTES_SHIFT) // row:
            return out_of_memory(s, row)
        array.dtype = io.dtype
        array.nbytes = row * <size_t>rows
        array.block = block_new(array.nbytes if array.nbytes else 1)
        if array.block == NULL:
            return out_of_memory(s, array.nbytes)
        array.data = array.block.data
        for k in range(rows):
            memcpy(array.data + <size_t>k * row, io.block.data + <size_t>first * <size_t>dtype_size(io.dtype), row)
        array.ndim = 0
        if first:
            array.dims[0] = rows
            array.ndim = 1
        if io.rank:
            array.dims[array.ndim] = io.n_values - first
            array.ndim += 1
        array.present = True
    return 0


# --- CUDA graphs -----------------------------------------------------------------------------------------------------

cdef void trt_drop_graph(void* graph) noexcept nogil:
    if graph != NULL and cuda_api() != NULL:
        cuda_api().GraphExecDestroy(<tf_cu_handle>graph)


cdef void forget_graphs(TrtRun* s) noexcept nogil:
    cdef int32_t i
    cdef tf_error e
    if s.shapes.seen == NULL or cuda_enter(s.device, &e) != 0:
        return
    for i in range(s.shapes.n_seen):
        trt_drop_graph(s.shapes.seen[i].graph)
        s.shapes.seen[i].graph = NULL


cdef int trt_launch(TrtRun* s, Seen* seen) noexcept nogil:
    s.launched += 1
    s.queued = True
    return cuda_check(&s.arrays.error, cuda_api().GraphLaunch(<tf_cu_handle>seen.graph, s.stream), s.device,
                      b"unable to execute graph for inference")


cdef bint trt_can_capture() noexcept nogil:
    return cuda_api() != NULL and cuda_api().StreamBeginCapture != NULL and cuda_api().StreamEndCapture != NULL \
        and cuda_api().GraphInstantiate != NULL and cuda_api().GraphLaunch != NULL \
        and cuda_api().GraphExecDestroy != NULL and cuda_api().GraphDestroy != NULL


# --- the end ---------------------------------------------------------------------------------------------------------

cdef int trt_finish(TrtRun* s, tf_error* e) noexcept nogil:
    cdef int status
    if not s.queued:
        return 0
    if s.busy_wait:
        status = cuda_check(e, cuda_api().StreamSynchronize(s.stream), s.device, b"inference")
    else:
        status = cuda_wait(s.device, s.stream, e)
    s.queued = False
    return status


cdef bint trt_same_values(const TrtRun* s, Request* a, Request* b) noexcept nogil:
    cdef int32_t i
    cdef size_t size
    cdef const Tensor* x
    cdef const Tensor* y
    for i in range(s.arrays.n_inputs):
        if s.inputs[i].n_values == 0:
            continue
        x = a.by_index[i]
        y = b.by_index[i]
        size = <size_t>(s.inputs[i].n_values - 1) * <size_t>dtype_size(s.inputs[i].dtype)
        if x == NULL or y == NULL or x.kind == MEM_GPU or y.kind == MEM_GPU or x.nbytes < size or y.nbytes < size \
                or memcmp(x.ptr, y.ptr, size) != 0:
            return False
    return True


cdef void trt_free(TrtRun* s) noexcept nogil:
    cdef int32_t i
    cdef tf_error e
    if s.inputs == NULL:
        return
    if s.stream != NULL:
        cuda_wait(s.device, s.stream, &e)
    forget_graphs(s)
    for i in range(s.arrays.n_inputs):
        block_unref(s.inputs[i].block)
    if s.outputs != NULL:
        for i in range(s.arrays.n_outputs):
            block_unref(s.outputs[i].block)
    if s.stream != NULL:
        stream_close(s.device, s.stream, &e)
    shapes_free(&s.shapes)
    arrays_free(&s.arrays)
    free(s.inputs)
    free(s.outputs)
    free(s.staged)
    free(s.wanted)
    free(s.key)
    memset(s, 0, sizeof(TrtRun))
