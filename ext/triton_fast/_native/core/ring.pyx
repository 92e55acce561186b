# An intrusive stack with one swap per drain: no capacity to exceed, no lock, no allocation. See ring.pxd.
from libc.stdint cimport int64_t, uint64_t
from posix.unistd cimport close, read, write

from triton_fast._native.core.native cimport (
    now_ns, tf_cas_ptr, tf_fence, tf_load32, tf_load_ptr, tf_pause, tf_store32, tf_swap_ptr,
)
from triton_fast._native.core.pthread cimport pthread_equal, pthread_self
from triton_fast._native.core.request cimport Request, request_free, request_new


cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int initval, int flags)
    int EFD_NONBLOCK
    int EFD_CLOEXEC


cdef void ring_deliver(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Ring* ring = <Ring*>sink
    cdef Response* p = first
    cdef Response* after
    cdef Response* reversed = NULL
    cdef void* seen
    cdef uint64_t one = 1
    if tf_load_ptr(&ring.expected) == first and pthread_equal(ring.thread, pthread_self()):
        if ring.kept == NULL:
            ring.kept = first
        else:
            ring.kept_last.next = first
        ring.kept_last = last
        return
    # The stack is newest first, so a chain goes on it reversed.
    while p != NULL:
        after = p.next
        p.next = reversed
        reversed = p
        p = after
    while True:
        seen = tf_load_ptr(&ring.head)
        first.next = <Response*>seen
        if tf_cas_ptr(&ring.head, seen, reversed):
            break
    if seen == NULL:
        tf_fence()
        if tf_load32(&ring.polled) == 0:
            write(ring.fd, &one, 8)


cdef class CompletionRing:
    """A loop's queue of finished responses, readable through ``fileno()`` while it is not empty."""

    def __cinit__(self):
        self.ring.fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)
        if self.ring.fd < 0:
            raise OSError("cannot create an eventfd")
        self.ring.sink.deliver = ring_deliver
        self.ring.head = NULL

    def __dealloc__(self):
        if self.ring.fd >= 0:
            close(self.ring.fd)

    def fileno(self):
        return self.ring.fd

    cdef Response* drain(self) noexcept nogil:
        cdef uint64_t count
        read(self.ring.fd, &count, 8)
        return take(&self.ring)

    cdef Response* poll(self, int64_t budget_ns) noexcept nogil:
        cdef int64_t end = now_ns() + budget_ns
        cdef int _i
        tf_store32(&self.ring.polled, 1)
        while tf_load_ptr(&self.ring.head) == NULL and now_ns() < end:
            for _i in range(8):
                tf_pause()
        # A producer that saw the flag wrote no eventfd: what it pushed is seen by the look after the flag is down.
        tf_store32(&self.ring.polled, 0)
        tf_fence()
        return take(&self.ring)


cdef Response* take(Ring* ring) noexcept nogil:
    cdef Response* p = <Response*>tf_swap_ptr(&ring.head, NULL)
    cdef Response* after
    cdef Response* oldest = NULL
    while p != NULL:
        after = p.next
        p.next = oldest
        oldest = p
        p = after
    return oldest


def _push(CompletionRing ring not None, numbers):
    """Deliver one chain of new responses, each marked with a number (tests only)."""
    cdef Response* first = NULL
    cdef Response* last = NULL
    cdef Request* r
    for number in numbers:
        r = request_new(NULL)
        if r == NULL:
            raise MemoryError
        r.stamps[0] = number
        if first == NULL:
            first = &r.response
        else:
            last.next = &r.response
        last = &r.response
    if first != NULL:
        with nogil:
            ring.ring.sink.deliver(&ring.ring.sink, first, last)


def _expect(CompletionRing ring not None, int64_t number):
    """Return the address of a new request whose response is expected, as within its submit (tests only)."""
    cdef Request* r = request_new(NULL)
    if r == NULL:
        raise MemoryError
    r.stamps[0] = number
    ring_expect(&ring.ring, &r.response)
    return <size_t>r


def _deliver(CompletionRing ring not None, size_t request):
    """Deliver the response of one that ``_expect`` made (tests only)."""
    cdef Request* r = <Request*>request
    r.response.next = NULL
    ring.ring.sink.deliver(&ring.ring.sink, &r.response, &r.response)


def _kept(CompletionRing ring not None):
    """Expect no more, and return the numbers of what came as expected (tests only)."""
    ring_expect_no_more(&ring.ring)
    return numbers_of(ring_kept(&ring.ring))


cdef list numbers_of(Response* p):
    cdef Response* after
    numbers = []
    while p != NULL:
        after = p.next
        numbers.append(p.request.stamps[0])
        request_free(p.request)
        p = after
    return numbers


def _drain(CompletionRing ring not None):
    """Take all responses off the ring, free them and return their numbers, oldest first (tests only)."""
    return numbers_of(ring.drain())


def _poll(CompletionRing ring not None, int64_t budget_ns):
    """Do what ``_drain`` does after looking for up to budget_ns (tests only)."""
    cdef Response* p
    with nogil:
        p = ring.poll(budget_ns)
    return numbers_of(p)
