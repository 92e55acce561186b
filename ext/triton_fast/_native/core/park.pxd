# Parking: a thread sleeps until somebody wakes the word it sleeps on, which counts the sleepers. Waking costs a fence
# and a load while nobody sleeps. Knows nothing of what the word belongs to.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.native cimport tf_fence, tf_load32

# The sleeper: park_begin, then look whether there is reason to sleep, park_wait, look again; at last park_end. The
# waker: change what the sleeper looks at (atomically), then park_wake. The word must live until that returns.
# Between begin and end a lock is held that other words share: do nothing there but look and wait.
cdef void park_begin(int32_t* word) noexcept nogil
# Until woken, or now_ns() is past `until` (0 = no limit). Wakes without a reason happen.
cdef void park_wait(int32_t* word, int64_t until) noexcept nogil
cdef void park_end(int32_t* word) noexcept nogil
cdef void park_wake_all(int32_t* word) noexcept nogil


cdef inline void park_wake(int32_t* word) noexcept nogil:
    tf_fence()
    if tf_load32(word) != 0:
        park_wake_all(word)
