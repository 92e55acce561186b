# What takes requests for one model version: a source that instances pull from (a queue, sequences), or an ensemble; and
# layers over it (response cache, splitting of batches). All is reached through Model.scheduler, the outermost.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.stats cimport Stats

cdef enum:
    SUBMIT_OK = 0
    SUBMIT_REFUSED = -1     # the error says why (queue full)
    SUBMIT_STOPPED = -2     # this version takes no more: look the model up again

cdef enum:
    TAKE_WAIT = 0           # sleep until there is a batch, or the end
    TAKE_LOOK = 1           # as TAKE_WAIT, but leave it where it is
    TAKE_NOW = 2            # do not sleep

cdef enum:
    TAKE_STOPPED = 0        # nothing will come any more
    TAKE_NOTHING = -1       # TAKE_NOW: nothing that may go now


cdef struct Scheduler:
    # Hand r over. On SUBMIT_OK the scheduler owns it until its sink gets it; else the caller still owns it, with the
    # sink it had, and e is filled. *wake: an instance sleeps that should take it; the caller must call wake soon, once
    # for several submits.
    int (*submit)(Scheduler* s, Request* r, bint* wake, tf_error* e) noexcept nogil
    void (*wake)(Scheduler* s) noexcept nogil
    # Take r out if no instance has it yet: True, and the caller owns it again (nothing is delivered). False: it will be
    # delivered; with `tell` it is told that nobody wants it (request_cancel). It, or others that it makes room for, may
    # be delivered before this returns: the caller holds no lock that a sink takes.
    bint (*cancel)(Scheduler* s, Request* r, bint tell) noexcept nogil
    # Next batch for instance number i: fills out (room for MAX_TAKE) and returns how many, or TAKE_STOPPED.
    # Sources only.
    int32_t (*take)(Scheduler* s, int32_t i, Request** out, int mode, int64_t spin_ns, int64_t* now) noexcept nogil
    # Instance i has executed what it took, but for requests that it keeps; called before any of it is delivered. NULL:
    # nobody asks.
    void (*executed)(Scheduler* s, int32_t i) noexcept nogil
    # Take no more requests; with `abort`, answer those that no instance has with an error.
    void (*stop)(Scheduler* s, bint abort) noexcept nogil
    # Wait until all that was taken is answered; NULL: the instances' threads are all there is to wait for.
    void (*join)(Scheduler* s) noexcept nogil
    # Requests that wait for an instance.
    int32_t (*pending)(Scheduler* s) noexcept nogil
    Scheduler* inner        # of a layer: what is below it
    Stats* stats
    int32_t stopping        # atomic
    bint placed             # a request's place in its batch has a meaning: none may be left out


# Owns a Scheduler, in memory of its subclass.
cdef class NativeScheduler:
    cdef Scheduler* ptr


# What a layer uses for the functions that it only passes on.
cdef void layer_begin(Scheduler* s) noexcept nogil


cdef inline int scheduler_submit(void* scheduler, Request* r, bint* wake, tf_error* e) noexcept nogil:
    cdef Scheduler* s = <Scheduler*>scheduler
    return s.submit(s, r, wake, e)


cdef inline void scheduler_wake(void* scheduler) noexcept nogil:
    cdef Scheduler* s = <Scheduler*>scheduler
    s.wake(s)


# Take r back, or tell the instance that has it; see Scheduler.cancel.
cdef inline bint scheduler_cancel(void* scheduler, Request* r) noexcept nogil:
    cdef Scheduler* s = <Scheduler*>scheduler
    return s.cancel(s, r, True)


# Take r back if no instance has it; one that has it is told nothing.
cdef inline bint scheduler_withdraw(void* scheduler, Request* r) noexcept nogil:
    cdef Scheduler* s = <Scheduler*>scheduler
    return s.cancel(s, r, False)


cdef inline void scheduler_stop(void* scheduler, bint abort) noexcept nogil:
    cdef Scheduler* s = <Scheduler*>scheduler
    s.stop(s, abort)


cdef inline Stats* stats_of(Model* m) noexcept nogil:
    return (<Scheduler*>m.scheduler).stats
