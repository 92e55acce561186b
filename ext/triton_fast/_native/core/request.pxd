# The structs that travel: Request, Response, Sink. What they carry is in tensor.pxd, states and flags are in marks.pxd.
# Plain native structs with C linkage in mind. Nothing here knows a protocol, a scheduler or a backend.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from triton_fast._native.core.marks cimport T_COUNT
from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.tensor cimport Lent, Param, Tensor, Wanted

cdef struct Response:
    Response* next          # link in a Sink's chain
    Request* request
    int32_t code            # TF_OK, or a Triton code with text
    uint32_t text_len
    const char* text
    int32_t n_outputs
    bint is_final
    Tensor* outputs         # outputs[i].index says which of the model's outputs
    Param* params

# Where responses go: a loop's ring, an ensemble step, a Python caller. deliver takes a chain linked by next and runs on
# the thread that produced it, without the GIL; it must not block. A response hands over the request that it lies in:
# the final one the request itself, every other one its carrier. A tap (sched/tap.pxd) passes on to another sink.
cdef struct Sink:
    void (*deliver)(Sink* sink, Response* first, Response* last) noexcept nogil
    Sink* outer             # of a tap: where it passes responses on; NULL: this is where they end

cdef struct Request:
    Request* q_next         # queue order
    Request* q_prev
    Request* b_next         # order within its shape bucket
    Request* b_prev
    void* bucket
    int32_t state           # REQ_*; atomic
    int32_t cancelled       # atomic; a running model may look at it
    uint32_t* cancel_word   # where else to write cancel_value when r is cancelled (request_cancel_word); or NULL
    uint32_t cancel_value
    Model* model            # one ref
    Sink* sink
    void* ctx               # the front end's own object; the engine never touches it
    int64_t stamps[T_COUNT]
    int64_t deadline        # ns; 0 = none
    const char* id
    uint32_t id_len
    uint32_t flags          # FLAG_*
    uint64_t correlation
    const char* correlation_text
    uint32_t correlation_len
    int32_t n_inputs
    Tensor* inputs          # in the order they came
    Tensor** by_index       # model.n_inputs entries after validation; NULL = absent optional input
    int32_t n_wanted        # 0 = all outputs
    int32_t binary_default
    Wanted* wanted
    int64_t batch           # rows: 1 when the model has no batch dimension
    uint64_t shape_key
    uint64_t priority
    uint64_t timeout_us
    const char* trace       # the context of its trace, for a tracer and for the requests its model makes; "" for none
    uint32_t trace_len
    uint32_t watch          # WATCH_*: who wants to see this request besides its client
    void* record            # its trace's own record of it
    Param* params
    Block* body             # one ref; memory that inputs may borrow from
    Lent* lent              # in its arena; NULL: it uses no memory of its client's
    Response response       # the only one, for models that answer once; else the final one
    Request* parent         # of a carrier (core/respond.pxd): the request it answers, which it holds; else NULL
    int32_t holds           # atomic; 1, and 1 for each carrier of this request that lives
    int32_t waiting         # atomic; threads that sleep until something happens to this request (core/park.pxd)
    int32_t max_responses   # carriers that may be delivered and not yet freed; 0 = any number. Set before submit
    int32_t unsent          # atomic; how many there are, counted only where there is a limit
    int32_t level           # priority level in its queue; 1 is the highest
    bint again              # set by an instance of an iterative model: not at its end, to be queued again
    uint64_t order          # place in its queue's order of arrival
    void* sched             # the scheduler's own record of it
    void* seat              # the response cache's
    void* cut               # that of the layer which splits batches
    char* arena
    size_t arena_left
    void* overflow

ctypedef void (*release_fn)(Request*) noexcept nogil


cdef Request* request_new(Model* model) noexcept nogil
# While carriers of r live, only the owner's hold goes; the last of them frees r.
cdef void request_free(Request* r) noexcept nogil
cdef void* request_alloc_slow(Request* r, size_t n) noexcept nogil
# Have `look` see each traced request just before it is freed, carriers too.
cdef void request_on_release(release_fn look) noexcept
# Set the response to an error; the text is copied, and made UTF-8. Drops outputs that were already set.
cdef void response_fail(Response* p, int32_t code, const char* text, size_t n) noexcept nogil
cdef void response_fail_error(Response* p, tf_error* e) noexcept nogil
# Room for n outputs in the request's arena, zeroed; NULL when memory ran out.
cdef Tensor* response_outputs(Response* p, int32_t n) noexcept nogil


# Memory that lives as long as the request, 8-byte aligned, not zeroed; NULL when memory ran out.
cdef inline void* request_alloc(Request* r, size_t n) noexcept nogil:
    cdef void* p
    if n > (<size_t>1 << 40):
        return NULL
    n = (n + 7) & ~<size_t>7
    if n > r.arena_left:
        return request_alloc_slow(r, n)
    p = r.arena
    r.arena += n
    r.arena_left -= n
    return p


# Where responses end that are given to sink, past all taps.
cdef inline Sink* sink_end(Sink* sink) noexcept nogil:
    while sink != NULL and sink.outer != NULL:
        sink = sink.outer
    return sink
