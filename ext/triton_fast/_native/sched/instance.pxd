# The native side of a backend: one NativeInstance per model instance, run by one thread that never takes the GIL.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.request cimport Request
from triton_fast._native.core.stats cimport Stats


# What an instance is given: requests of one model, all validated, whose shapes agree in everything but the batch
# dimension (unless the input is ragged). rows is the sum of their batch sizes.
cdef struct Batch:
    Request** requests
    int32_t n
    int64_t rows
    int64_t padding         # of them, rows of requests that only fill places (FLAG_PADDING)
    int64_t t_started       # ns when the queue gave it out
    int64_t t_input         # set by execute: ns when the inputs were gathered
    int64_t t_computed      # set by execute: ns when the run returned


# execute(state, batch): for each request either fills response.outputs (response_outputs) or fails the response
# (response_fail). It completes nothing itself: the runner stamps, counts and delivers. It must not raise and, unless
# the backend has only a Python API, must not take the GIL. A request's outputs may be slices of one block: take a
# reference of the block for each tensor. Returns 0; any other value fails what has neither outputs nor an error.
# For a decoupled model it may send any number of responses before (core/respond.pxd); a response that it leaves empty
# then only says that the request has ended.
# It may keep a request for later: it sets requests[i] to NULL, and calls request_finish once, from any thread, when
# request.response is filled. Its BackendModel.close returns only after the last of them.
# Of an iterative model it may have a request executed again: it sets request.again and leaves the response empty.
ctypedef int (*execute_fn)(void* state, Batch* batch) noexcept nogil


# Called before each look at the queue; may wait until the instance can take work, but not once *stopping is set. 0, or
# 1 when it did not wait for that.
ctypedef int (*before_fn)(void* state, int32_t* stopping) noexcept nogil


# Count r as answered, unless it is only a part, comes again or is counted later. Hold s.lock. phase: ns, PHASE_*.
cdef void request_count(Stats* s, Request* r, int64_t* phase) noexcept nogil
# Count a request whose responses were held back (FLAG_ORDERED), if it has been answered; refused: by who held it.
cdef void request_count_late(Request* r, bint refused) noexcept nogil


# Stamp, count and deliver a request that execute kept.
cdef void request_finish(Request* r) noexcept nogil


# For backends that tell what became of each response of r (statistics' response_stats); see stats_response.
cdef void response_report(Request* r, int64_t index, int kind, int64_t infer_ns, int64_t output_ns) noexcept nogil


# What Python code raised, as a request is told it: a code and a text, never empty. Hold the GIL.
cdef bytes raised_text(object error, int32_t* code)


cdef class NativeInstance:
    cdef execute_fn execute
    cdef before_fn before       # NULL: nothing to wait for
    cdef void* state
    # Numbers in memory of GPU `device` come as they are (Tensor.kind MEM_GPU, ptr is no address of the host's); else
    # all inputs lie in host memory when execute is called (sched/fetch.pxd). Set before the instance's thread starts.
    cdef public bint takes_gpu
    cdef public int32_t device
    # From how many requests in a batch on execute copies every input before it looks at it; 0: never. Below, inputs in
    # memory that a client may change meanwhile are copied before execute is called: most code breaks, not only in its
    # answer, when what it checked is something else a moment later. Set like takes_gpu.
    cdef public int32_t copies_from
    cdef public str name
