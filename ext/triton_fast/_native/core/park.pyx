# Words share a few pairs of mutex and condition variable, by their address: nothing is made or destroyed per word, and
# a wake may reach sleepers of other words, which look and sleep on. See park.pxd.
from libc.stdint cimport int32_t, int64_t
from posix.time cimport timespec

from triton_fast._native.core.native cimport tf_add32, tf_fence
from triton_fast._native.core.pthread cimport (
    cond_init_monotonic, pthread_cond_broadcast, pthread_cond_t, pthread_cond_timedwait, pthread_cond_wait,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)

cdef enum:
    LOTS = 32

cdef struct Lot:
    pthread_mutex_t lock
    pthread_cond_t cond

cdef Lot lots[LOTS]


# Words lie in chunks of one size: the upper half of the product depends on all bits of the address.
cdef inline Lot* lot_of(int32_t* word) noexcept nogil:
    return &lots[(<size_t>word * <size_t>0x9E3779B97F4A7C15 >> 40) % LOTS]


cdef void park_begin(int32_t* word) noexcept nogil:
    pthread_mutex_lock(&lot_of(word).lock)
    tf_add32(word, 1)
    tf_fence()      # the count is seen before the sleeper looks; the waker has the mirror of it


cdef void park_wait(int32_t* word, int64_t until) noexcept nogil:
    cdef Lot* lot = lot_of(word)
    cdef timespec ts
    if until == 0:
        pthread_cond_wait(&lot.cond, &lot.lock)
        return
    ts.tv_sec = until // 1000000000
    ts.tv_nsec = until % 1000000000
    pthread_cond_timedwait(&lot.cond, &lot.lock, &ts)


cdef void park_end(int32_t* word) noexcept nogil:
    tf_add32(word, -1)
    pthread_mutex_unlock(&lot_of(word).lock)


cdef void park_wake_all(int32_t* word) noexcept nogil:
    cdef Lot* lot = lot_of(word)
    # Under the lock: a sleeper that has looked and not yet waits holds it.
    pthread_mutex_lock(&lot.lock)
    pthread_cond_broadcast(&lot.cond)
    pthread_mutex_unlock(&lot.lock)


cdef int open_lots() except -1:
    cdef int i
    for i in range(LOTS):
        if pthread_mutex_init(&lots[i].lock, NULL) != 0:
            raise MemoryError
        cond_init_monotonic(&lots[i].cond)
    return 0


open_lots()
