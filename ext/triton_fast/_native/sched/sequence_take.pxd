# What an instance takes next: a batch of sequences, by fixed slots (direct) or by who waits longest (oldest).
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.request cimport Request
from triton_fast._native.sched.scheduler cimport Scheduler


cdef int32_t sequences_take(Scheduler* base, int32_t i, Request** out, int mode, int64_t spin_ns,
                            int64_t* now) noexcept nogil
cdef void sequences_executed(Scheduler* base, int32_t i) noexcept nogil
