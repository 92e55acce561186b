# One instance: gather, run, scatter, without the GIL from dequeue to completion. Built from plain Python descriptions
# of the config's inputs and outputs; knows no config message, queue or front end. One thread executes it at a time.
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free
from libc.string cimport memcpy, strstr

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport DT_STRING, dtype_size, now_ns, tf_error
from triton_fast._native.core.model cimport MAX_RANK
from triton_fast._native.core.request cimport Request, response_fail_error
from triton_fast._native.core.room cimport room
from triton_fast._native.cuda.driver cimport cuda_api, cuda_enter
from triton_fast._native.ort.capi cimport (
    OrtStatus, OrtValue, TF_ORT_DEVICE_ALLOCATOR, TF_ORT_MEMORY_DEFAULT, ort_api, ort_check, ort_fail, value_in,
)
from triton_fast._native.ort.gather cimport gather, release_inputs
from triton_fast._native.ort.ragged cimport ELEMENT_COUNT, ITEM_SHAPE_FLATTEN
from triton_fast._native.ort.scatter cimport plan, read_outputs, release_outputs, scatter
from triton_fast._native.ort.session cimport Session, hold_ref, hold_unref
from triton_fast._native.ort.state cimport BatchInput, OrtIo, OrtRun, View
from triton_fast._native.sched.instance cimport Batch

from triton_fast.errors import InvalidArg


cdef OrtStatus* run_session(OrtRun* s) noexcept nogil:
    cdef OrtStatus* status
    s.runs += 1
    status = s.api.Run(s.hold.session, s.options, s.in_names, <value_in*>s.in_values, <size_t>s.n_in, s.out_names,
                       <size_t>s.n_out, s.out_values)
    if status != NULL and s.gpu != NULL:
        settle(s)
    return status


# A run that fails may leave copies from and to our blocks under way, which others would get while a GPU writes to them.
cdef void settle(OrtRun* s) noexcept nogil:
    cdef tf_error ignored
    if cuda_api() != NULL and cuda_enter(s.device, &ignored) == 0:
        cuda_api().CtxSynchronize()


# ORT's words for an output that does not fit, the second where it is copied from a GPU.
cdef inline bint about_shape(const char* message) noexcept nogil:
    return strstr(message, b"shape") != NULL or strstr(message, b"size mismatch") != NULL


# Run once more with memory that ORT chooses, when the first run may have failed only because an output did not have the
# shape that the model declares. read_outputs then sees which output it was, and it is not allocated beforehand again.
cdef OrtStatus* run_again(OrtRun* s, Request** requests, int32_t n, int64_t rows, OrtStatus* status) noexcept nogil:
    cdef int32_t k
    cdef bint bound = False
    cdef OrtStatus* second
    for k in range(s.n_out):
        if s.out_blocks[k] != NULL:
            bound = True
    if not bound or not about_shape(s.api.GetErrorMessage(status)):
        return status
    release_outputs(s)
    if plan(s, requests, n, rows, False) != 0:
        return status
    s.reruns += 1
    second = run_session(s)
    if second == NULL:
        s.api.ReleaseStatus(status)
        return NULL
    s.api.ReleaseStatus(second)
    return status


# One run for n requests that share a batch of `rows`.
cdef void run_rows(OrtRun* s, Request** requests, int32_t n, int64_t rows, Batch* batch) noexcept nogil:
    cdef OrtStatus* status
    cdef int32_t k
    cdef int failed = gather(s, requests, n, rows)
    if failed == 0:
        failed = plan(s, requests, n, rows, True)
    batch.t_input = now_ns()
    if failed == 0:
        status = run_session(s)
        if status != NULL:
            status = run_again(s, requests, n, rows, status)
        if status != NULL:
            failed = ort_fail(&s.error, status)
    batch.t_computed = now_ns()
    if failed == 0:
        failed = read_outputs(s, requests, rows)
    if failed == 0:
        scatter(s, requests, n, rows)
    else:
        for k in range(n):
            response_fail_error(&requests[k].response, &s.error)
    release_outputs(s)
    release_inputs(s)


cdef int execute_ort(void* state, Batch* batch) noexcept nogil:
    cdef OrtRun* s = <OrtRun*>state
    cdef int32_t k
    if s.max_batch > 0 or batch.n == 1:
        run_rows(s, batch.requests, batch.n, batch.rows, batch)
    else:
        # Without a batch dimension requests can not share a run.
        for k in range(batch.n):
            run_rows(s, &batch.requests[k], 1, 1, batch)
    return 0


cdef int fill_io(OrtIo* io, tuple described) except -1:
    cdef Py_ssize_t i
    cdef int dtype, element
    cdef tuple dims
    name, dtype, element, dims = described
    encoded = name.encode()
    if len(dims) > MAX_RANK:
        raise InvalidArg(f"'{name}' has {len(dims)} dimensions, the limit is {MAX_RANK}")
    io.name = <char*>room(len(encoded), 1)
    memcpy(io.name, <const char*>encoded, len(encoded))
    io.dtype = dtype
    io.element = element
    io.size = dtype_size(dtype)
    if io.size == 0 and dtype != DT_STRING:
        raise InvalidArg(f"'{name}' has a datatype that can not be served")
    io.dims = <int64_t*>room(len(dims), sizeof(int64_t))
    io.rank = <int32_t>len(dims)
    for i in range(len(dims)):
        io.dims[i] = dims[i]
    return 0


cdef int fill_batch_input(BatchInput* b, tuple described, Py_ssize_t n_inputs) except -1:
    name, b.kind, b.source, b.dtype, b.element = described
    encoded = name.encode()
    if not 0 <= b.source < n_inputs or not ELEMENT_COUNT <= b.kind <= ITEM_SHAPE_FLATTEN:
        raise InvalidArg(f"batch input '{name}' can not be made")
    b.name = <char*>room(len(encoded), 1)
    memcpy(b.name, <const char*>encoded, len(encoded))
    return 0


# Bytes of one batch item if every other dimension is known and small enough for the product, else -1.
cdef int64_t row_bytes(const OrtIo* io, bint batched) noexcept:
    cdef int64_t n = io.size
    cdef int32_t i
    for i in range(1 if batched else 0, io.rank):
        if io.dims[i] < 0 or (io.dims[i] > 0 and n > (<int64_t>1 << 46) // io.dims[i]):
            return -1
        n *= io.dims[i]
    return n


cdef void free_run(OrtRun* s) noexcept nogil:
    cdef int32_t i
    if s.inputs != NULL:
        for i in range(s.n_inputs):
            free(s.inputs[i].name)
            free(s.inputs[i].dims)
    if s.outputs != NULL:
        for i in range(s.n_outputs):
            free(s.outputs[i].name)
            free(s.outputs[i].dims)
    if s.cpu != NULL:
        s.api.ReleaseMemoryInfo(s.cpu)
    if s.gpu != NULL:
        s.api.ReleaseMemoryInfo(s.gpu)
    if s.options != NULL:
        s.api.ReleaseRunOptions(s.options)
    hold_unref(s.hold)
    free(s.inputs)
    free(s.outputs)
    free(s.in_names)
    free(s.in_values)
    free(s.in_blocks)
    free(s.out_names)
    free(s.out_values)
    free(s.out_blocks)
    free(s.out_index)
    free(s.place)
    free(s.views)
    if s.batch_inputs != NULL:
        for i in range(s.n_batch_inputs):
            free(s.batch_inputs[i].name)
    free(s.batch_inputs)
    free(s.cut_by)
    free(s)


cdef class OrtInstance(NativeInstance):

    def __init__(self, str name not None, Session session not None, int64_t max_batch, inputs, outputs,
                 dict run_entries=None, *, batch_inputs=(), cuts=(), int device=-1):
        cdef OrtRun* s
        cdef Py_ssize_t i, n_in = len(inputs), n_out = len(outputs), n_batch = len(batch_inputs)
        if self.run != NULL:
            raise InvalidArg("an instance can not be initialised twice")
        s = <OrtRun*>room(0, sizeof(OrtRun))
        self.run = s
        s.api = ort_api()
        s.max_batch = max_batch
        s.hold = session.hold
        hold_ref(s.hold)
        s.inputs = <OrtIo*>room(n_in, sizeof(OrtIo))
        s.n_inputs = <int32_t>n_in
        s.outputs = <OrtIo*>room(n_out, sizeof(OrtIo))
        s.n_outputs = <int32_t>n_out
        names = set()
        for i in range(n_in):
            fill_io(&s.inputs[i], inputs[i])
            names.add(inputs[i][0])
        for i in range(n_out):
            described, known = outputs[i]
            fill_io(&s.outputs[i], described)
            s.outputs[i].row_bytes = row_bytes(&s.outputs[i], max_batch > 0)
            # ORT does not write a graph input that is a graph output too into memory given to it: it lends the input.
            s.outputs[i].fixed = (known and s.outputs[i].dtype != DT_STRING and s.outputs[i].row_bytes >= 0
                                  and described[0] not in names)
        s.batch_inputs = <BatchInput*>room(n_batch, sizeof(BatchInput))
        s.n_batch_inputs = <int32_t>n_batch
        for i in range(n_batch):
            fill_batch_input(&s.batch_inputs[i], batch_inputs[i], n_in)
        s.cut_by = <int32_t*>room(n_out, sizeof(int32_t))
        for i in range(n_out):
            s.cut_by[i] = -1
        for i, source in cuts:
            if not (0 <= i < n_out and 0 <= source < n_in):
                raise InvalidArg("a cut names an output or an input that does not exist")
            s.cut_by[i] = source
            s.outputs[i].fixed = False      # its first dimension is not the batch
            s.has_cuts = True
        n_in += n_batch
        s.in_names = <const char**>room(n_in, sizeof(void*))
        s.in_values = <OrtValue**>room(n_in, sizeof(void*))
        s.in_blocks = <Block**>room(n_in, sizeof(void*))
        s.out_names = <const char**>room(n_out, sizeof(void*))
        s.out_values = <OrtValue**>room(n_out, sizeof(void*))
        s.out_blocks = <Block**>room(n_out, sizeof(void*))
        s.out_index = <int32_t*>room(n_out, sizeof(int32_t))
        s.place = <int32_t*>room(n_out, sizeof(int32_t))
        s.views = <View*>room(n_out, sizeof(View))
        ort_check(s.api.GetAllocatorWithDefaultOptions(&s.allocator))
        ort_check(s.api.CreateCpuMemoryInfo(TF_ORT_DEVICE_ALLOCATOR, TF_ORT_MEMORY_DEFAULT, &s.cpu))
        if device >= 0:
            ort_check(s.api.CreateMemoryInfo(b"Cuda", TF_ORT_DEVICE_ALLOCATOR, device, TF_ORT_MEMORY_DEFAULT, &s.gpu))
            s.device = device
            self.device = device
            self.takes_gpu = True
        ort_check(s.api.CreateRunOptions(&s.options))
        for key, value in (run_entries or {}).items():
            k = key.encode()
            v = value.encode()
            ort_check(s.api.AddRunConfigEntry(s.options, <const char*>k, <const char*>v))
        self.name = name
        self.execute = execute_ort
        self.copies_from = 2
        self.state = s

    def __dealloc__(self):
        cdef OrtRun* s = self.run
        if s != NULL:
            with nogil:
                free_run(s)

    def counters(self):
        cdef OrtRun* s = self.run
        return {"runs": s.runs, "reruns": s.reruns, "borrowed": s.borrowed, "copied_bytes": s.copied_bytes,
                "bound": s.bound, "device_bytes": s.device_bytes}
