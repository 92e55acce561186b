# Requests with more rows than a batch may have: cut into parts, which go on as requests of their own, and answered as
# one. What is below sees nothing but requests with FLAG_PART.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.request cimport Request, Sink
from triton_fast._native.core.tensor cimport Wanted
from triton_fast._native.sched.scheduler cimport NativeScheduler, Scheduler

cdef enum:
    MAX_PARTS = 16384       # of one request; each takes 4 KiB besides its rows

cdef struct Part:
    Sink sink               # first; where its response goes
    Split* split
    Request* request
    int32_t submitted       # atomic; what is below has had it
    int32_t arrived         # atomic; answered or taken back

# In the arena of the request that was cut, at Request.cut. Holds that request (Request.holds) until the last part is
# back, since parts borrow its inputs; so it may be answered before.
cdef struct Split:
    Scheduler* layer
    Request* whole
    int32_t lock
    int32_t n
    int32_t left            # parts that are not back, and threads at work on this
    int32_t ended           # atomic for readers; the whole has its answer, or was taken back
    Wanted* wanted          # copies: a connection may take what it lent when the whole has its answer
    const char* id
    const char* correlation_text
    Part* parts


cdef class SplitLayer(NativeScheduler):
    cdef Scheduler layer
