# Gather, infer, scatter, without the GIL from dequeue to completion. Inputs are the arrays' memory; outputs whose size
# is known before the run are written into blocks, of the others OpenVINO's memory is lent. One thread executes it at a
# time.
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from triton_fast._native.arrays.arrays cimport (
    Array, Arrays, arrays_free, arrays_gather, arrays_init, arrays_release, arrays_scatter, elements,
)
from triton_fast._native.core.memory cimport Block, block_new, block_unref, block_wrap
from triton_fast._native.core.model cimport MAX_RANK
from triton_fast._native.core.native cimport TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE, dtype_size, now_ns, tf_fail
from triton_fast._native.core.request cimport Request, response_fail_error
from triton_fast._native.core.room cimport room
from triton_fast._native.openvino.capi cimport ov_api, ov_check, ov_fail, ov_shape, ov_tensor
from triton_fast._native.openvino.model cimport Compiled
from triton_fast._native.sched.instance cimport Batch

from triton_fast.errors import InvalidArg

cdef enum:
    LARGE = 32768           # bytes; less is copied, and OpenVINO's memory let go at once
    MAX_BYTES_SHIFT = 46


cdef void free_tensor(Block* block) noexcept nogil:
    ov_api().tensor_free(<ov_tensor*>block.owner)


cdef int out_of_memory(OvRun* s, size_t n) noexcept nogil:
    return tf_fail(&s.arrays.error, TF_UNAVAILABLE, b"out of memory for %zu bytes", n)


# --- inputs ----------------------------------------------------------------------------------------------------------

# The batch filled up with rows of zeros: a model of a fixed batch size knows no other.
cdef int pad_input(OvRun* s, Array* array) noexcept nogil:
    cdef Arrays* a = &s.arrays
    cdef size_t row, total
    cdef Block* block
    if array.ndim == 0 or array.dims[0] != a.rows or a.rows <= 0 \
            or array.nbytes // <size_t>a.rows > (<size_t>1 << MAX_BYTES_SHIFT) // <size_t>s.fixed_batch:
        return tf_fail(&a.error, TF_INTERNAL, b"a batch can not be padded")
    row = array.nbytes // <size_t>a.rows
    total = row * <size_t>s.fixed_batch
    block = block_new(total)
    if block == NULL:
        return out_of_memory(s, total)
    memcpy(block.data, array.data, array.nbytes)
    memset(block.data + array.nbytes, 0, total - array.nbytes)
    block_unref(array.block)
    array.block = block
    array.data = block.data
    a.copied_bytes += <int64_t>array.nbytes
    array.nbytes = total
    array.dims[0] = s.fixed_batch
    return 0


cdef int check_batch(OvRun* s) noexcept nogil:
    if s.fixed_batch == 0 or s.arrays.rows == s.fixed_batch:
        return 0
    if s.pad and s.arrays.rows < s.fixed_batch:
        return 0
    return tf_fail(
        &s.arrays.error, TF_INTERNAL, b"expected requests with batch size '%lld', got '%lld'... this error can be "
        b"avoided by setting 'ENABLE_BATCH_PADDING' parameter in model configuration to 'YES' at a performance cost.",
        <long long>s.fixed_batch, <long long>s.arrays.rows)


cdef int set_inputs(OvRun* s, Request** requests) noexcept nogil:
    cdef Array* array
    cdef ov_tensor* tensor
    cdef ov_shape shape
    cdef int32_t i
    cdef int status
    if check_batch(s) != 0:
        return -1
    for i in range(s.arrays.n_inputs):
        array = &s.arrays.inputs[i]
        if not array.present or array.dtype != s.inputs[i].dtype:
            return tf_fail(&s.arrays.error, TF_INVALID_ARG, b"input '%s' is missing or of another datatype",
                           requests[0].model.inputs[i].name)
        if s.fixed_batch > s.arrays.rows and pad_input(s, array) != 0:
            return -1
        shape.rank = array.ndim
        shape.dims = array.dims
        # The protocol's [1] is a model's tensor without dimensions.
        if s.inputs[i].rank == 0 and elements(array.dims, array.ndim) == 1:
            shape.rank = 0
        tensor = NULL
        status = s.api.tensor_create_from_host_ptr(s.inputs[i].element, shape, array.data, &tensor)
        if status == 0:
            status = s.api.infer_request_set_input_tensor_by_index(s.request, s.inputs[i].port, tensor)
        if tensor != NULL:
            s.api.tensor_free(tensor)
        if status != 0:
            return ov_fail(&s.arrays.error, status, b"setting inputs")
    return 0


# --- outputs ---------------------------------------------------------------------------------------------------------

# Every output gets memory before every run: what the last run wrote may belong to a response by now. But one that is
# an input: OpenVINO finds ports by name, so its memory would become the input's.
cdef int set_outputs(OvRun* s) noexcept nogil:
    cdef Array* array
    cdef OvIo* io
    cdef ov_tensor* tensor
    cdef ov_shape shape
    cdef int64_t rows = 1
    cdef int32_t i
    cdef int status
    if s.arrays.max_batch > 0:
        rows = s.fixed_batch if s.fixed_batch else s.arrays.rows
    for i in range(s.arrays.n_outputs):
        array = &s.arrays.outputs[i]
        io = &s.outputs[i]
        array.dtype = io.dtype
        if io.given >= 0:
            continue
        array.ndim = io.rank
        memcpy(array.dims, io.dims, <size_t>io.rank * sizeof(int64_t))
        shape.rank = io.rank
        shape.dims = array.dims
        tensor = NULL
        if io.row_bytes >= 0:
            if io.row_bytes > (<int64_t>1 << MAX_BYTES_SHIFT) // (rows if rows > 0 else 1):
                return out_of_memory(s, <size_t>io.row_bytes)
            array.nbytes = <size_t>(io.row_bytes * rows)
            array.block = block_new(array.nbytes if array.nbytes else 1)
            if array.block == NULL:
                return out_of_memory(s, array.nbytes)
            array.data = array.block.data
            if s.arrays.max_batch > 0:
                array.dims[0] = rows
            status = s.api.tensor_create_from_host_ptr(io.element, shape, array.data, &tensor)
        else:
            status = s.api.tensor_create(io.element, shape, &tensor)
        if status == 0:
            status = s.api.infer_request_set_output_tensor_by_index(s.request, io.port, tensor)
        if status != 0:
            if tensor != NULL:
                s.api.tensor_free(tensor)
            return ov_fail(&s.arrays.error, status, b"setting outputs")
        if io.row_bytes >= 0:
            s.api.tensor_free(tensor)
        else:
            s.made[i] = tensor
    return 0


# What the requests gave.
cdef int take_input(OvRun* s, Array* array, const Array* given) noexcept nogil:
    array.ndim = given.ndim
    memcpy(array.dims, given.dims, <size_t>given.ndim * sizeof(int64_t))
    array.nbytes = given.nbytes
    array.block = block_new(array.nbytes if array.nbytes else 1)
    if array.block == NULL:
        return out_of_memory(s, array.nbytes)
    array.data = array.block.data
    if array.nbytes:
        memcpy(array.data, given.data, array.nbytes)
    s.copied_outputs += <int64_t>array.nbytes
    return 0


# What OpenVINO allocated for output i.
cdef int take_output(OvRun* s, Array* array, int32_t i) noexcept nogil:
    cdef ov_tensor* tensor = s.made[i]
    cdef ov_shape shape
    cdef void* data = NULL
    cdef int status = s.api.tensor_get_shape(tensor, &shape)
    if status != 0:
        return ov_fail(&s.arrays.error, status, b"reading outputs")
    if not 0 <= shape.rank <= MAX_RANK:
        s.api.shape_free(&shape)
        return tf_fail(&s.arrays.error, TF_INTERNAL, b"an output has more than %d dimensions", <int>MAX_RANK)
    array.ndim = <int32_t>shape.rank
    memcpy(array.dims, shape.dims, <size_t>shape.rank * sizeof(int64_t))
    s.api.shape_free(&shape)
    status = s.api.tensor_get_byte_size(tensor, &array.nbytes)
    if status == 0 and array.nbytes:
        status = s.api.tensor_data(tensor, &data)
    if status != 0:
        return ov_fail(&s.arrays.error, status, b"reading outputs")
    if array.nbytes <= LARGE:
        array.block = block_new(array.nbytes if array.nbytes else 1)
        if array.block == NULL:
            return out_of_memory(s, array.nbytes)
        if array.nbytes:
            memcpy(array.block.data, data, array.nbytes)
        array.data = array.block.data
        s.copied_outputs += <int64_t>array.nbytes
        return 0
    array.block = block_wrap(data, array.nbytes, free_tensor, tensor)
    if array.block == NULL:
        return out_of_memory(s, array.nbytes)
    array.data = <uint8_t*>data
    s.made[i] = NULL        # the block's now
    s.lent += 1
    return 0


cdef int read_outputs(OvRun* s) noexcept nogil:
    cdef Arrays* a = &s.arrays
    cdef Array* array
    cdef int32_t i
    for i in range(a.n_outputs):
        array = &a.outputs[i]
        if s.outputs[i].given >= 0:
            if not array.wanted:
                continue
            if take_input(s, array, &a.inputs[s.outputs[i].given]) != 0:
                return -1
        elif s.outputs[i].row_bytes >= 0:
            s.bound += 1
        elif not array.wanted:
            continue
        elif take_output(s, array, i) != 0:
            return -1
        # Rows that only filled up the batch are cut off.
        if s.fixed_batch > a.rows and array.ndim > 0 and array.dims[0] == s.fixed_batch:
            array.dims[0] = a.rows
            array.nbytes = array.nbytes // <size_t>s.fixed_batch * <size_t>a.rows
        if array.ndim == 0 and a.max_batch == 0:
            array.ndim = 1
            array.dims[0] = 1
        array.present = True
    return 0


# --- a run -----------------------------------------------------------------------------------------------------------

# With one thread for inference OpenVINO's synchronous call (2026.4) says OK when a node has failed, and the outputs are
# what they were: memory of other requests. Its asynchronous call tells; it costs a change of threads.
cdef int infer(OvRun* s) noexcept nogil:
    cdef int status
    s.runs += 1
    if s.direct:
        status = s.api.infer_request_infer(s.request)
    else:
        status = s.api.infer_request_start_async(s.request)
        if status == 0:
            status = s.api.infer_request_wait(s.request)
    return ov_fail(&s.arrays.error, status, b"inference") if status != 0 else 0


# One run for n requests that share a batch of `rows`.
cdef void run_rows(OvRun* s, Request** requests, int32_t n, int64_t rows, Batch* batch) noexcept nogil:
    cdef int32_t i
    cdef int failed = arrays_gather(&s.arrays, requests, n, rows)
    if failed == 0:
        failed = set_inputs(s, requests)
    if failed == 0:
        failed = set_outputs(s)
    batch.t_input = now_ns()
    if failed == 0:
        failed = infer(s)
    batch.t_computed = now_ns()
    if failed == 0:
        failed = read_outputs(s)
    if failed == 0:
        arrays_scatter(&s.arrays, requests, n)
    else:
        for i in range(n):
            response_fail_error(&requests[i].response, &s.arrays.error)
    arrays_release(&s.arrays)
    for i in range(s.arrays.n_outputs):
        if s.made[i] != NULL:
            s.api.tensor_free(s.made[i])
            s.made[i] = NULL


cdef int execute_ov(void* state, Batch* batch) noexcept nogil:
    cdef OvRun* s = <OvRun*>state
    cdef int32_t k
    if s.arrays.max_batch > 0 or batch.n == 1:
        run_rows(s, batch.requests, batch.n, batch.rows, batch)
    else:
        # Without a batch dimension requests can not share a run.
        for k in range(batch.n):
            run_rows(s, &batch.requests[k], 1, 1, batch)
    return 0


cdef int fill_io(OvIo* io, tuple described) except -1:
    cdef Py_ssize_t i
    name, io.port, io.dtype, io.element, dims = described
    if len(dims) > MAX_RANK:
        raise InvalidArg(f"'{name}' has {len(dims)} dimensions, the limit is {MAX_RANK}")
    if dtype_size(io.dtype) == 0:
        raise InvalidArg(f"'{name}' has a datatype that can not be served")
    io.rank = <int32_t>len(dims)
    io.dims = <int64_t*>room(len(dims), sizeof(int64_t))
    for i in range(len(dims)):
        io.dims[i] = max(0, dims[i])
    return 0


# Bytes of one row, or of all without batching; -1 when a dimension varies or the product is too large.
cdef int64_t row_bytes(const OvIo* io, tuple dims, bint batched) except -2:
    cdef int64_t n = dtype_size(io.dtype)
    cdef Py_ssize_t i
    for i in range(1 if batched else 0, len(dims)):
        if dims[i] < 0 or (dims[i] > 0 and n > (<int64_t>1 << MAX_BYTES_SHIFT) // <int64_t>dims[i]):
            return -1
        n *= dims[i]
    return n


cdef class OvInstance(NativeInstance):

    def __init__(self, str name not None, Compiled compiled not None, int64_t max_batch, inputs, outputs, *,
                 int64_t fixed_batch=0, bint pad=False, bint direct=False):
        cdef OvRun* s = &self.run
        cdef Py_ssize_t i
        cdef int status
        if s.api != NULL:
            raise InvalidArg("an instance can not be initialised twice")
        s.api = ov_api()
        self.compiled = compiled
        if arrays_init(&s.arrays, <int32_t>len(inputs), <int32_t>len(outputs), max_batch) != 0:
            raise MemoryError
        s.inputs = <OvIo*>room(len(inputs), sizeof(OvIo))
        s.outputs = <OvIo*>room(len(outputs), sizeof(OvIo))
        s.made = <ov_tensor**>room(len(outputs), sizeof(void*))
        for i in range(len(inputs)):
            fill_io(&s.inputs[i], inputs[i])
        names = [described[0] for described in inputs]
        for i in range(len(outputs)):
            described, known = outputs[i]
            fill_io(&s.outputs[i], described)
            # A tensor has one name, whether the model takes it or gives it.
            s.outputs[i].given = <int32_t>names.index(described[0]) if described[0] in names else -1
            s.outputs[i].row_bytes = row_bytes(&s.outputs[i], described[4], max_batch > 0) if known else -1
        s.fixed_batch = fixed_batch
        s.pad = pad
        s.direct = direct
        with nogil:
            status = s.api.compiled_model_create_infer_request(compiled.ptr, &s.request)
        ov_check(status, "creating infer request object")
        self.name = name
        self.execute = execute_ov
        self.state = s

    def __dealloc__(self):
        cdef OvRun* s = &self.run
        cdef int32_t i
        if s.request != NULL:
            with nogil:
                s.api.infer_request_free(s.request)
        if s.inputs != NULL:
            for i in range(s.arrays.n_inputs):
                free(s.inputs[i].dims)
        if s.outputs != NULL:
            for i in range(s.arrays.n_outputs):
                free(s.outputs[i].dims)
        free(s.inputs)
        free(s.outputs)
        free(s.made)
        arrays_free(&s.arrays)

    def counters(self):
        cdef OvRun* s = &self.run
        return {"runs": s.runs, "borrowed": s.arrays.borrowed, "copied_bytes": s.arrays.copied_bytes,
                "bound": s.bound, "lent": s.lent, "copied_outputs": s.copied_outputs}
