# The completion ring of one event loop: many producers push chains of responses, the loop drains them in order.
from libc.stdint cimport int64_t

from triton_fast._native.core.request cimport Response, Sink


cdef struct Ring:
    Sink sink               # first: a Ring* is a Sink*
    void* head              # newest response; atomic
    int fd                  # eventfd, written on the empty -> non-empty edge only


cdef class CompletionRing:
    cdef Ring ring
    # Everything pushed so far, oldest first; NULL when there is nothing. Loop thread only.
    cdef Response* drain(self) noexcept nogil
