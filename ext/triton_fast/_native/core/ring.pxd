# The completion ring of one event loop: many producers push chains of responses, the loop drains them in order.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.native cimport tf_store_ptr
from triton_fast._native.core.pthread cimport pthread_self, pthread_t
from triton_fast._native.core.request cimport Response, Sink


cdef struct Ring:
    Sink sink               # first: a Ring* is a Sink*
    void* head              # newest response; atomic
    int fd                  # eventfd, written on the empty -> non-empty edge only
    int32_t polled          # the loop looks at head by itself right now: no write needed
    void* expected          # the response of the request that the loop is submitting; atomic
    pthread_t thread        # the loop's, while there is one expected
    Response* kept          # what was expected and came within its submit, oldest first; the loop's alone
    Response* kept_last


# Around a submit: a response that is there before it returns, as the response cache's, is kept for ring_kept. The loop
# need not be told of what its own thread has done. Only of a request that is answered once: the final response of
# others would overtake those that went through the ring.
cdef inline void ring_expect(Ring* ring, Response* p) noexcept nogil:
    ring.thread = pthread_self()
    tf_store_ptr(&ring.expected, p)


cdef inline void ring_expect_no_more(Ring* ring) noexcept nogil:
    tf_store_ptr(&ring.expected, NULL)


cdef inline Response* ring_kept(Ring* ring) noexcept nogil:
    cdef Response* p = ring.kept
    ring.kept = NULL
    return p


cdef class CompletionRing:
    cdef Ring ring
    # Everything pushed so far, oldest first; NULL when there is nothing. Loop thread only.
    cdef Response* drain(self) noexcept nogil
    # Look for responses for up to budget_ns without sleeping; then as drain. Loop thread only.
    cdef Response* poll(self, int64_t budget_ns) noexcept nogil
