# Packing, checking and handing out of cached responses; see entry.pxd for the form. Knows no table and no scheduler.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcmp, memcpy, memset

from triton_fast._native.core.memory cimport block_new, block_ref, block_unref
from triton_fast._native.core.native cimport DT_COUNT, DT_STRING, MEM_GPU, TF_OK, dtype_size
from triton_fast._native.core.model cimport MAX_RANK, Model, ModelHandle
from triton_fast._native.core.request cimport Request, Response, request_free, request_new, response_outputs
from triton_fast._native.core.shape cimport elements_of, mul_overflow
from triton_fast._native.core.tensor cimport MAX_TENSORS, Param, Tensor

cdef enum:
    ALIGN = 64

cdef size_t MAX_BYTES = <size_t>1 << 40
cdef const char* MAGIC = b"TFC\x01"

cdef struct Start:
    char[4] magic
    uint32_t n

cdef struct Row:            # followed by the dims
    uint32_t output
    uint32_t dtype
    uint32_t rank
    uint32_t zero
    uint64_t nbytes


cdef inline size_t aligned(size_t n) noexcept nogil:
    return (n + ALIGN - 1) & ~<size_t>(ALIGN - 1)


# Whether the model set parameters. Those that an ensemble adds only repeat the request's own, which the key holds; as
# in Triton, answers from the cache go without them.
cdef bint has_own_params(Response* p) noexcept nogil:
    cdef Param* q = p.params
    while q != NULL:
        if q.key_len < 9 or memcmp(q.key, b"sequence_", 9) != 0:
            return True
        q = q.next
    return False


cdef Block* entry_pack(Response* p, bint* unfit) noexcept nogil:
    cdef size_t rows = sizeof(Start), total
    cdef int32_t i
    cdef Tensor* t
    cdef Block* entry
    cdef uint8_t* at
    cdef uint8_t* data
    cdef Start start
    cdef Row row
    unfit[0] = True
    if p.code != TF_OK or has_own_params(p) or p.n_outputs > MAX_TENSORS:
        return NULL
    for i in range(p.n_outputs):
        t = &p.outputs[i]
        if t.kind == MEM_GPU or t.index < 0 or t.ndim < 0 or t.ndim > MAX_RANK:
            return NULL
        rows += sizeof(Row) + <size_t>t.ndim * sizeof(int64_t)
    total = aligned(rows)
    for i in range(p.n_outputs):
        if p.outputs[i].nbytes > MAX_BYTES - total:
            return NULL
        total += aligned(p.outputs[i].nbytes)
    unfit[0] = False
    entry = block_new(HEAD + total)
    if entry == NULL:
        return NULL
    memset(entry.data, 0, HEAD)
    head_of(entry).packed = total
    at = entry.data + HEAD
    data = at + aligned(rows)
    memcpy(start.magic, MAGIC, 4)
    start.n = <uint32_t>p.n_outputs
    memcpy(at, &start, sizeof(Start))
    at += sizeof(Start)
    for i in range(p.n_outputs):
        t = &p.outputs[i]
        row.output = <uint32_t>t.index
        row.dtype = <uint32_t>t.dtype
        row.rank = <uint32_t>t.ndim
        row.zero = 0
        row.nbytes = t.nbytes
        memcpy(at, &row, sizeof(Row))
        at += sizeof(Row)
        if t.ndim:
            memcpy(at, t.dims, <size_t>t.ndim * sizeof(int64_t))
        at += <size_t>t.ndim * sizeof(int64_t)
        if t.nbytes:
            memcpy(data, t.ptr, t.nbytes)
        memset(data + t.nbytes, 0, aligned(t.nbytes) - t.nbytes)
        data += aligned(t.nbytes)
    memset(at, 0, aligned(rows) - rows)
    return entry


cdef int entry_answer(Block* entry, Response* p) noexcept nogil:
    cdef uint8_t* at = entry.data + HEAD
    cdef uint8_t* data
    cdef Start* start = <Start*>at
    cdef Row* row
    cdef int32_t i, n = <int32_t>start.n
    cdef Tensor* t = response_outputs(p, n)
    if t == NULL:
        p.n_outputs = 0
        return -1
    at += sizeof(Start)
    for i in range(n):
        row = <Row*>at
        t[i].index = <int32_t>row.output
        t[i].dtype = <int32_t>row.dtype
        t[i].ndim = <int32_t>row.rank
        t[i].dims = <int64_t*>(at + sizeof(Row))
        t[i].nbytes = row.nbytes
        t[i].block = entry
        block_ref(entry)
        at += sizeof(Row) + <size_t>row.rank * sizeof(int64_t)
    data = entry.data + aligned(<size_t>(at - entry.data))
    for i in range(n):
        t[i].ptr = data
        data += aligned(t[i].nbytes)
    return 0


# ---- bytes from elsewhere

# The wire form of STRING: count elements, and nothing after.
cdef bint strings_fit(const uint8_t* p, size_t left, int64_t count) noexcept nogil:
    cdef uint32_t n
    while count > 0:
        if left < 4:
            return False
        memcpy(&n, p, 4)
        if n > left - 4:
            return False
        p += 4 + <size_t>n
        left -= 4 + <size_t>n
        count -= 1
    return left == 0


# How many elements these dims hold, or -1. rank <= MAX_RANK; they need not be aligned.
cdef int64_t elements(const uint8_t* dims, uint32_t rank) noexcept nogil:
    cdef int64_t[MAX_RANK] aligned_dims
    memcpy(aligned_dims, dims, <size_t>rank * 8)
    return elements_of(aligned_dims, <int32_t>rank)


# Where the data begins, counted from the packed form's start, if the rows are whole and of this model; else 0.
cdef size_t check_rows(const uint8_t* data, size_t n, Model* m, uint32_t* n_rows) noexcept nogil:
    cdef Start start
    cdef Row row
    cdef size_t off = sizeof(Start)
    cdef uint32_t _
    if n < sizeof(Start):
        return 0
    memcpy(&start, data, sizeof(Start))
    if memcmp(start.magic, MAGIC, 4) != 0 or start.n > <uint32_t>m.n_outputs:
        return 0
    for _ in range(start.n):
        if n - off < sizeof(Row):
            return 0
        memcpy(&row, data + off, sizeof(Row))
        off += sizeof(Row)
        if row.output >= <uint32_t>m.n_outputs or row.rank > MAX_RANK or row.zero != 0:
            return 0
        if row.dtype >= DT_COUNT or row.dtype != <uint32_t>m.outputs[row.output].dtype:
            return 0
        if n - off < <size_t>row.rank * 8:
            return 0
        off += <size_t>row.rank * 8
    n_rows[0] = start.n
    return aligned(off)


cdef bint tensor_fits(Row* row, const uint8_t* dims, const uint8_t* data, size_t left) noexcept nogil:
    cdef int64_t count = elements(dims, row.rank), nbytes = 0
    if count < 0 or row.nbytes > left or aligned(row.nbytes) > left:
        return False
    if row.dtype == DT_STRING:
        return strings_fit(data, row.nbytes, count)
    return not mul_overflow(count, dtype_size(<int32_t>row.dtype), &nbytes) and <uint64_t>nbytes == row.nbytes


cdef Block* entry_read(const uint8_t* data, size_t n, Model* m) noexcept nogil:
    cdef uint32_t _, n_rows = 0
    cdef size_t at = sizeof(Start), off
    cdef Row row
    cdef Block* entry
    if n > MAX_BYTES:
        return NULL
    off = check_rows(data, n, m, &n_rows)
    if off == 0 or off > n:
        return NULL
    for _ in range(n_rows):
        memcpy(&row, data + at, sizeof(Row))
        at += sizeof(Row)
        if not tensor_fits(&row, data + at, data + off, n - off):
            return NULL
        at += <size_t>row.rank * 8
        off += aligned(row.nbytes)
    if off != n:
        return NULL
    entry = block_new(HEAD + n)
    if entry == NULL:
        return NULL
    memset(entry.data, 0, HEAD)
    head_of(entry).packed = n
    memcpy(entry.data + HEAD, data, n)
    return entry


def read(ModelHandle model not None, bytes data):
    """Return what packed bytes hold, as {output: (datatype, shape, bytes)}; None if they are no response of this model.

    For tests and fuzzing: answers a request with them and reads the response.
    """
    cdef Block* entry = entry_read(<const uint8_t*><const char*>data, len(data), model.ptr)
    cdef Request* r
    cdef Tensor* t
    cdef int32_t i, k
    if entry == NULL:
        return None
    r = request_new(model.ptr)
    if r == NULL or entry_answer(entry, &r.response) != 0:
        block_unref(entry)
        raise MemoryError
    block_unref(entry)
    found = {}
    for i in range(r.response.n_outputs):
        t = &r.response.outputs[i]
        spec = model.ptr.outputs[t.index]
        found[spec.name[:spec.name_len].decode()] = (
            t.dtype, tuple([t.dims[k] for k in range(t.ndim)]), (<char*>t.ptr)[:t.nbytes] if t.nbytes else b"")
    request_free(r)
    return found
