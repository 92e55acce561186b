# A response cache elsewhere, asked by Python threads: what is to be looked up and what is to be stored waits here for
# them. Requests that look up hold no instance; nobody waits for what is stored.
from libc.stdint cimport int32_t, int64_t, uint8_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.pthread cimport pthread_cond_t, pthread_mutex_t
from triton_fast._native.sched.store cimport Flight, NativeCache

cdef struct Kept:           # an entry on its way out
    Kept* next
    Block* entry
    uint8_t digest[32]

# Lists and counts under the store's lock; the mutex is for sleeping only.
cdef struct Remote:
    pthread_mutex_t mutex
    pthread_cond_t wake
    Flight* asked_first
    Flight* asked_last
    Kept* kept_first
    Kept* kept_last
    int64_t kept_bytes
    int64_t most_bytes
    int64_t dropped         # entries that were not stored because too many waited
    int32_t open            # atomic; ask at all
    int32_t closed          # atomic


cdef class RemoteCache(NativeCache):
    cdef Remote* remote
