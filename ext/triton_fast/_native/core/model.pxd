# What requests are checked against: a served version's name, limits, inputs and outputs. Plain native structs.
from libc.stdint cimport int32_t, int64_t, uint32_t

cdef enum:
    MAX_RANK = 64           # dimensions of one tensor

# One input or output of a model, as its config declares it. dims are without the batch dimension; -1 = variable.
cdef struct IoSpec:
    char* name
    uint32_t name_len
    int32_t dtype
    int32_t ndim
    int64_t* dims
    int32_t reshape_ndim    # -1: no reshape
    int64_t* reshape
    bint optional
    bint ragged
    bint kept               # of an output: the scheduler needs it, whether or not the client wants it

cdef struct Model:
    int32_t refs
    char* name
    char* version_text
    uint32_t name_len
    uint32_t version_len
    int64_t version
    int64_t max_batch       # 0: no batch dimension
    int64_t split_rows      # requests of up to so many rows are cut into parts; 0: none is
    int32_t n_inputs
    int32_t n_outputs
    int32_t n_required      # inputs that are not optional
    bint has_shape_key      # an input has a variable, non-ragged dim or is optional: batches must agree on them
    bint decoupled
    bint iterative          # an instance may have a request queued again (Request.again)
    IoSpec* inputs          # what clients send, then what the scheduler adds: controls, states
    IoSpec* outputs         # what clients get, then what the scheduler keeps: states
    int32_t n_all_inputs    # n_inputs and those that the scheduler adds; instances see all
    int32_t n_all_outputs
    void* scheduler         # sched.scheduler Scheduler; NULL until there is one
    void* tracing           # core.trace_types TracePoint, which its NativeModel keeps; NULL: nothing is ever traced
    bint composed           # an ensemble: it has no instances of its own


cdef void model_free(Model* m) noexcept nogil


cdef class ModelHandle:
    cdef Model* ptr
