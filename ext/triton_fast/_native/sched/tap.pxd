# A tap: a sink that stands before a request's own, so that a scheduler sees each response before it goes on. It lies in
# the request's memory (request_alloc) or in the scheduler's, and must live until the final response has passed.
from triton_fast._native.core.request cimport Request, Response, Sink


cdef struct Tap:
    Sink sink               # first: a Tap* is a Sink*
    Request* request


# Have `deliver` get r's responses. Carriers of r come that way too.
cdef inline void tap_begin(Tap* t, Request* r,
                           void (*deliver)(Sink*, Response*, Response*) noexcept nogil) noexcept nogil:
    t.sink.deliver = deliver
    t.sink.outer = r.sink
    t.request = r
    r.sink = &t.sink


# r was not taken after all: it leaves as it came.
cdef inline void tap_end(Tap* t) noexcept nogil:
    t.request.sink = t.sink.outer


# Pass a chain on. After the final response the tap may be gone.
cdef inline void tap_pass(Tap* t, Response* first, Response* last) noexcept nogil:
    t.sink.outer.deliver(t.sink.outer, first, last)
