# Outputs of a batch. Memory whose size is known comes from the block pool; what ORT allocates is lent to the responses
# and released when the last of them is gone. Responses are slices of one block, never copies. Knows no inputs beyond
# their addresses.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memmove

from triton_fast._native.core.memory cimport Block, block_new, block_ref, block_unref, block_wrap
from triton_fast._native.core.native cimport DT_STRING, MEM_CPU, TF_INTERNAL, TF_UNAVAILABLE, tf_fail
from triton_fast._native.core.model cimport MAX_RANK, IoSpec
from triton_fast._native.core.outputs cimport request_wants
from triton_fast._native.core.request cimport (
    Request, request_alloc, response_fail, response_fail_error, response_outputs,
)
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.ort.capi cimport OrtShapeInfo, OrtStatus, OrtValue, ort_api, ort_fail
from triton_fast._native.ort.ragged cimport part_of
from triton_fast._native.ort.session cimport SessionHold, hold_ref, hold_unref
from triton_fast._native.ort.state cimport OrtIo, OrtRun, View

cdef extern from *:
    int snprintf(char* target, size_t room, const char* format, ...) nogil

cdef size_t MAX_BYTES = <size_t>1 << 46
cdef size_t MAX_STRING = 0xffffffff


cdef int add_output(OrtRun* s, int32_t i, int64_t rows, bint bind) noexcept nogil:
    cdef OrtIo* io = &s.outputs[i]
    cdef int32_t k = s.n_out
    cdef int64_t[MAX_RANK + 2] dims
    cdef size_t nbytes
    cdef OrtStatus* status
    s.out_names[k] = io.name
    s.out_values[k] = NULL
    s.out_blocks[k] = NULL
    s.out_index[k] = i
    s.place[i] = k
    s.views[k].block = NULL
    s.views[k].offsets = NULL
    s.n_out += 1
    if not (bind and io.fixed):
        return 0
    if io.row_bytes > 0 and rows > <int64_t>MAX_BYTES // io.row_bytes:
        return tf_fail(&s.error, TF_UNAVAILABLE, b"output '%s' is too large for a batch of %lld", io.name,
                       <long long>rows)
    nbytes = <size_t>(io.row_bytes * rows)
    s.out_blocks[k] = block_new(nbytes)
    if s.out_blocks[k] == NULL:
        return tf_fail(&s.error, TF_UNAVAILABLE, b"out of memory for %zu bytes of output '%s'", nbytes, io.name)
    memcpy(dims, io.dims, <size_t>io.rank * sizeof(int64_t))
    if s.max_batch > 0:
        dims[0] = rows
    status = s.api.CreateTensorWithDataAsOrtValue(
        s.cpu, s.out_blocks[k].data, nbytes, dims, <size_t>io.rank, io.element, &s.out_values[k])
    if status != NULL:
        return ort_fail(&s.error, status)
    s.bound += 1
    return 0


cdef int plan(OrtRun* s, Request** requests, int32_t n, int64_t rows, bint bind) noexcept nogil:
    cdef int32_t i, k, w
    cdef bint every = False
    s.n_out = 0
    for i in range(n):
        if requests[i].n_wanted == 0:
            every = True
    for i in range(s.n_outputs):
        s.place[i] = -1
    if not every:
        for k in range(n):
            for w in range(requests[k].n_wanted):
                i = requests[k].wanted[w].index
                if 0 <= i < s.n_outputs and s.place[i] < 0 and add_output(s, i, rows, bind) != 0:
                    return -1
    for i in range(s.n_outputs):
        if s.place[i] < 0 and (every or requests[0].model.outputs[i].kept) and add_output(s, i, rows, bind) != 0:
            return -1
    return 0


# --- reading ---------------------------------------------------------------------------------------------------------

# Memory of an OrtValue that responses still carry.
cdef struct Lent:
    OrtValue* value
    SessionHold* hold


cdef void return_lent(Block* block) noexcept nogil:
    cdef Lent* lent = <Lent*>(<Block*>block.owner).data
    ort_api().ReleaseValue(lent.value)
    hold_unref(lent.hold)
    block_unref(<Block*>block.owner)


# Move output k's OrtValue into a block. On success the block owns the value.
cdef Block* lend(OrtRun* s, int32_t k, void* data, size_t nbytes) noexcept nogil:
    cdef Block* note = block_new(sizeof(Lent))
    cdef Block* block
    if note == NULL:
        return NULL
    block = block_wrap(data, nbytes, return_lent, note)
    if block == NULL:
        block_unref(note)
        return NULL
    (<Lent*>note.data).value = s.out_values[k]
    (<Lent*>note.data).hold = s.hold
    hold_ref(s.hold)
    s.out_values[k] = NULL
    return block


# Whether ORT handed out memory of an input instead of an output of its own (a graph input that is also an output).
cdef bint overlaps_input(OrtRun* s, Request* r, const uint8_t* data, size_t nbytes) noexcept nogil:
    cdef int32_t i
    cdef const Tensor* t
    for i in range(s.n_in):
        if s.in_blocks[i] != NULL and data < s.in_blocks[i].data + s.in_blocks[i].cap and \
                s.in_blocks[i].data < data + nbytes:
            return True
    for i in range(s.n_inputs):
        t = r.by_index[i]
        if t != NULL and t.nbytes and data < t.ptr + t.nbytes and t.ptr < data + nbytes:
            return True
    return False


# The view's dims as clients see them: the config's own shape where it reshapes, the batch dimension first.
cdef int client_dims(OrtRun* s, const IoSpec* spec, const OrtIo* io, View* v, const int64_t* dims, int32_t rank) \
        noexcept nogil:
    cdef int32_t batched = 1 if s.max_batch > 0 else 0
    cdef int32_t k, source = batched
    cdef int32_t at = 0
    v.lead = dims[0] if rank > 0 else -1
    if rank == 0 and not batched:
        # A scalar has the shape the config gives it: ones.
        v.ndim = spec.ndim
        for k in range(spec.ndim):
            v.dims[k] = 1
        return 0
    if spec.reshape_ndim < 0 or (batched and rank == 0):
        v.ndim = rank
        memcpy(v.dims, dims, <size_t>rank * sizeof(int64_t))
        return 0
    v.ndim = spec.ndim + batched
    if batched:
        v.dims[0] = dims[0]
        at = 1
    for k in range(spec.ndim):
        v.dims[at + k] = spec.dims[k]
        if spec.dims[k] < 0:
            # The next variable dimension of the model's shape.
            while source < rank and source - batched < spec.reshape_ndim and spec.reshape[source - batched] >= 0:
                source += 1
            if source >= rank:
                return tf_fail(&s.error, TF_INTERNAL, b"the shape of output '%s' does not fit its reshape", io.name)
            v.dims[at + k] = dims[source]
            source += 1
    return 0


# Wire form in place: ORT's content is put at the end of the block and each element moves forward, behind its length.
# The target of element i ends at or before the source of element i + 1, so nothing is overwritten before it is read.
cdef int read_strings(OrtRun* s, int32_t k, View* v, int64_t count) noexcept nogil:
    cdef OrtStatus* status
    cdef size_t total = 0, at, size
    cdef size_t* start
    cdef uint8_t* content
    cdef uint32_t prefix
    cdef int64_t i
    cdef const char* name = s.outputs[s.out_index[k]].name
    status = s.api.GetStringTensorDataLength(s.out_values[k], &total)
    if status != NULL:
        return ort_fail(&s.error, status)
    if total > MAX_BYTES or <uint64_t>count > MAX_BYTES // 16:
        return tf_fail(&s.error, TF_UNAVAILABLE, b"output '%s' is too large", name)
    v.nbytes = total + 4 * <size_t>count
    v.block = block_new(v.nbytes)
    v.offsets = block_new((<size_t>count + 1) * sizeof(size_t))
    if v.block == NULL or v.offsets == NULL:
        return tf_fail(&s.error, TF_UNAVAILABLE, b"out of memory for %zu bytes of output '%s'", v.nbytes, name)
    v.data = v.block.data
    start = <size_t*>v.offsets.data
    content = v.data + 4 * <size_t>count
    if count > 0:
        status = s.api.GetStringTensorContent(s.out_values[k], content, total, start, <size_t>count)
        if status != NULL:
            return ort_fail(&s.error, status)
    start[count] = total
    for i in range(count):
        if start[i] > start[i + 1] or start[i + 1] > total:
            return tf_fail(&s.error, TF_INTERNAL, b"output '%s' has string elements that overlap", name)
        size = start[i + 1] - start[i]
        if size > MAX_STRING:
            return tf_fail(&s.error, TF_INTERNAL, b"output '%s' has a string of %zu bytes, the limit is 4294967295",
                           name, size)
        at = start[i] + 4 * <size_t>i
        prefix = <uint32_t>size
        memcpy(v.data + at, &prefix, 4)
        memmove(v.data + at + 4, content + start[i], size)
    return 0


cdef int read_output(OrtRun* s, Request* r, int32_t k, int64_t rows) noexcept nogil:
    cdef OrtIo* io = &s.outputs[s.out_index[k]]
    cdef const IoSpec* spec = &r.model.outputs[s.out_index[k]]
    cdef View* v = &s.views[k]
    cdef int64_t[MAX_RANK + 2] dims
    cdef size_t rank = 0
    cdef int64_t count = 1
    cdef int32_t i
    cdef OrtShapeInfo* shape = NULL
    cdef OrtStatus* status
    cdef void* data = NULL
    if s.out_blocks[k] != NULL:
        memcpy(dims, io.dims, <size_t>io.rank * sizeof(int64_t))
        if s.max_batch > 0:
            dims[0] = rows
        v.block = s.out_blocks[k]
        s.out_blocks[k] = NULL
        v.data = v.block.data
        v.nbytes = <size_t>(io.row_bytes * rows)
        v.split = True
        return client_dims(s, spec, io, v, dims, io.rank)
    if s.out_values[k] == NULL:
        return tf_fail(&s.error, TF_INTERNAL, b"output tensor '%s' is not found", io.name)
    status = s.api.GetTensorTypeAndShape(s.out_values[k], &shape)
    if status != NULL:
        return ort_fail(&s.error, status)
    status = s.api.GetDimensionsCount(shape, &rank)
    if status == NULL and rank <= MAX_RANK:
        status = s.api.GetDimensions(shape, dims, rank)
    s.api.ReleaseTensorTypeAndShapeInfo(shape)
    if status != NULL:
        return ort_fail(&s.error, status)
    if rank > MAX_RANK:
        return tf_fail(&s.error, TF_INTERNAL, b"output '%s' has %zu dimensions", io.name, rank)
    for i in range(<int32_t>rank):
        if dims[i] < 0 or (dims[i] > 0 and count > <int64_t>MAX_BYTES // dims[i]):
            return tf_fail(&s.error, TF_INTERNAL, b"output '%s' has a shape that is no shape", io.name)
        count *= dims[i]
    if io.fixed and (<int32_t>rank != io.rank or (s.max_batch > 0 and dims[0] != rows)):
        # The model does not keep to the shape it declares: let ORT allocate this output from now on.
        io.fixed = False
    if client_dims(s, spec, io, v, dims, <int32_t>rank) != 0:
        return -1
    v.split = s.max_batch == 0 or (rank > 0 and dims[0] == rows)
    v.per_row = count // rows if v.split and rows > 0 else count
    v.count = count
    v.at = 0
    if io.dtype == DT_STRING:
        return read_strings(s, k, v, count)
    status = s.api.GetTensorMutableData(s.out_values[k], &data)
    if status != NULL:
        return ort_fail(&s.error, status)
    v.nbytes = <size_t>count * <size_t>io.size
    if v.nbytes and overlaps_input(s, r, <const uint8_t*>data, v.nbytes):
        v.block = block_new(v.nbytes)
        if v.block != NULL:
            memcpy(v.block.data, data, v.nbytes)
    else:
        v.block = lend(s, k, data, v.nbytes)
    if v.block == NULL:
        return tf_fail(&s.error, TF_UNAVAILABLE, b"out of memory for output '%s'", io.name)
    v.data = v.block.data
    return 0


cdef int read_outputs(OrtRun* s, Request** requests, int64_t rows) noexcept nogil:
    cdef int32_t k
    for k in range(s.n_out):
        if read_output(s, requests[0], k, rows) != 0:
            return -1
    return 0


# --- responses -------------------------------------------------------------------------------------------------------

# Elements a to b of output k's view, as bytes.
cdef inline void stretch(const View* v, int32_t size, int64_t a, int64_t b, size_t* first, size_t* last) noexcept nogil:
    cdef const size_t* start
    if v.offsets != NULL:
        start = <const size_t*>v.offsets.data
        first[0] = start[a] + 4 * <size_t>a
        last[0] = start[b] + 4 * <size_t>b
    else:
        first[0] = <size_t>a * <size_t>size
        last[0] = <size_t>b * <size_t>size


# r's part of an output that is cut by the shapes of an input.
cdef int cut_output(OrtRun* s, Request* r, Tensor* t, int32_t i) noexcept nogil:
    cdef View* v = &s.views[s.place[i]]
    cdef int64_t[MAX_RANK + 2] dims
    cdef size_t first = 0, last = 0
    cdef int64_t count = part_of(s, r, i, dims, &t.ndim)
    if count >= 0 and count > v.count - v.at:
        count = tf_fail(&s.error, TF_INTERNAL, b"output '%s' has %lld elements, too few to be cut by the shapes of the "
                        b"input", s.outputs[i].name, <long long>v.count)
    if count < 0:
        response_fail_error(&r.response, &s.error)
        return -1
    t.dims = <int64_t*>request_alloc(r, <size_t>t.ndim * sizeof(int64_t))
    if t.dims == NULL:
        response_fail(&r.response, TF_UNAVAILABLE, b"out of memory", 13)
        return -1
    memcpy(t.dims, dims, <size_t>t.ndim * sizeof(int64_t))
    stretch(v, s.outputs[i].size, v.at, v.at + count, &first, &last)
    t.ptr = v.data + first
    t.nbytes = last - first
    t.block = v.block
    block_ref(v.block)
    return 0


# Go past r's parts of the outputs that are cut by shapes, whether it wanted them or not.
cdef void pass_cuts(OrtRun* s, Request* r) noexcept nogil:
    cdef int64_t[MAX_RANK + 2] dims
    cdef int32_t k, ndim = 0
    cdef int64_t count
    for k in range(s.n_out):
        if s.cut_by[s.out_index[k]] >= 0:
            count = part_of(s, r, s.out_index[k], dims, &ndim)
            s.views[k].at = min(s.views[k].count, s.views[k].at + max(count, 0))


cdef int slice_output(OrtRun* s, Request* r, Tensor* t, int32_t i, int64_t row, int64_t rows) noexcept nogil:
    cdef View* v = &s.views[s.place[i]]
    cdef const IoSpec* spec = &r.model.outputs[i]
    cdef size_t first = 0, last = v.nbytes
    cdef int64_t batch = r.batch
    cdef int32_t n
    t.name = spec.name
    t.name_len = spec.name_len
    t.index = i
    t.dtype = s.outputs[i].dtype
    t.kind = MEM_CPU
    if s.cut_by[i] >= 0:
        return cut_output(s, r, t, i)
    if not v.split:
        n = snprintf(
            s.text, sizeof(s.text),
            b"failed to split the output tensor '%s' in responses: expected batch size of %lld in model output, "
            b"got %lld", s.outputs[i].name, <long long>rows, <long long>v.lead)
        response_fail(&r.response, TF_INTERNAL, s.text,
                      <size_t>n if n < <int32_t>sizeof(s.text) else sizeof(s.text) - 1)
        return -1
    t.ndim = v.ndim
    t.dims = <int64_t*>request_alloc(r, (<size_t>v.ndim + 1) * sizeof(int64_t))
    if t.dims == NULL:
        response_fail(&r.response, TF_UNAVAILABLE, b"out of memory", 13)
        return -1
    memcpy(t.dims, v.dims, <size_t>v.ndim * sizeof(int64_t))
    if s.max_batch > 0:
        t.dims[0] = batch
        if v.offsets != NULL:
            stretch(v, 0, row * v.per_row, (row + batch) * v.per_row, &first, &last)
        elif batch != rows:
            first = v.nbytes // <size_t>rows * <size_t>row
            last = first + v.nbytes // <size_t>rows * <size_t>batch
    t.ptr = v.data + first
    t.nbytes = last - first
    t.block = v.block
    block_ref(v.block)
    return 0


# Outputs that the client did not ask for and the scheduler needs.
cdef inline bint is_extra(Request* r, int32_t i) noexcept nogil:
    return r.model.outputs[i].kept and not request_wants(r, i)


# The client's outputs in its order, then the scheduler's.
cdef void fill_response(OrtRun* s, Request* r, Tensor* t, int64_t row, int64_t rows) noexcept nogil:
    cdef int32_t i
    for i in range(r.n_wanted):
        if slice_output(s, r, t, r.wanted[i].index, row, rows) != 0:
            return
        t += 1
    for i in range(s.n_outputs):
        if r.n_wanted and not is_extra(r, i):
            continue
        if slice_output(s, r, t, i, row, rows) != 0:
            return
        t += 1


cdef void scatter(OrtRun* s, Request** requests, int32_t n, int64_t rows) noexcept nogil:
    cdef int32_t k, i, count
    cdef int64_t row = 0
    cdef Request* r
    cdef Tensor* t
    for k in range(n):
        r = requests[k]
        count = r.n_wanted if r.n_wanted else s.n_outputs
        for i in range(s.n_outputs):
            if is_extra(r, i):
                count += 1
        t = response_outputs(&r.response, count)
        if t == NULL:
            response_fail(&r.response, TF_UNAVAILABLE, b"out of memory", 13)
        else:
            fill_response(s, r, t, row, rows)
        row += r.batch
        if s.has_cuts:
            pass_cuts(s, r)


cdef void release_outputs(OrtRun* s) noexcept nogil:
    cdef int32_t k
    for k in range(s.n_out):
        if s.out_values[k] != NULL:
            s.api.ReleaseValue(s.out_values[k])
        block_unref(s.out_blocks[k])
        block_unref(s.views[k].block)
        block_unref(s.views[k].offsets)
    s.n_out = 0
