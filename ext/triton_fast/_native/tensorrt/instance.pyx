# A run: inputs go to the device on the instance's stream, the engine is queued behind them, outputs come back behind
# it, and the thread sleeps once, for the last. What TensorRT was told stays told: a run whose shapes and addresses are
# those of the last costs one call of it, or none where a graph has been captured.
from libc.stdint cimport int32_t, int64_t, uint64_t, uintptr_t
from libc.stdlib cimport free
from libc.string cimport memcmp, memcpy, memset

from triton_fast._native.arrays.arrays cimport arrays_init, arrays_release, arrays_scatter, elements
from triton_fast._native.core.memory cimport Block, block_new, block_unref
from triton_fast._native.core.native cimport dtype_size, now_ns, tf_error, tf_fail
from triton_fast._native.core.request cimport Request, response_fail_error
from triton_fast._native.core.room cimport room
from triton_fast._native.cuda.copies cimport cuda_fill, cuda_wait, stream_open_ranked
from triton_fast._native.cuda.device_pool cimport device_block_new
from triton_fast._native.cuda.driver cimport (
    TF_CU_CAPTURE_THREAD_LOCAL, cuda_api, cuda_check, cuda_enter, cuda_error, tf_cu_handle,
)
from triton_fast._native.sched.instance cimport Batch, raised_text
from triton_fast._native.tensorrt.run cimport (
    MAX_BYTES_SHIFT, TrtIo, TrtRun, trt_can_capture, trt_describe, trt_drop_graph, trt_fetch, trt_fill_values,
    trt_finish, trt_free, trt_grow, trt_launch, trt_read_values, trt_same_values, trt_send,
)
from triton_fast._native.tensorrt.shapes cimport (
    TRT_RANK, shapes_add, shapes_choose, shapes_find, shapes_init, shapes_put,
)

from triton_fast.errors import Internal, InvalidArg

cdef enum:
    MAX_KEY = 65536
    GRAPH_AFTER = 1         # runs before that with which a graph is made: what comes once needs none


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
    trt_drop_graph(dropped)
    return seen


cdef int run_queued(TrtInstance self, Request** requests, int32_t n, Batch* batch) noexcept nogil:
    cdef TrtRun* s = &self.run
    cdef Seen* seen
    cdef bint fixed
    cdef int failed
    if cuda_enter(s.device, &s.arrays.error) != 0:
        return -1
    seen = look_up(self, s)
    if seen == NULL:
        return -1
    fixed = seen.graph != NULL or (s.graphs and seen.wants_graph)
    if trt_send(s, requests, n, fixed) != 0:
        return -1
    batch.t_input = now_ns()
    if seen.graph != NULL:
        if trt_launch(s, seen) != 0:
            return -1
    else:
        with gil:
            failed = self.enqueue(seen)
        if failed != 0:
            return -1
    seen.runs += 1
    return trt_fetch(s, seen)


# One run for n requests that share a batch of `rows`.
cdef void run_rows(TrtInstance self, Request** requests, int32_t n, int64_t rows, Batch* batch) noexcept nogil:
    cdef TrtRun* s = &self.run
    cdef tf_error e
    cdef int32_t i
    cdef int failed = trt_describe(s, requests, n, rows)
    batch.t_input = now_ns()
    s.runs += 1
    if failed == 0:
        failed = run_queued(self, requests, n, batch)
    # Also after a failure: what is queued uses memory of these requests.
    if trt_finish(s, &e) != 0 and failed == 0:
        s.arrays.error = e
        failed = -1
    batch.t_computed = now_ns()
    if failed == 0:
        failed = trt_read_values(s)
    if failed == 0:
        arrays_scatter(&s.arrays, requests, n)
    else:
        for i in range(n):
            response_fail_error(&requests[i].response, &s.arrays.error)
    arrays_release(&s.arrays)
    for i in range(s.arrays.n_inputs):
        block_unref(s.staged[i])
        s.staged[i] = NULL


# A model with a batch dimension runs a batch at once; where shape tensors decide, those that say the same.
cdef int execute_trt(void* state, Batch* batch) noexcept nogil:
    cdef TrtRun* s = &(<TrtInstance>state).run
    cdef Request** requests = batch.requests
    cdef int32_t k, first = 0
    cdef int64_t rows = 0
    if s.arrays.max_batch == 0:
        for k in range(batch.n):
            run_rows(<TrtInstance>state, requests + k, 1, 1, batch)
        return 0
    for k in range(batch.n):
        if k > first and not trt_same_values(s, requests[first], requests[k]):
            run_rows(<TrtInstance>state, requests + first, k - first, rows, batch)
            first = k
            rows = 0
        rows += requests[k].batch
    run_rows(<TrtInstance>state, requests + first, batch.n - first, rows, batch)
    return 0


# --- with TensorRT's Python API --------------------------------------------------------------------------------------

cdef int fail_with(tf_error* e, object error) noexcept:
    cdef int32_t code
    cdef bytes text = raised_text(error, &code)
    return tf_fail(e, code, b"%s", <const char*>text)


cdef class TrtInstance(NativeInstance):

    def __init__(self, str name not None, int device, int64_t max_batch, inputs, outputs, complain, *, warn,
                 graphs=None, int priority=0, bint busy_wait=False):
        cdef TrtRun* s = &self.run
        cdef tf_error e
        cdef Py_ssize_t i
        cdef int32_t at = 0
        if s.inputs != NULL:
            raise InvalidArg("an instance can not be initialised twice")
        self.name = name
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
        if stream_open_ranked(device, priority, &s.stream, &e) != 0:
            raise cuda_error(&e)
        for i in range(len(inputs)):
            make_room(s, &s.inputs[i], inputs[i][5])
        s.graphs = bool(self.graph_specs) and trt_can_capture()
        s.busy_wait = busy_wait
        self.execute = execute_trt
        self.takes_gpu = True
        self.device = device
        self.state = <void*>self

    def __dealloc__(self):
        trt_free(&self.run)

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
        trt_fill_values(&self.run, io)

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
        cdef int status
        if not 0 <= i < self.run.arrays.n_outputs:
            return 0
        with nogil:
            status = trt_grow(&self.run, i, size if size else 1)
        if status != 0:
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
            trt_free(&self.run)

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

    # Tell the profile's context what differs from its last run, then queue the engine. A graph is made behind that, for
    # the next time: TensorRT finishes in a plain run what it put off when shapes changed.
    cdef int enqueue(self, Seen* seen) noexcept:
        cdef TrtRun* s = &self.run
        try:
            self.prepare(seen)
            s.enqueued += 1
            s.queued = True
            if not self.contexts[seen.profile].execute_async_v3(<uintptr_t>s.stream):
                raise self.failure(f"unable to enqueue for inference {self.name}")
            self.take_unknown(seen)
            if s.graphs and seen.wants_graph and seen.runs >= GRAPH_AFTER:
                self.capture(seen)
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
                dims = tuple([seen.key[io.at + k] for k in range(io.rank)])
                if not context.set_input_shape(self.input_names[i], dims):
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
        cdef int status
        for i in range(s.arrays.n_outputs):
            if s.outputs[i].unknown or s.outputs[i].on_host:
                continue
            self.note_shape(seen, i, context.get_tensor_shape(self.output_names[i]))
            with nogil:
                status = trt_grow(s, i, seen.nbytes[i])
            if status != 0:
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

    # Have TensorRT queue its work into a graph; where it can not, no other will be tried.
    cdef int capture(self, Seen* seen) except -1:
        cdef TrtRun* s = &self.run
        cdef tf_cu_handle graph = NULL
        cdef tf_cu_handle ready = NULL
        cdef tf_error e
        cdef int status
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
            else:
                with nogil:     # large graphs take their time
                    status = cuda_check(&e, cuda_api().GraphInstantiate(&ready, graph, 0), s.device, b"making a graph")
                if status != 0:
                    said = text_of(&e)
            if graph != NULL:
                cuda_api().GraphDestroy(graph)
        if ready == NULL:
            s.graphs = False
            self.warn(f"CUDA graphs are not used for {self.name}: {said or 'there is no graph'}")
            return 0
        seen.graph = <void*>ready
        s.captured += 1
        return 0

    cdef object failure(self, str text):
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
