# Looking for work a little before sleeping: a wake-up through the kernel costs more than most small models. How well it
# has paid lately decides whether it is done at all, so that a seldom used model burns no processor. Knows no queue.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.native cimport now_ns, tf_load32

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef enum:
    SPIN_LUCK_MAX = 8       # looks that paid, remembered
    SPIN_LUCK_LOSS = 4      # what a look in vain costs
    SPIN_REST = 64          # times an instance sleeps at once after that


# Whether to look this time. Luck below zero counts up to zero first.
cdef inline bint spin_wanted(int32_t* luck, int64_t spin_ns) noexcept nogil:
    if spin_ns == 0:
        return False
    if luck[0] < 0:
        luck[0] += 1
        return False
    return True


# Until there is something in *count, or *stopping, or spin_ns are over. Hold no lock.
cdef inline void spin_look(int32_t* count, int32_t* stopping, int64_t spin_ns) noexcept nogil:
    cdef int64_t end = now_ns() + spin_ns
    while tf_load32(count) == 0 and not tf_load32(stopping) and now_ns() < end:
        sched_yield()       # who shares this processor brings the next request, maybe


cdef inline void spin_learn(int32_t* luck, bint paid) noexcept nogil:
    if paid:
        luck[0] = min(luck[0] + 1, SPIN_LUCK_MAX)
        return
    luck[0] -= SPIN_LUCK_LOSS
    if luck[0] < 0:
        luck[0] = -SPIN_REST
