# Responses before the final one: a request of a decoupled model has any number. Each travels in a carrier, a request of
# its own from the slab, so that instance thread and front end never share an arena. Knows no scheduler and no backend.
#
# The backend, while it executes r: c = request_fork(r); fills c.response as it fills any; response_send(c). The final
# response is r.response, which the runner delivers when execute returns: with outputs, with an error, or with neither.
# A front end frees what it is given (p.request); r keeps until its last carrier is freed, so that what carriers borrow
# of it outlives them. Several threads may fork and send for one request; the order is kept within each of them.
from libc.stdint cimport int64_t, uint32_t

from triton_fast._native.core.request cimport Request


# A carrier for one more response of r, which the caller executes; NULL when memory ran out. It has a reference of the
# model and copies of sink, ctx, stamps, batch; id, wanted, params and texts are the request's own. No inputs: they are
# at carrier.parent.
cdef Request* request_fork(Request* r) noexcept nogil
# Hand a carrier to the sink. Waits while max_responses others are delivered and not freed. Returns 0; or -1, nothing
# delivered and the carrier freed: the request was cancelled, the backend should stop.
cdef int response_send(Request* carrier) noexcept nogil
# The same without waiting: 1 when there is no place now; the caller keeps the carrier.
cdef int response_try_send(Request* carrier) noexcept nogil
# The same, whatever the limit says: who sends it is held back otherwise.
cdef void response_push(Request* carrier) noexcept nogil
# Tell a running model that nobody wants r's responses any more: sets r.cancelled and wakes who waits in response_send
# or request_sleep. The caller must know that r lives: its final response has not been freed.
cdef void request_cancel(Request* r) noexcept nogil
# Have a cancel write `value` to `word` too, at once if r is cancelled already: memory that a model outside this process
# looks at. NULL: no longer; after that the word is not written again.
cdef void request_cancel_word(Request* r, uint32_t* word, uint32_t value) noexcept nogil
# Sleep until now_ns() is `until`: 0. -1 as soon as r is cancelled.
cdef int request_sleep(Request* r, int64_t until) noexcept nogil
