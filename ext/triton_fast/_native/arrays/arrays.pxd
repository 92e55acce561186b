# What a framework sees of a batch: one dense array for each input and each output. Knows requests, not frameworks.
from libc.stdint cimport int32_t, int64_t, uint8_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.model cimport IoSpec, MAX_RANK, Model
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.shape cimport elements_within
from triton_fast._native.core.tensor cimport Tensor

# dims are full shapes, the batch dimension first. STRING data is the wire form: uint32 LE length + bytes, per element.
# block: what keeps the data, one reference; NULL: memory that lives as long as the requests.
cdef struct Array:
    uint8_t* data
    size_t nbytes
    Block* block
    int64_t* dims           # room for MAX_RANK + 2
    int32_t ndim
    int32_t dtype
    bint present            # of an input: the requests have it; of an output: made
    bint wanted             # of an output: some request, or the scheduler, needs it
    bint apart              # of an input: some request has it in a GPU's memory; data is NULL, the tensors count

# A run in preparation; belongs to one instance. inputs and outputs in the model's order, what the scheduler adds behind
# the others.
cdef struct Arrays:
    int32_t n_inputs
    int32_t n_outputs
    Array* inputs
    Array* outputs
    int64_t* dims
    int64_t rows            # of the batch; 1 where the model has no batch dimension
    int64_t max_batch
    bint takes_gpu          # inputs in a GPU's memory are passed on, not refused
    bint lasting            # inputs may be kept for longer than the run: arrays without a block are copied
    tf_error error
    int64_t borrowed        # arrays that were not copied, ever
    int64_t copied_bytes    # bytes that were copied to make arrays, ever


# 0, or -1 when memory ran out.
cdef int arrays_init(Arrays* a, int32_t n_inputs, int32_t n_outputs, int64_t max_batch) noexcept nogil
cdef void arrays_free(Arrays* a) noexcept nogil
# The dims that the model sees of input `spec`: the batch's rows first where there is one, the config's reshape applied.
cdef int shape_of(Array* array, const IoSpec* spec, const Tensor* t, int64_t rows, bint batched) noexcept nogil
# The inputs of n requests as arrays, and which outputs are wanted. Returns 0, or -1 with a.error filled. In either case
# arrays_release afterwards.
cdef int arrays_gather(Arrays* a, Request** requests, int32_t n, int64_t rows) noexcept nogil
# Check the outputs that were made and give every request its slices, or all of them the reason why not.
cdef void arrays_scatter(Arrays* a, Request** requests, int32_t n) noexcept nogil
cdef void arrays_release(Arrays* a) noexcept nogil


# Elements of a shape, or -1 when a dimension is negative or they are more than any array may have.
cdef inline int64_t elements(const int64_t* dims, int32_t ndim) noexcept nogil:
    return elements_within(dims, ndim, <int64_t>1 << 46)
