# The response cache: a store that models share, and the layer of one model over it. A request whose answer is stored
# gets it at once, on the thread that submits it; one that equals a request under way waits for that one's answer; any
# other goes on, and its answer is stored on the thread that delivers it.
from triton_fast._native.core.memory cimport Block
from triton_fast._native.sched.scheduler cimport NativeScheduler
from triton_fast._native.sched.store cimport Flight, Layer, NativeCache


# The cache elsewhere has answered: with an entry, of which the caller keeps its reference, or NULL.
cdef void flight_looked(Flight* f, Block* entry) noexcept nogil


cdef class CacheLayer(NativeScheduler):
    cdef Layer* layer
    cdef readonly NativeCache cache
    cdef readonly bytes identity
