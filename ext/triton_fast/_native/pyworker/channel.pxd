# One worker's region, its four rings and their eventfds, as the server uses them. What the worker writes is read once.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from triton_fast._native.pyworker.layout cimport Message
from triton_fast._native.pyworker.region cimport Region


cdef struct Channel:
    int32_t refs            # atomic
    Region* region
    int32_t dead            # atomic; the worker has gone: every wait ends
    int32_t broken          # atomic; the worker wrote what no worker writes
    int32_t lock            # of the work ring's producers
    int[4] fds
    int[2] kicks            # eventfds of the server alone, which end waits for done and events
    uint64_t[4] at          # messages published (work, answers) or taken (done, events); the region's copy is not read


cdef void channel_ref(Channel* c) noexcept nogil
cdef void channel_unref(Channel* c) noexcept nogil
# End every wait of the server's threads on this channel.
cdef void channel_kill(Channel* c) noexcept nogil
# 0, or -1 when the ring is full. Work: any thread. Answers: the service thread.
cdef int channel_publish(Channel* c, int ring, Message* m) noexcept nogil
# Take the next message of a ring: whether there was one. channel_taken tells the worker, once what the message refers
# to has been read or referenced: until then it keeps the inbound memory that its outputs lie in.
cdef bint channel_take(Channel* c, int ring, Message* m) noexcept nogil
cdef void channel_taken(Channel* c, int ring) noexcept nogil
# Until the ring has a message, the channel is dead, or `until` (now_ns() time, 0 = no limit) has passed. Looks for
# spin_ns before it sleeps. Returns whether there may be one.
cdef bint channel_wait(Channel* c, int ring, int64_t spin_ns, int64_t until) noexcept nogil
# Wake the thread that waits for events.
cdef void channel_kick(Channel* c) noexcept nogil
# How many messages the worker has published on a ring.
cdef uint64_t channel_published(Channel* c, int ring) noexcept nogil


cdef class WorkerChannel:
    cdef Channel* ptr
