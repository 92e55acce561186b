# Inputs: a request that is the whole batch lends its bytes, several are copied back to back. Outputs: responses are
# slices of the array that the framework made, never copies. Reshapes of the config are applied on both sides.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from triton_fast._native.core.memory cimport Block, block_new, block_ref, block_unref
from triton_fast._native.core.native cimport (
    DT_STRING, MEM_CPU, MEM_GPU, TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE, TF_UNSUPPORTED, dtype_size, tf_fail,
)
from triton_fast._native.core.outputs cimport request_needs, request_wants
from triton_fast._native.core.request cimport request_alloc, response_fail_error, response_outputs

cdef uint8_t[64] nothing


cdef int arrays_init(Arrays* a, int32_t n_inputs, int32_t n_outputs, int64_t max_batch) noexcept nogil:
    cdef int32_t i
    memset(a, 0, sizeof(Arrays))
    a.n_inputs = n_inputs
    a.n_outputs = n_outputs
    a.max_batch = max_batch
    a.inputs = <Array*>calloc(<size_t>n_inputs + 1, sizeof(Array))
    a.outputs = <Array*>calloc(<size_t>n_outputs + 1, sizeof(Array))
    a.dims = <int64_t*>calloc(<size_t>(n_inputs + n_outputs + 1), (MAX_RANK + 2) * sizeof(int64_t))
    if a.inputs == NULL or a.outputs == NULL or a.dims == NULL:
        arrays_free(a)
        return -1
    for i in range(n_inputs):
        a.inputs[i].dims = a.dims + <size_t>i * (MAX_RANK + 2)
    for i in range(n_outputs):
        a.outputs[i].dims = a.dims + <size_t>(n_inputs + i) * (MAX_RANK + 2)
    return 0


cdef void arrays_free(Arrays* a) noexcept nogil:
    free(a.inputs)
    free(a.outputs)
    free(a.dims)
    a.inputs = a.outputs = NULL
    a.dims = NULL


# --- inputs ----------------------------------------------------------------------------------------------------------

cdef int shape_of(Array* array, const IoSpec* spec, const Tensor* t, int64_t rows, bint batched) noexcept nogil:
    cdef int32_t k, source = 0
    if t.ndim > MAX_RANK:
        return -1
    if spec.reshape_ndim < 0:
        array.ndim = t.ndim
        memcpy(array.dims, t.dims, <size_t>t.ndim * sizeof(int64_t))
        if batched:
            array.dims[0] = rows
        return 0
    array.ndim = 0
    if batched:
        array.dims[0] = rows
        array.ndim = 1
    for k in range(spec.reshape_ndim):
        array.dims[array.ndim] = spec.reshape[k]
        if spec.reshape[k] < 0:
            while source < spec.ndim and spec.dims[source] >= 0:
                source += 1
            if source >= spec.ndim:
                return -1
            array.dims[array.ndim] = t.dims[source + (1 if batched else 0)]
            source += 1
        array.ndim += 1
    return 0


cdef int copy_together(Arrays* a, Array* array, Request** requests, int32_t n, int32_t i) noexcept nogil:
    cdef size_t total = 0
    cdef int32_t k
    cdef const Tensor* t
    cdef uint8_t* p
    for k in range(n):
        t = requests[k].by_index[i]
        if t.nbytes > (<size_t>1 << 46) - total:
            return tf_fail(&a.error, TF_UNAVAILABLE, b"the batch of input '%s' is too large",
                           requests[0].model.inputs[i].name)
        total += t.nbytes
    array.block = block_new(total)
    if array.block == NULL:
        return tf_fail(&a.error, TF_UNAVAILABLE, b"out of memory for %zu bytes of input '%s'", total,
                       requests[0].model.inputs[i].name)
    p = array.block.data
    for k in range(n):
        t = requests[k].by_index[i]
        if t.nbytes:
            memcpy(p, t.ptr, t.nbytes)
            p += t.nbytes
    a.copied_bytes += <int64_t>total
    array.data = array.block.data
    array.nbytes = total
    return 0


# The block that keeps a tensor's memory, or NULL: then the request itself does.
cdef inline Block* keeper(Request* r, const Tensor* t) noexcept nogil:
    if t.block != NULL:
        return t.block
    if r.body != NULL and t.ptr != NULL and r.body.data <= t.ptr < r.body.data + r.body.cap:
        return r.body
    return NULL


cdef int gather_input(Arrays* a, Request** requests, int32_t n, int32_t i) noexcept nogil:
    cdef Array* array = &a.inputs[i]
    cdef const IoSpec* spec = &requests[0].model.inputs[i]
    cdef const Tensor* t = requests[0].by_index[i]
    cdef Block* block
    cdef size_t size = <size_t>dtype_size(spec.dtype)
    cdef int32_t k
    array.present = t != NULL
    for k in range(n):
        if (requests[k].by_index[i] != NULL) != array.present:
            return tf_fail(&a.error, TF_INTERNAL, b"requests with and without input '%s' share a batch", spec.name)
    if not array.present:
        return 0
    array.dtype = t.dtype
    array.apart = False
    for k in range(n):
        if requests[k].by_index[i].kind == MEM_GPU:
            if not a.takes_gpu:
                return tf_fail(&a.error, TF_UNSUPPORTED, b"input '%s' must be in CPU memory", spec.name)
            array.apart = True
    if shape_of(array, spec, t, a.rows, a.max_batch > 0) != 0:
        return tf_fail(&a.error, TF_INTERNAL, b"the shape of input '%s' can not be passed on", spec.name)
    if array.apart:
        array.data = NULL
        array.nbytes = 0
        return 0
    block = keeper(requests[0], t)
    if n == 1 and (size == 0 or (<size_t>t.ptr & (size - 1)) == 0) and (block != NULL or not a.lasting):
        array.data = t.ptr
        array.nbytes = t.nbytes
        array.block = block
        if block != NULL:
            block_ref(block)
        a.borrowed += 1
    elif copy_together(a, array, requests, n, i) != 0:
        return -1
    if array.nbytes == 0:
        array.data = nothing
    return 0


cdef int arrays_gather(Arrays* a, Request** requests, int32_t n, int64_t rows) noexcept nogil:
    cdef int32_t i, k
    a.rows = rows
    for i in range(a.n_outputs):
        a.outputs[i].wanted = False
        for k in range(n):
            if request_needs(requests[k], i):
                a.outputs[i].wanted = True
                break
    for i in range(a.n_inputs):
        if gather_input(a, requests, n, i) != 0:
            return -1
    return 0


cdef void arrays_release(Arrays* a) noexcept nogil:
    cdef int32_t i
    for i in range(a.n_inputs):
        block_unref(a.inputs[i].block)
        a.inputs[i].block = NULL
        a.inputs[i].present = False
    for i in range(a.n_outputs):
        block_unref(a.outputs[i].block)
        a.outputs[i].block = NULL
        a.outputs[i].present = False


# --- outputs ---------------------------------------------------------------------------------------------------------

# Whether an output's bytes are what its shape and type say. STRING: every element's length is looked at.
cdef int check_output(Arrays* a, const IoSpec* spec, Array* array) noexcept nogil:
    cdef int64_t count = elements(array.dims, array.ndim) if 0 <= array.ndim <= MAX_RANK else -1
    cdef size_t at = 0
    cdef uint32_t size
    cdef int64_t _i
    if not array.present:
        return tf_fail(&a.error, TF_INTERNAL, b"output tensor '%s' is not found", spec.name)
    if array.dtype != spec.dtype:
        return tf_fail(&a.error, TF_INVALID_ARG, b"output '%s' has another datatype than the model configuration says",
                       spec.name)
    if count < 0:
        return tf_fail(&a.error, TF_INTERNAL, b"output '%s' has a shape that is no shape", spec.name)
    if a.max_batch > 0 and array.ndim == 0:
        return tf_fail(
            &a.error, TF_INTERNAL, b"failed to split the output tensor '%s' in responses: expected batch size of %lld "
            b"in model output, got a scalar, which has no batch dimension", spec.name, <long long>a.rows)
    if a.max_batch > 0 and array.dims[0] != a.rows:
        return tf_fail(
            &a.error, TF_INTERNAL, b"failed to split the output tensor '%s' in responses: expected batch size of %lld "
            b"in model output, got %lld", spec.name, <long long>a.rows,
            <long long>array.dims[0])
    if spec.dtype != DT_STRING:
        if array.nbytes != <size_t>count * <size_t>dtype_size(spec.dtype):
            return tf_fail(&a.error, TF_INTERNAL, b"output '%s' has %zu bytes, its shape needs %zu", spec.name,
                           array.nbytes, <size_t>count * <size_t>dtype_size(spec.dtype))
        return 0
    for _i in range(count):
        if array.nbytes - at < 4:
            break
        memcpy(&size, array.data + at, 4)
        if size > array.nbytes - at - 4:
            break
        at += 4 + size
    else:
        if at == array.nbytes:
            return 0
    return tf_fail(&a.error, TF_INTERNAL, b"output '%s' has string data that does not fit its shape", spec.name)


# Bytes of the elements before element k of a STRING array, counted from byte `at`, where element `from_k` begins.
cdef inline size_t go_to(const Array* array, size_t at, int64_t from_k, int64_t k) noexcept nogil:
    cdef uint32_t size
    while from_k < k:
        memcpy(&size, array.data + at, 4)
        at += 4 + size
        from_k += 1
    return at


# The array's dims as clients see them: the config's own shape where it reshapes.
cdef int client_dims(Arrays* a, Request* r, const IoSpec* spec, const Array* array, Tensor* t) noexcept nogil:
    cdef int32_t batched = 1 if a.max_batch > 0 else 0
    cdef int32_t k, source = batched, ndim
    ndim = array.ndim if spec.reshape_ndim < 0 else spec.ndim + batched
    t.dims = <int64_t*>request_alloc(r, (<size_t>ndim + 1) * sizeof(int64_t))
    if t.dims == NULL:
        return tf_fail(&a.error, TF_UNAVAILABLE, b"out of memory")
    t.ndim = ndim
    if spec.reshape_ndim < 0:
        memcpy(t.dims, array.dims, <size_t>ndim * sizeof(int64_t))
    else:
        for k in range(spec.ndim):
            t.dims[batched + k] = spec.dims[k]
            if spec.dims[k] < 0:
                # The next variable dimension of the model's shape.
                while source < array.ndim and source - batched < spec.reshape_ndim \
                        and spec.reshape[source - batched] >= 0:
                    source += 1
                if source >= array.ndim:
                    return tf_fail(&a.error, TF_INTERNAL, b"the shape of output '%s' does not fit its reshape",
                                   spec.name)
                t.dims[batched + k] = array.dims[source]
                source += 1
    if batched:
        t.dims[0] = r.batch
    return 0


cdef int slice_output(Arrays* a, Request* r, Tensor* t, int32_t i, size_t first, size_t last) noexcept nogil:
    cdef const IoSpec* spec = &r.model.outputs[i]
    cdef Array* array = &a.outputs[i]
    t.name = spec.name
    t.name_len = spec.name_len
    t.index = i
    t.dtype = spec.dtype
    t.kind = MEM_CPU
    if client_dims(a, r, spec, array, t) != 0:
        return -1
    t.ptr = array.data + first
    t.nbytes = last - first
    t.block = array.block
    block_ref(array.block)
    return 0


# Which bytes of output i are r's.
cdef void stretch(Arrays* a, Request* r, int32_t i, int64_t row, size_t* first, size_t* last) noexcept nogil:
    cdef Array* array = &a.outputs[i]
    cdef int64_t per_row
    first[0] = 0
    last[0] = array.nbytes
    if a.max_batch == 0 or r.batch == a.rows or a.rows == 0:
        return
    if array.dtype == DT_STRING:
        per_row = elements(array.dims + 1, array.ndim - 1)
        first[0] = go_to(array, 0, 0, row * per_row)
        last[0] = go_to(array, first[0], row * per_row, (row + r.batch) * per_row)
    else:
        first[0] = array.nbytes // <size_t>a.rows * <size_t>row
        last[0] = first[0] + array.nbytes // <size_t>a.rows * <size_t>r.batch


cdef int give(Arrays* a, Request* r, Tensor* t, int32_t i, int64_t row) noexcept nogil:
    cdef size_t first = 0, last = 0
    stretch(a, r, i, row, &first, &last)
    return slice_output(a, r, t, i, first, last)


# The client's outputs in its order, then the scheduler's.
cdef int fill_response(Arrays* a, Request* r, int64_t row) noexcept nogil:
    cdef int32_t i, count = r.n_wanted if r.n_wanted else a.n_outputs
    cdef Tensor* t
    for i in range(a.n_outputs):
        if r.n_wanted and request_needs(r, i) and not request_wants(r, i):
            count += 1
    t = response_outputs(&r.response, count)
    if t == NULL:
        return tf_fail(&a.error, TF_UNAVAILABLE, b"out of memory")
    for i in range(r.n_wanted):
        if give(a, r, t, r.wanted[i].index, row) != 0:
            return -1
        t += 1
    for i in range(a.n_outputs):
        if r.n_wanted and (request_wants(r, i) or not request_needs(r, i)):
            continue
        if give(a, r, t, i, row) != 0:
            return -1
        t += 1
    return 0


cdef void arrays_scatter(Arrays* a, Request** requests, int32_t n) noexcept nogil:
    cdef int32_t i, k
    cdef int64_t row = 0
    for i in range(a.n_outputs):
        if a.outputs[i].wanted and check_output(a, &requests[0].model.outputs[i], &a.outputs[i]) != 0:
            for k in range(n):
                response_fail_error(&requests[k].response, &a.error)
            return
    for k in range(n):
        if fill_response(a, requests[k], row) != 0:
            response_fail_error(&requests[k].response, &a.error)
        row += requests[k].batch
