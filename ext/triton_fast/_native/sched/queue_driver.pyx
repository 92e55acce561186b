# The queue driven by hand, for tests and bench/micro: a clock that is given, no instances, no threads.
from libc.stdint cimport int32_t, int64_t
from libc.string cimport memset

from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Request, T_QUEUED, request_free, request_new
from triton_fast._native.core.stats cimport Stats, stats_clear
from triton_fast._native.sched.policy cimport MAX_TAKE
from triton_fast._native.sched.queue cimport Queue, queue_free, queue_new
from triton_fast._native.sched.scheduler cimport SUBMIT_OK, TAKE_NOW


def bench(int n):
    """Submit and take n requests, eight to a batch; return how many came out (bench/micro only)."""
    cdef Stats stats
    cdef Request* given[8]
    cdef Request* out[4096]
    cdef tf_error e
    cdef bint wake
    cdef int i, k, taken = 0
    cdef int64_t now
    cdef Queue* q
    memset(&stats, 0, sizeof(Stats))
    q = queue_new(&stats)
    q.policy.single = False
    q.policy.max_batch = 8
    for k in range(8):
        given[k] = request_new(NULL)
    for i in range(n // 8):
        for k in range(8):
            given[k].stamps[T_QUEUED] = 1
            q.base.submit(&q.base, given[k], &wake, &e)
        taken += q.base.take(&q.base, 0, out, TAKE_NOW, 0, &now)
    for k in range(8):
        request_free(given[k])
    queue_free(q)
    stats_clear(&stats)
    return taken
