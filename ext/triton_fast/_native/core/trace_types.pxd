# The structs of traces: what says which requests are traced, and what is recorded of one. Declarations only.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from triton_fast._native.core.pthread cimport pthread_cond_t, pthread_mutex_t

cdef enum:
    TRACE_TIMESTAMPS = 1
    TRACE_TENSORS = 2

cdef enum:                  # where a traced request came from
    FROM_HTTP = 0
    FROM_GRPC = 1
    FROM_MODEL = 2          # an ensemble, or a model's own request

cdef enum:
    EVENT_COMPLETE = 0      # a response is there
    EVENT_SEND_START = 1
    EVENT_SEND_END = 2

cdef enum:
    TENSOR_QUEUED = 0
    TENSOR_MADE = 1

cdef enum:
    MAX_COPY = 1048576      # bytes copied of one tensor
    MAX_COPIES = 16777216   # of all tensors of one trace
    MAX_RECORDS = 4096      # of one trace: an ensemble's steps and what they lead to
    MAX_EVENTS = 65536      # of one record

# What holds for requests of some models. Changed under the GIL, and read by threads that hold it.
cdef struct Sampling:
    int32_t level           # TRACE_*
    uint32_t rate           # one of so many; 0: only those that bring a context
    uint32_t left           # until the next one
    int64_t count           # how many more; -1: any number
    int32_t stream          # which setting it is, for the writer
    bint spans              # records are to become spans: they have ids, and a request's own context is followed
    Collector* collector

# Model.tracing: what holds for the model now; NULL: nothing is traced.
cdef struct TracePoint:
    Sampling* now

cdef struct TraceEvent:
    TraceEvent* next
    int64_t ns
    int32_t kind            # EVENT_*

cdef struct TraceTensor:    # with name, dims and data behind it
    TraceTensor* next
    int32_t kind            # TENSOR_*
    int32_t dtype
    int32_t ndim
    uint32_t name_len
    size_t nbytes           # of the tensor
    size_t copied
    int64_t* dims
    char* name
    uint8_t* data

cdef struct TraceRecord:    # with texts behind it
    TraceRecord* next       # of the trace's that have ended
    TraceRecord* same       # in the table of those that have not
    Trace* trace
    uint64_t id
    uint64_t parent_id
    uint64_t span           # its model's; even, so that the next number is its execution's
    uint64_t parent_span
    int32_t origin          # FROM_*
    int32_t code            # TF_OK or the error of its final response
    bint composed           # an ensemble: it executes nothing itself
    int64_t version
    int64_t received_end    # the whole of it was there; 0: FROM_MODEL
    int64_t began           # decoded
    int64_t ended
    int64_t[8] stamps
    char* name
    char* request_id
    uint32_t name_len
    uint32_t request_id_len
    int32_t n_events
    TraceEvent* events
    TraceEvent* events_last
    TraceTensor* tensors
    TraceTensor* tensors_last

# One sampled request and all that it leads to.
cdef struct Trace:
    Trace* next             # in the collector's queue
    Collector* collector    # one reference
    int32_t refs            # atomic; records that have not ended
    int32_t lock            # of the records' lists
    int32_t n_records
    int32_t level
    int32_t stream
    bint spans
    bint has_parent         # the request brought a context
    uint8_t[16] trace_id
    uint64_t parent_span
    uint64_t root_span      # of the request as a whole
    size_t copied
    char* state
    uint32_t state_len
    TraceRecord* first      # those that have ended
    TraceRecord* last

# Traces that have ended, until the writer takes them.
cdef struct Collector:
    int32_t refs
    pthread_mutex_t lock
    pthread_cond_t changed
    Trace* first
    Trace* last
    int64_t n
    int64_t most            # traces that may wait; more are dropped
    int64_t dropped
    bint hurry              # the writer is not to wait for more
