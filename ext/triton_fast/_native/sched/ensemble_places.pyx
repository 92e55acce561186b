# See ensemble_places.pxd. A step that finds no place costs nobody a thread: it waits in a list.
from libc.stdint cimport int32_t

from triton_fast._native.core.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from triton_fast._native.sched.ensemble_run cimport EXEC_WAITS, Ensemble, Exec, Limit, Run


cdef void list_out(Run* run, Exec* x) noexcept nogil:
    x.state = EXEC_WAITS
    x.prev = NULL
    x.next = run.out
    if x.next != NULL:
        x.next.prev = x
    run.out = x


cdef bint place_take(Run* run, Exec* x) noexcept nogil:
    cdef Ensemble* ens = run.ensemble
    cdef Limit* limit = &ens.limits[x.step]
    list_out(run, x)
    pthread_mutex_lock(&ens.lock)
    if limit.taken < ens.max_inflight:
        limit.taken += 1
        x.placed = True
    else:
        x.queued = True
        x.q_next = NULL
        x.q_prev = limit.waiting_last
        if limit.waiting_last != NULL:
            limit.waiting_last.q_next = x
        else:
            limit.waiting = x
        limit.waiting_last = x
    pthread_mutex_unlock(&ens.lock)
    return x.placed


# The lock of the ensemble is held.
cdef void unqueue(Limit* limit, Exec* x) noexcept nogil:
    if x.q_prev != NULL:
        x.q_prev.q_next = x.q_next
    else:
        limit.waiting = x.q_next
    if x.q_next != NULL:
        x.q_next.q_prev = x.q_prev
    else:
        limit.waiting_last = x.q_prev
    x.queued = False


cdef Exec* place_leave(Ensemble* ens, int32_t step) noexcept nogil:
    cdef Limit* limit = &ens.limits[step]
    cdef Exec* x
    pthread_mutex_lock(&ens.lock)
    x = limit.waiting
    if x != NULL:
        unqueue(limit, x)       # the place is x's now
    else:
        limit.taken -= 1
    pthread_mutex_unlock(&ens.lock)
    return x


cdef bint place_forgo(Ensemble* ens, Exec* x) noexcept nogil:
    cdef bint was
    pthread_mutex_lock(&ens.lock)
    was = x.queued
    if was:
        unqueue(&ens.limits[x.step], x)
    pthread_mutex_unlock(&ens.lock)
    return was
