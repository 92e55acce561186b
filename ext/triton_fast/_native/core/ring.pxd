# The completion ring of one event loop: many producers push chains of responses, the loop drains them in order.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.request cimport Response, Sink


cdef struct Ring:
    Sink sink               # first: a Ring* is a Sink*
    void* head              # newest response; atomic
    int fd                  # eventfd, written on the empty -> non-empty edge only
    int32_t polled          # the loop looks at head by itself right now: no write needed


cdef class CompletionRing:
    cdef Ring ring
    # Everything pushed so far, oldest first; NULL when there is nothing. Loop thread only.
    cdef Response* drain(self) noexcept nogil
    # Look for responses for up to budget_ns without sleeping; then as drain. Loop thread only.
    cdef Response* poll(self, int64_t budget_ns) noexcept nogil
