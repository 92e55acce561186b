# See channel.pxd. Rings are single-producer, single-consumer; a consumer that sleeps says so in the ring (`asleep`), so
# that a busy exchange makes no system call.
import os

from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy
from posix.unistd cimport close, read, write

from triton_fast._native.core.native cimport (
    now_ns, tf_add32, tf_fence, tf_load32, tf_load64, tf_lock, tf_store32, tf_store64, tf_unlock,
)
from triton_fast._native.pyworker.layout cimport (
    Message, RING_ANSWERS, RING_ASLEEP, RING_BYTES, RING_COUNT, RING_DONE, RING_EVENTS, RING_SLOTS, RING_SLOTS_AT,
    RING_TAIL, RING_WORK, RINGS_AT,
)
from triton_fast._native.pyworker.region cimport region_new, region_unref


cdef extern from "<sys/eventfd.h>" nogil:
    int eventfd(unsigned int initval, int flags)
    int EFD_CLOEXEC, EFD_NONBLOCK

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long n, int timeout_ms)
    short POLLIN, POLLOUT

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from *:
    """
    #include <sys/uio.h>
    static int tf_read_now(int fd) {
        unsigned long long count;
        struct iovec v = {&count, sizeof(count)};
    #ifdef RWF_NOWAIT
        if (preadv2(fd, &v, 1, -1, RWF_NOWAIT) >= 0 || errno == EAGAIN)
            return 0;
    #endif
        return -1;
    }
    """
    int tf_read_now(int fd) nogil


cdef inline uint8_t* ring_at(Channel* c, int ring) noexcept nogil:
    return c.region.base + RINGS_AT + <size_t>ring * RING_BYTES


# The worker has the same eventfds: it can fill them, so that a write would block, and empty them under a read.
cdef void wake(int fd) noexcept nogil:
    cdef uint64_t one = 1
    cdef pollfd p
    p.fd = fd
    p.events = POLLOUT
    p.revents = 0
    if poll(&p, 1, 0) == 1:
        write(fd, &one, 8)


cdef void empty(int fd) noexcept nogil:
    cdef uint64_t count
    if tf_read_now(fd) != 0:
        read(fd, &count, 8)     # a system that knows nothing better


cdef void channel_ref(Channel* c) noexcept nogil:
    tf_add32(&c.refs, 1)


cdef void channel_unref(Channel* c) noexcept nogil:
    cdef int i
    if c == NULL or tf_add32(&c.refs, -1) != 0:
        return
    for i in range(RING_COUNT):
        if c.fds[i] >= 0:
            close(c.fds[i])
    for i in range(2):
        if c.kicks[i] >= 0:
            close(c.kicks[i])
    region_unref(c.region)
    free(c)


cdef void channel_kill(Channel* c) noexcept nogil:
    cdef uint64_t one = 1
    tf_store32(&c.dead, 1)
    write(c.kicks[RING_DONE - RING_DONE], &one, 8)
    write(c.kicks[RING_EVENTS - RING_DONE], &one, 8)
    # Whoever was caught in a write after all gets room.
    tf_read_now(c.fds[RING_WORK])
    tf_read_now(c.fds[RING_ANSWERS])


cdef void channel_kick(Channel* c) noexcept nogil:
    cdef uint64_t one = 1
    write(c.kicks[RING_EVENTS - RING_DONE], &one, 8)


cdef int channel_publish(Channel* c, int ring, Message* m) noexcept nogil:
    cdef uint8_t* r = ring_at(c, ring)
    cdef int status = 0
    if ring == RING_WORK:
        tf_lock(&c.lock)
    # A tail that lies makes the ring look full, or overwrites what the worker has not read: its own loss.
    if c.at[ring] - <uint64_t>tf_load64(<int64_t*>(r + RING_TAIL)) >= RING_SLOTS:
        status = -1
    else:
        memcpy(r + RING_SLOTS_AT + (c.at[ring] % RING_SLOTS) * sizeof(Message), m, sizeof(Message))
        c.at[ring] += 1
        tf_store64(<int64_t*>r, <int64_t>c.at[ring])
    if ring == RING_WORK:
        tf_unlock(&c.lock)
    if status == 0:
        tf_fence()
        if tf_load32(<int32_t*>(r + RING_ASLEEP)) != 0:
            wake(c.fds[ring])
    return status


cdef bint channel_take(Channel* c, int ring, Message* m) noexcept nogil:
    cdef uint8_t* r = ring_at(c, ring)
    cdef uint64_t there = <uint64_t>tf_load64(<int64_t*>r) - c.at[ring]
    if there == 0:
        return False
    if there > RING_SLOTS:
        tf_store32(&c.broken, 1)
        return False
    memcpy(m, r + RING_SLOTS_AT + (c.at[ring] % RING_SLOTS) * sizeof(Message), sizeof(Message))
    c.at[ring] += 1
    return True


cdef void channel_taken(Channel* c, int ring) noexcept nogil:
    tf_store64(<int64_t*>(ring_at(c, ring) + RING_TAIL), <int64_t>c.at[ring])


cdef uint64_t channel_published(Channel* c, int ring) noexcept nogil:
    return <uint64_t>tf_load64(<int64_t*>ring_at(c, ring))


cdef inline bint is_ready(Channel* c, int ring) noexcept nogil:
    return <uint64_t>tf_load64(<int64_t*>ring_at(c, ring)) != c.at[ring] and not tf_load32(&c.broken)


cdef bint channel_wait(Channel* c, int ring, int64_t spin_ns, int64_t until) noexcept nogil:
    cdef uint8_t* r = ring_at(c, ring)
    cdef int64_t end
    cdef uint64_t count
    cdef pollfd[2] p
    cdef int i, timeout_ms = -1
    if is_ready(c, ring):
        return True
    if spin_ns:
        end = now_ns() + spin_ns
        while now_ns() < end:
            if is_ready(c, ring) or tf_load32(&c.dead):
                return True
            sched_yield()       # the worker may need this processor
    if until:
        timeout_ms = <int>((until - now_ns() + 999999) // 1000000)
        if timeout_ms < 0:
            timeout_ms = 0
    tf_store32(<int32_t*>(r + RING_ASLEEP), 1)
    tf_fence()
    if not is_ready(c, ring) and not tf_load32(&c.dead):
        p[0].fd = c.fds[ring]
        p[1].fd = c.kicks[ring - RING_DONE]
        for i in range(2):
            p[i].events = POLLIN
            p[i].revents = 0
        if poll(p, 2, timeout_ms) > 0:
            if p[0].revents:
                empty(p[0].fd)
            if p[1].revents:
                read(p[1].fd, &count, 8)
    tf_store32(<int32_t*>(r + RING_ASLEEP), 0)
    return is_ready(c, ring) or tf_load32(&c.dead) != 0


cdef class WorkerChannel:
    """What one worker process shares with the server: a region of memory, rings and eventfds.

    Parameters
    ----------
    in_bytes, out_bytes
        Sizes of the heaps for what goes to the worker and for what comes from it. Sparse: memory is taken when used.

    Raises
    ------
    OSError
        The system gives no such memory, or no more file descriptors.
    """

    def __cinit__(self, size_t in_bytes, size_t out_bytes):
        cdef int i
        if not 1 << 16 <= in_bytes <= 1 << 40 or not 1 << 16 <= out_bytes <= 1 << 40:
            raise ValueError(f"a worker's heaps must have from 64 KiB to 1 TiB, got {in_bytes} and {out_bytes}")
        self.ptr = <Channel*>calloc(1, sizeof(Channel))
        if self.ptr == NULL:
            raise MemoryError
        self.ptr.refs = 1
        for i in range(RING_COUNT):
            self.ptr.fds[i] = -1
        self.ptr.kicks[0] = self.ptr.kicks[1] = -1
        self.ptr.region = region_new(in_bytes, out_bytes)
        for i in range(RING_COUNT):
            self.ptr.fds[i] = eventfd(0, EFD_CLOEXEC)
            if self.ptr.fds[i] < 0:
                raise OSError(errno, f"can not make an eventfd: {os.strerror(errno)}")
        for i in range(2):
            self.ptr.kicks[i] = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
            if self.ptr.kicks[i] < 0:
                raise OSError(errno, f"can not make an eventfd: {os.strerror(errno)}")

    def __dealloc__(self):
        channel_unref(self.ptr)

    def fds(self):
        """Return the descriptors a worker needs: region, then the eventfds of work, answers, done and events."""
        return (self.ptr.region.fd, self.ptr.fds[0], self.ptr.fds[1], self.ptr.fds[2], self.ptr.fds[3])

    @property
    def broken(self):
        """Whether the worker wrote what no worker writes; it should be killed."""
        return tf_load32(&self.ptr.broken) != 0

    def region_bytes(self):
        """Return the size of the whole region."""
        return self.ptr.region.size
