# W3C trace contexts: traceparent and tracestate as they come with a request, and as JSON for models. No requests, no
# sampling. Whatever is malformed is as if it were not there.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef enum:
    MAX_STATE = 512         # bytes of tracestate that are kept; a longer one is dropped whole
    TRACE_AT = 19           # of the 32 digits of the trace's id in a carrier
    MAX_CARRIER = 1200      # bytes of the JSON: 100 and each character of the state escaped

cdef struct TraceContext:
    int32_t parents         # traceparent fields that came; more than one is none
    bint valid
    bint overflowed
    uint8_t flags
    uint32_t state_len
    uint64_t span
    uint8_t[16] trace_id
    char[512] state


cdef void context_clear(TraceContext* c) noexcept nogil
# One field of a head, its name in lower case or not. True: it belongs to a context.
cdef bint context_field(TraceContext* c, const char* name, size_t name_len, const char* value, size_t n) noexcept nogil


cdef inline bint context_given(TraceContext* c) noexcept nogil:
    return c.valid and c.parents == 1


# {"traceparent": ..., "tracestate": ...} for what is below `span`; returns its length, at most MAX_CARRIER.
cdef size_t context_carrier(char* out, const uint8_t* trace_id, uint64_t span, const char* state,
                            size_t state_len) noexcept nogil
# The span that such a text names: True and *span.
cdef bint carrier_span(const char* text, size_t n, uint64_t* span) noexcept nogil
