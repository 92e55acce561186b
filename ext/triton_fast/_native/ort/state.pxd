# What one ONNX Runtime instance owns. Only its instance thread touches it, so nothing here is atomic.
from libc.stdint cimport int32_t, int64_t, uint8_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.model cimport MAX_RANK
from triton_fast._native.ort.capi cimport OrtAllocator, OrtMemoryInfo, OrtRunOptions, OrtValue, tf_ort
from triton_fast._native.ort.session cimport SessionHold


# An input or output in the config's order, with what the model says of it.
cdef struct OrtIo:
    char* name
    int32_t dtype
    int32_t element         # ONNX element type number
    int32_t size            # bytes of an element; 0 for STRING
    int32_t rank            # of the ONNX tensor, the batch dimension included
    int64_t* dims           # rank entries as ORT sees them; -1 = variable
    bint fixed              # output: its size follows from the batch alone, so it can be allocated before the run
    int64_t row_bytes       # output, if fixed: bytes of one batch item (of the whole tensor when there is no batch)

# An input that is made of the shapes of a batch's requests; see ragged.pxd.
cdef struct BatchInput:
    char* name
    int32_t kind
    int32_t source          # position of the input whose shapes it tells
    int32_t dtype           # INT32 or FP32
    int32_t element

# An output after a run: what the responses are slices of.
cdef struct View:
    uint8_t* data
    size_t nbytes
    Block* block            # one ref
    Block* offsets          # STRING: count + 1 size_t, where element i starts in the content without length prefixes
    int64_t per_row         # STRING: elements of one batch item
    int64_t lead            # first dimension as the model gave it
    bint split              # whether it can be cut into the requests of the batch
    int64_t count           # elements of all
    int64_t at              # elements given out, where it is cut by the shapes of an input
    int32_t ndim
    int64_t[MAX_RANK + 2] dims      # as clients see it; dims[0] is the whole batch's

cdef struct OrtRun:
    const tf_ort* api
    SessionHold* hold
    OrtAllocator* allocator         # ORT's default one; it owns itself
    OrtMemoryInfo* cpu
    OrtMemoryInfo* gpu              # of `device`, where inputs may lie that ORT gets as they are; NULL: runs on the CPU
    int32_t device
    OrtRunOptions* options
    int64_t max_batch               # 0: no batch dimension
    int32_t n_inputs
    int32_t n_outputs
    OrtIo* inputs
    OrtIo* outputs
    int32_t n_batch_inputs
    BatchInput* batch_inputs
    int32_t* cut_by                 # by position in outputs: position of the input whose shapes cut it, -1 = by rows
    bint has_cuts
    # Arguments of one Run, n_in and n_out long, and what they borrow.
    int32_t n_in
    int32_t n_out
    const char** in_names
    OrtValue** in_values
    Block** in_blocks               # gathered copies; NULL where the request's own bytes were used
    const char** out_names
    OrtValue** out_values
    Block** out_blocks              # memory given to ORT; NULL where ORT allocates
    int32_t* out_index              # position in outputs
    int32_t* place                  # by position in outputs: position in views, -1 = not computed
    View* views
    tf_error error
    char[2048] text
    # Counters for tests and metrics.
    int64_t runs
    int64_t reruns
    int64_t borrowed                # input tensors used where they lay
    int64_t copied_bytes            # input bytes copied together
    int64_t bound                   # output tensors allocated before the run
    int64_t device_bytes            # input bytes copied together in device memory


# Bytes that nobody reads, for tensors without elements.
cdef enum:
    NOTHING_SIZE = 64
