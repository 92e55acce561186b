# A run of a TensorRT model as far as it needs no interpreter: what requests ask for, copies both ways, graphs, waiting.
# Knows CUDA and requests; TensorRT itself is instance.pyx's.
from libc.stdint cimport int32_t, int64_t, uint64_t

from triton_fast._native.arrays.arrays cimport Arrays
from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Request
from triton_fast._native.cuda.driver cimport tf_cu_handle
from triton_fast._native.tensorrt.shapes cimport Seen, Shapes

cdef enum:
    MAX_BYTES_SHIFT = 46    # log2 of the bytes that a tensor may have

# An input or output of the engine, in the place that the config gives it.
cdef struct TrtIo:
    int32_t dtype
    int32_t rank            # of the engine
    int32_t at              # of an input: where its numbers begin in a key
    int32_t n_values        # of a shape tensor; 0: it is none
    bint on_host            # its memory is the CPU's
    bint unknown            # of an output: its shape depends on data, TensorRT asks for its memory
    Block* block            # its memory for as long as the instance lives
    size_t cap              # bytes that may be used

# Belongs to one instance, whose thread alone touches it once it serves.
cdef struct TrtRun:
    int device
    tf_cu_handle stream
    Arrays arrays
    Shapes shapes
    TrtIo* inputs
    TrtIo* outputs
    int64_t* key            # of the run in preparation
    uint64_t* wanted        # addresses of inputs that it needs
    Block** staged          # what inputs were gathered in, until they are copied
    bint graphs             # CUDA graphs are made; turned off by the first that fails
    bint busy_wait
    bint queued             # the stream may still use memory of this run
    # What was done so far.
    int64_t runs
    int64_t enqueued        # calls of execute_async_v3
    int64_t launched        # runs of a graph
    int64_t captured
    int64_t shapes_set
    int64_t addresses_set
    int64_t gathered        # bytes gathered in host memory
    int64_t copied_in       # bytes to the device, one way or the other
    int64_t copied_out
    int64_t in_place        # inputs of clients' device memory that were not copied

# All return 0, or -1 with s.arrays.error filled, where nothing else is said.

# Shapes and sizes of all inputs into s.key and s.arrays, and which outputs somebody needs.
cdef int trt_describe(TrtRun* s, Request** requests, int32_t n, int64_t rows) noexcept nogil
# Queue the copies of all inputs. Memory of the device itself is used where it lies, unless `fixed`: a graph knows other
# addresses.
cdef int trt_send(TrtRun* s, Request** requests, int32_t n, bint fixed) noexcept nogil
# The values of a shape tensor, from s.key to its host memory.
cdef void trt_fill_values(TrtRun* s, TrtIo* io) noexcept nogil
# Room for n bytes of output i on the device.
cdef int trt_grow(TrtRun* s, int32_t i, size_t n) noexcept nogil
# Host memory for the outputs that somebody wants, and their copies into it, queued behind the run.
cdef int trt_fetch(TrtRun* s, Seen* seen) noexcept nogil
# Outputs that are shape tensors; after trt_finish.
cdef int trt_read_values(TrtRun* s) noexcept nogil
cdef int trt_launch(TrtRun* s, Seen* seen) noexcept nogil
cdef bint trt_can_capture() noexcept nogil
# Destroy a graph, or NULL; the device was entered.
cdef void trt_drop_graph(void* graph) noexcept nogil
# Wait until the stream has done all, if anything is queued. 0, or -1 with e.
cdef int trt_finish(TrtRun* s, tf_error* e) noexcept nogil
# Whether two requests have the same shape tensors, as far as a run looks at them.
cdef bint trt_same_values(const TrtRun* s, Request* a, Request* b) noexcept nogil
# Give all back, however little of it there is.
cdef void trt_free(TrtRun* s) noexcept nogil
