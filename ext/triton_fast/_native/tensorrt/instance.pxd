# One instance of a TensorRT model: the execute function of sched/instance.pxd over execution contexts, one for each
# optimization profile. Copies, graphs and waiting need no GIL; the calls of TensorRT's Python API do.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from triton_fast._native.arrays.arrays cimport Arrays
from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.cuda.driver cimport tf_cu_handle
from triton_fast._native.sched.instance cimport NativeInstance
from triton_fast._native.tensorrt.shapes cimport Seen, Shapes


# An input or output of the engine, in the place that the config gives it.
cdef struct TrtIo:
    int32_t dtype
    int32_t rank            # of the engine
    int32_t at              # of an input: where its numbers begin in a key
    int32_t n_values        # of a shape tensor
    bint on_host            # its memory is the CPU's
    bint unknown            # of an output: its shape depends on data, TensorRT asks for its memory
    Block* block            # its memory for as long as the instance lives
    size_t cap              # bytes that may be used

cdef struct TrtRun:
    int device
    tf_cu_handle stream
    Arrays arrays
    Shapes shapes
    TrtIo* inputs
    TrtIo* outputs
    int64_t* key            # of the run in preparation
    uint64_t* wanted        # addresses that it needs, inputs first
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


cdef class TrtInstance(NativeInstance):
    cdef TrtRun run
    cdef list input_names
    cdef list output_names
    cdef list contexts
    cdef list rooms
    cdef list graph_specs
    cdef object complain
    cdef object warn
    cdef object shown
