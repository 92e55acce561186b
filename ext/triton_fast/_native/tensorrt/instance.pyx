# A run: inputs go to the device on the instance's stream, the engine is queued behind them, outputs come back behind
# it, and the thread sleeps once, for the last. What TensorRT was told stays told: a run whose shapes and addresses are
# those of the last costs one call of it, or none where a graph has been captured.
from cpython.ref cimport Py_XDECREF, PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t, uintptr_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset

from triton_fast._native.arrays.arrays cimport (
    Array, arrays_free, arrays_init, arrays_release, arrays_scatter, elements, shape_of,
)
from triton_fast._native.core.memory cimport Block, block_new, block_unref
from triton_fast._native.core.model cimport IoSpec
from triton_fast._native.core.native cimport (
    DT_INT32, DT_INT64, MEM_GPU, TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE, dtype_size, now_ns, tf_error, tf_fail,
)
from triton_fast._native.core.request cimport Request, Tensor, request_needs, response_fail_error
from triton_fast._native.cuda.copies cimport (
    cuda_copy_device, cuda_copy_in, cuda_copy_out, cuda_copy_peer, cuda_fill, cuda_wait, stream_close, stream_open,
)
from triton_fast._native.cuda.device_pool cimport device_block_new
from triton_fast._native.cuda.driver cimport (
    TF_CU_CAPTURE_THREAD_LOCAL, cuda_api, cuda_check, cuda_enter, cuda_error, tf_cu_handle,
)
from triton_fast._native.sched.instance cimport Batch
from triton_fast._native.tensorrt.shapes cimport (
    MAX_SEEN, TRT_RANK, Profile, Seen, shapes_add, shapes_choose, shapes_find, shapes_free, shapes_init, shapes_put,
)

from triton_fast.errors import InvalidArg, ServerError

cdef enum:
    ALIGNMENT = 256         # TensorRT's, of every address
    DIRECT = 65536          # bytes of a request's input from which on it is copied to the device by itself
    MAX_KEY = 65536
    MAX_BYTES_SHIFT = 46
    GRAPH_AFTER = 1         # plain runs before a capture: TensorRT finishes what it put off in the first


cdef int out_of_memory(TrtRun* s, size_t n) noexcept nogil:
    return tf_fail(&s.arrays.error, TF_UNAVAILABLE, b"out of memory for %zu bytes", n)


# --- what a batch asks for -------------------------------------------------------------------------------------------

# The values of a shape tensor, as the first row of the first request has them, behind the batch's size where there is
# one. All requests of a run have the same.
cdef int read_values(TrtRun* s, TrtIo* io, const Tensor* t, const IoSpec* spec, int64_t rows, bint batched) noexcept nogil:
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


# Shapes and sizes of all inputs, and which outputs somebody needs.
cdef int describe(TrtRun* s, Request** requests, int32_t n, int64_t rows) noexcept nogil:
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
        if array.nbytes > io.cap:
            # Possible only where profiles are wider apart than any of them: no profile will take the key.
            s.wanted[i] = 0
        memcpy(s.key + io.at, array.dims, <size_t>io.rank * sizeof(int64_t))
    return 0


# --- inputs ----------------------------------------------------------------------------------------------------------

cdef int fill_values(TrtRun* s, TrtIo* io) noexcept nogil:
    cdef int32_t i, narrow
    for i in range(io.n_values):
        if io.dtype == DT_INT32:
            narrow = <int32_t>s.key[io.at + i]
            memcpy(io.block.data + <size_t>i * 4, &narrow, 4)
        else:
            memcpy(io.block.data + <size_t>i * 8, &s.key[io.at + i], 8)
    return 0


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


# Queue the copies of input i. Memory of the device itself is used where it lies, unless a graph knows another address.
cdef int send_input(TrtRun* s, Request** requests, int32_t n, int32_t i, bint fixed) noexcept nogil:
    cdef TrtIo* io = &s.inputs[i]
    cdef const Tensor* t = requests[0].by_index[i]
    cdef size_t at = 0
    cdef int32_t k
    cdef bint gather = n > 1
    s.wanted[i] = <uint64_t><uintptr_t>io.block.data
    if io.on_host:
        return fill_values(s, io)
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


# --- outputs ---------------------------------------------------------------------------------------------------------

# Room for n bytes of output i on the device. The stream is idle as far as this memory is concerned: each run waits for
# its end. Graphs know the old address, so they go.
cdef int grow_output(TrtRun* s, int32_t i, size_t n) noexcept nogil:
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
    io.cap = n
    return 0


# Host memory for the outputs that somebody wants, and their copies into it, queued behind the run.
cdef int fetch_outputs(TrtRun* s, Seen* seen) noexcept nogil:
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
cdef int read_shape_outputs(TrtRun* s) noexcept nogil:
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

cdef void drop_graph(void* graph) noexcept nogil:
    if graph != NULL and cuda_api() != NULL:
        cuda_api().GraphExecDestroy(<tf_cu_handle>graph)


cdef void forget_graphs(TrtRun* s) noexcept nogil:
    cdef int32_t i
    cdef tf_error e
    if s.shapes.seen == NULL or cuda_enter(s.device, &e) != 0:
        return
    for i in range(s.shapes.n_seen):
        drop_graph(s.shapes.seen[i].graph)
        s.shapes.seen[i].graph = NULL


cdef int launch_graph(TrtRun* s, Seen* seen) noexcept nogil:
    s.launched += 1
    s.queued = True
    return cuda_check(&s.arrays.error, cuda_api().GraphLaunch(<tf_cu_handle>seen.graph, s.stream), s.device,
                      b"unable to execute graph for inference")


cdef bint can_capture() noexcept nogil:
    return cuda_api() != NULL and cuda_api().StreamBeginCapture != NULL and cuda_api().StreamEndCapture != NULL \
        and cuda_api().GraphInstantiate != NULL and cuda_api().GraphLaunch != NULL \
        and cuda_api().GraphExecDestroy != NULL and cuda_api().GraphDestroy != NULL


# --- a run -----------------------------------------------------------------------------------------------------------

cdef int finish_stream(TrtRun* s, tf_error* e) noexcept nogil:
    cdef int status
    if not s.queued:
        return 0
    if s.busy_wait:
        status = cuda_check(e, cuda_api().StreamSynchronize(s.stream), s.device, b"inference")
    else:
        status = cuda_wait(s.device, s.stream, e)
    s.queued = False
    return status


cdef Seen* look_up(TrtInstance self, TrtRun* s) noexcept nogil:
    cdef Seen* seen = shapes_find(&s.shapes, s.key)
    cdef int32_t profile
    cdef void* dropped = NULL
    if seen != NULL:
        return seen
    profile = shapes_choose(&s.shapes, s.key)
    if profile < 0:
        with gil:
            self.refuse()
        return NULL
    seen = shapes_put(&s.shapes, s.key, profile, &dropped)
    drop_graph(dropped)
    return seen


cdef int run_queued(TrtInstance self, Request** requests, int32_t n, Batch* batch) noexcept nogil:
    cdef TrtRun* s = &self.run
    cdef Seen* seen
    cdef int32_t i
    cdef bint fixed
    if cuda_enter(s.device, &s.arrays.error) != 0:
        return -1
    seen = look_up(self, s)
    if seen == NULL:
        return -1
    fixed = seen.graph != NULL or (s.graphs and seen.wants_graph)
    for i in range(s.arrays.n_inputs):
        if send_input(s, requests, n, i, fixed) != 0:
            return -1
    batch.t_input = now_ns()
    if seen.graph != NULL:
        if launch_graph(s, seen) != 0:
            return -1
    else:
        with gil:
            if self.enqueue(seen) != 0:
                return -1
        if seen.graph != NULL and launch_graph(s, seen) != 0:
            return -1
    seen.runs += 1
    return fetch_outputs(s, seen)


# One run for n requests that share a batch of `rows`.
cdef void run_rows(TrtInstance self, Request** requests, int32_t n, int64_t rows, Batch* batch) noexcept nogil:
    cdef TrtRun* s = &self.run
    cdef tf_error e
    cdef int32_t i
    cdef int failed = describe(s, requests, n, rows)
    batch.t_input = now_ns()
    s.runs += 1
    if failed == 0:
        failed = run_queued(self, requests, n, batch)
    # Also after a failure: what is queued uses memory of these requests.
    if finish_stream(s, &e) != 0 and failed == 0:
        s.arrays.error = e
        failed = -1
    batch.t_computed = now_ns()
    if failed == 0:
        failed = read_shape_outputs(s)
    if failed == 0:
        arrays_scatter(&s.arrays, requests, n)
    else:
        for i in range(n):
            response_fail_error(&requests[i].response, &s.arrays.error)
    arrays_release(&s.arrays)
    for i in range(s.arrays.n_inputs):
        block_unref(s.staged[i])
        s.staged[i] = NULL


# Whether two requests have the same shape tensors, as far as a run looks at them.
cdef bint same_values(const TrtRun* s, Request* a, Request* b) noexcept nogil:
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


cdef int execute_trt(void* state, Batch* batch) noexcept nogil:
    cdef TrtInstance self = <TrtInstance>state
    cdef int32_t k, first = 0
    cdef int64_t rows = 0
    if self.run.arrays.max_batch == 0:
        for k in range(batch.n):
            run_rows(self, &batch.requests[k], 1, 1, batch)
        return 0
    for k in range(batch.n):
        if k > first and not same_values(&self.run, batch.requests[first], batch.requests[k]):
            run_rows(self, &batch.requests[first], k - first, rows, batch)
            first = k
            rows = 0
        rows += batch.requests[k].batch
    if batch.n > first:
        run_rows(self, &batch.requests[first], batch.n - first, rows, batch)
    return 0


# --- with TensorRT's Python API --------------------------------------------------------------------------------------

cdef int fail_with(tf_error* e, object error) noexcept:
    cdef int32_t code = int(error.code) if isinstance(error, ServerError) else TF_INTERNAL
    try:
        text = str(error).encode("utf-8", "replace")
    except Exception:       # of the error's own __str__; the requests must fail all the same
        text = b""
    text = text or type(error).__name__.encode()
    return tf_fail(e, code, b"%s", <const char*>text)


cdef void* room(size_t n, size_t size) except NULL:
    cdef void* p = calloc(n + 1, size)
    if p == NULL:
        raise MemoryError
    return p


cdef class TrtInstance(NativeInstance):

    def __init__(self, str name not None, int device, int64_t max_batch, inputs, outputs, complain, *, warn,
                 graphs=None, bint busy_wait=False):
        cdef TrtRun* s = &self.run
        cdef tf_error e
        cdef Py_ssize_t i
        cdef int32_t at = 0
        if s.inputs != NULL:
            raise InvalidArg("an instance can not be initialised twice")
        self.name = name
        self.shown = name
        self.complain = complain
        self.warn = warn
        self.contexts = []
        self.rooms = [None] * len(outputs)
        self.graph_specs = list(graphs or ())
        self.input_names = [one[0] for one in inputs]
        self.output_names = [one[0] for one in outputs]
        s.device = device
        if arrays_init(&s.arrays, <int32_t>len(inputs), <int32_t>len(outputs), max_batch) != 0:
            raise MemoryError
        s.inputs = <TrtIo*>room(len(inputs), sizeof(TrtIo))
        s.outputs = <TrtIo*>room(len(outputs), sizeof(TrtIo))
        s.staged = <Block**>room(len(inputs), sizeof(Block*))
        s.wanted = <uint64_t*>room(len(inputs) + len(outputs), sizeof(uint64_t))
        for i in range(len(inputs)):
            fill_io(&s.inputs[i], inputs[i])
            s.inputs[i].at = at
            at += s.inputs[i].n_values if s.inputs[i].n_values else s.inputs[i].rank
            if at > MAX_KEY:
                raise InvalidArg(f"the shapes of '{name}' have more than {MAX_KEY} numbers")
        for i in range(len(outputs)):
            fill_io(&s.outputs[i], outputs[i])
        if shapes_init(&s.shapes, at, <int32_t>len(outputs)) != 0:
            raise MemoryError
        s.key = <int64_t*>room(at, sizeof(int64_t))
        if stream_open(device, &s.stream, &e) != 0:
            raise cuda_error(&e)
        for i in range(len(inputs)):
            make_room(s, &s.inputs[i], inputs[i][5])
        s.graphs = bool(self.graph_specs) and can_capture()
        s.busy_wait = busy_wait
        self.execute = execute_trt
        self.state = <void*>self

    def __dealloc__(self):
        free_native(&self.run)

    @property
    def stream(self):
        return <uintptr_t>self.run.stream

    def input_address(self, int32_t i):
        if not 0 <= i < self.run.arrays.n_inputs or self.run.inputs[i].block == NULL:
            raise InvalidArg(f"there is no input {i}")
        return <uintptr_t>self.run.inputs[i].block.data

    def set_values(self, int32_t i, values):
        cdef TrtIo* io
        cdef int32_t k
        if not 0 <= i < self.run.arrays.n_inputs or len(values) != self.run.inputs[i].n_values:
            raise InvalidArg(f"input {i} is no shape tensor of {len(values)} values")
        io = &self.run.inputs[i]
        for k in range(io.n_values):
            self.run.key[io.at + k] = values[k]
        fill_values(&self.run, io)

    def synchronize(self):
        cdef tf_error e
        cdef int status
        with nogil:
            status = cuda_wait(self.run.device, self.run.stream, &e)
        if status != 0:
            raise cuda_error(&e)

    def add_profile(self, context, int32_t index, low, best, high):
        cdef TrtRun* s = &self.run
        cdef int32_t i, n = s.shapes.length
        cdef int64_t* numbers
        if not len(low) == len(best) == len(high) == n:
            raise InvalidArg(f"a profile of '{self.name}' must have {n} numbers")
        numbers = <int64_t*>room(3 * <size_t>n, sizeof(int64_t))
        try:
            for i in range(n):
                numbers[i] = low[i]
                numbers[n + i] = best[i]
                numbers[2 * n + i] = high[i]
            if shapes_add(&s.shapes, index, numbers, numbers + n, numbers + 2 * n,
                          s.arrays.n_inputs + s.arrays.n_outputs) != 0:
                raise MemoryError
        finally:
            free(numbers)
        self.contexts.append(context)

    def allocate(self, sizes, rooms):
        cdef TrtRun* s = &self.run
        cdef int32_t i
        if len(sizes) != s.arrays.n_outputs or len(rooms) != s.arrays.n_outputs:
            raise InvalidArg(f"'{self.name}' has {s.arrays.n_outputs} outputs")
        self.rooms = list(rooms)
        for i in range(s.arrays.n_outputs):
            s.outputs[i].unknown = rooms[i] is not None
            if not s.outputs[i].unknown or s.outputs[i].on_host:
                make_room(s, &s.outputs[i], sizes[i])
        if any(one is not None for one in rooms) or self.has_values():
            s.graphs = False        # as in Triton: what depends on values can not be replayed

    def output_room(self, int32_t i, size_t size):
        """Device memory for output i, asked for by TensorRT during a run; 0 when there is none."""
        cdef tf_error e
        if not 0 <= i < self.run.arrays.n_outputs or grow_output(&self.run, i, size if size else 1) != 0:
            return 0
        return <uintptr_t>self.run.outputs[i].block.data

    def counters(self):
        cdef TrtRun* s = &self.run
        return {
            "runs": s.runs, "enqueued": s.enqueued, "launched": s.launched, "captured": s.captured,
            "shapes_set": s.shapes_set, "addresses_set": s.addresses_set, "gathered": s.gathered,
            "copied_in": s.copied_in, "copied_out": s.copied_out, "in_place": s.in_place,
        }

    def close(self):
        cdef tf_error e
        if self.run.inputs == NULL:
            return
        if cuda_enter(self.run.device, &e) == 0 and self.run.stream != NULL:
            with nogil:
                cuda_wait(self.run.device, self.run.stream, &e)
        # Contexts before the memory that they know the addresses of.
        self.contexts.clear()
        self.rooms = [None] * len(self.rooms)
        self.complain = self.warn = None
        with nogil:
            free_native(&self.run)

    cdef bint has_values(self):
        cdef int32_t i
        for i in range(self.run.arrays.n_inputs):
            if self.run.inputs[i].on_host:
                return True
        for i in range(self.run.arrays.n_outputs):
            if self.run.outputs[i].on_host:
                return True
        return False

    # Say why no profile takes the key. With one profile the text is Triton's.
    cdef int refuse(self) noexcept:
        cdef TrtRun* s = &self.run
        cdef Profile* p
        cdef int32_t k, i, j, count
        try:
            faults = []
            for k in range(s.shapes.n_profiles):
                p = &s.shapes.profiles[k]
                for i in range(s.arrays.n_inputs):
                    count = s.inputs[i].n_values if s.inputs[i].n_values else s.inputs[i].rank
                    for j in range(s.inputs[i].at, s.inputs[i].at + count):
                        if not p.low[j] <= s.key[j] <= p.high[j]:
                            what = "shape value" if s.inputs[i].n_values else "the shape of dimension"
                            faults.append((
                                p.index, self.input_names[i],
                                f"model expected {what} {j - s.inputs[i].at} to be between {p.low[j]} and {p.high[j]} "
                                f"but received {s.key[j]}"))
                            break
                    else:
                        continue
                    break
            if len(faults) == 1:
                text = f"request specifies invalid shape for input '{faults[0][1]}' for {self.name}. Error details: " \
                       f"{faults[0][2]}"
            else:
                text = f"failed to find any Optimization Profile of {self.name} to support the requested dimensions " \
                       "(or shape values): " + "; ".join(
                           f"profile {index}, input '{name}': {fault}" for index, name, fault in faults)
            raise InvalidArg(text)
        except BaseException as error:
            return fail_with(&s.arrays.error, error)

    # Tell the profile's context what differs from its last run, then queue the engine, plainly or into a graph.
    cdef int enqueue(self, Seen* seen) noexcept:
        cdef TrtRun* s = &self.run
        try:
            self.prepare(seen)
            if s.graphs and seen.wants_graph and seen.runs >= GRAPH_AFTER and self.capture(seen):
                return 0
            s.enqueued += 1
            s.queued = True
            if not self.contexts[seen.profile].execute_async_v3(<uintptr_t>s.stream):
                raise self.failure(f"unable to enqueue for inference {self.name}")
            self.take_unknown(seen)
            return 0
        except BaseException as error:
            # What TensorRT was told is not known any more.
            s.shapes.profiles[seen.profile].serial = 0
            memset(s.shapes.profiles[seen.profile].now, 0xff, <size_t>s.shapes.length * sizeof(int64_t))
            return fail_with(&s.arrays.error, error)

    cdef int prepare(self, Seen* seen) except -1:
        cdef TrtRun* s = &self.run
        cdef Profile* p = &s.shapes.profiles[seen.profile]
        cdef TrtIo* io
        cdef int32_t i, k
        cdef size_t size
        context = self.contexts[seen.profile]
        if p.serial != seen.serial:
            p.serial = 0
            for i in range(s.arrays.n_inputs):
                io = &s.inputs[i]
                size = <size_t>io.rank * sizeof(int64_t)
                if io.n_values or memcmp(p.now + io.at, seen.key + io.at, size) == 0:
                    continue
                s.shapes_set += 1
                if not context.set_input_shape(self.input_names[i], tuple([seen.key[io.at + k] for k in range(io.rank)])):
                    raise self.failure(f"trt failed to set binding dimension for input '{self.input_names[i]}' for "
                                       f"{self.name}")
                memcpy(p.now + io.at, seen.key + io.at, size)
        # Addresses before shapes are inferred: those of shape tensors decide.
        for i in range(s.arrays.n_inputs):
            self.bind(context, p, i, s.wanted[i], self.input_names[i])
        if not seen.known:
            self.infer(context, seen)
        for i in range(s.arrays.n_outputs):
            if not s.outputs[i].unknown:
                self.bind(context, p, s.arrays.n_inputs + i, <uint64_t><uintptr_t>s.outputs[i].block.data,
                          self.output_names[i])
        p.serial = seen.serial
        return 0

    cdef int bind(self, object context, Profile* p, int32_t i, uint64_t address, object name) except -1:
        if p.bound[i] == address:
            return 0
        self.run.addresses_set += 1
        if not context.set_tensor_address(name, address):
            p.bound[i] = 0
            raise self.failure(f"'{name}' does not map to an input or output tensor")
        p.bound[i] = address
        return 0

    # The shapes of outputs, and room for them.
    cdef int infer(self, object context, Seen* seen) except -1:
        cdef TrtRun* s = &self.run
        cdef int32_t i
        for i in range(s.arrays.n_outputs):
            if s.outputs[i].unknown or s.outputs[i].on_host:
                continue
            self.note_shape(seen, i, context.get_tensor_shape(self.output_names[i]))
            if grow_output(s, i, seen.nbytes[i]) != 0:
                raise cuda_error(&s.arrays.error)
        seen.known = True
        if s.graphs:
            seen.wants_graph = self.is_in_graph_specs(seen)
        return 0

    cdef int note_shape(self, Seen* seen, int32_t i, object dims) except -1:
        cdef TrtRun* s = &self.run
        cdef Py_ssize_t k, n = len(dims)
        cdef int64_t count
        if n > TRT_RANK:
            raise self.failure(f"the shape of output '{self.output_names[i]}' can not be inferred")
        for k in range(n):
            seen.dims[i * TRT_RANK + k] = dims[k]
        seen.ndim[i] = <int32_t>n
        count = elements(seen.dims + <size_t>i * TRT_RANK, seen.ndim[i])
        if count < 0:
            raise self.failure(f"the shape of output '{self.output_names[i]}' can not be inferred")
        seen.nbytes[i] = <size_t>count * <size_t>dtype_size(s.outputs[i].dtype)
        return 0

    # What TensorRT has said meanwhile of outputs whose shapes depend on data.
    cdef int take_unknown(self, Seen* seen) except -1:
        cdef int32_t i
        for i in range(self.run.arrays.n_outputs):
            if self.run.outputs[i].unknown:
                dims = self.rooms[i].take()
                if dims is None:
                    raise self.failure(f"the shape of output '{self.output_names[i]}' is not known after the run")
                self.note_shape(seen, i, dims)
        return 0

    cdef bint is_in_graph_specs(self, Seen* seen) except -1:
        cdef TrtRun* s = &self.run
        cdef int32_t i, k
        cdef int32_t first = 1 if s.arrays.max_batch > 0 else 0
        for rows, shapes in self.graph_specs:
            if first and rows != s.arrays.rows:
                continue
            for name, dims in shapes:
                i = self.input_names.index(name)
                if list(dims) != [seen.key[s.inputs[i].at + k] for k in range(first, s.inputs[i].rank)]:
                    break
            else:
                return True
        return False

    # Have TensorRT queue its work into a graph. False: it can not, and no other will be tried.
    cdef bint capture(self, Seen* seen) except -1:
        cdef TrtRun* s = &self.run
        cdef tf_cu_handle graph = NULL
        cdef tf_cu_handle ready = NULL
        cdef tf_error e
        said = ""
        if cuda_check(&e, cuda_api().StreamBeginCapture(s.stream, TF_CU_CAPTURE_THREAD_LOCAL), s.device,
                      b"capturing a graph") != 0:
            said = text_of(&e)
        else:
            try:
                done = self.contexts[seen.profile].execute_async_v3(<uintptr_t>s.stream)
            except Exception as error:
                done = False
                said = str(error)
            if cuda_check(&e, cuda_api().StreamEndCapture(s.stream, &graph), s.device, b"capturing a graph") != 0:
                said = said or text_of(&e)
            elif not done:
                said = said or self.complain()
            elif cuda_check(&e, cuda_api().GraphInstantiate(&ready, graph, 0), s.device, b"making a graph") != 0:
                said = text_of(&e)
            if graph != NULL:
                cuda_api().GraphDestroy(graph)
        if ready == NULL:
            s.graphs = False
            self.warn(f"CUDA graphs are not used for {self.name}: {said or 'there is no graph'}")
            return False
        seen.graph = <void*>ready
        s.captured += 1
        return True

    cdef object failure(self, str text):
        from triton_fast.errors import Internal
        said = self.complain()
        return Internal(f"{text}: {said}" if said else text)


cdef object text_of(const tf_error* e):
    return e.text[:e.len].decode("utf-8", "replace")


cdef int fill_io(TrtIo* io, tuple described) except -1:
    _, io.dtype, io.rank, on_host, n_values, _ = described
    io.on_host = on_host
    io.n_values = n_values
    if dtype_size(io.dtype) == 0 or not 0 <= io.rank <= TRT_RANK or not 0 <= io.n_values <= MAX_KEY:
        raise InvalidArg(f"'{described[0]}' has a datatype or rank that can not be served")
    return 0


cdef int make_room(TrtRun* s, TrtIo* io, size_t n) except -1:
    cdef tf_error e
    if n > <size_t>1 << MAX_BYTES_SHIFT:
        raise MemoryError
    if io.on_host:
        io.block = block_new(n if n else 1)
        if io.block == NULL:
            raise MemoryError
        memset(io.block.data, 0, n)
    else:
        io.block = device_block_new(s.device, n if n else 1, &e)
        # Whoever had the memory before shall not be read by this model's clients.
        if io.block == NULL or cuda_fill(s.device, io.block.data, 0, n, s.stream, &e) != 0:
            raise cuda_error(&e)
    io.cap = n
    return 0


# All but the arrays of numbers may be there or not.
cdef void free_native(TrtRun* s) noexcept nogil:
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
