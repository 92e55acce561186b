# A served model version: its checked description, its queue, its counters and its instance threads.
from libc.stdint cimport int32_t

from triton_fast._native.core.model cimport ModelHandle
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.stats cimport Stats
from triton_fast._native.sched.instance cimport NativeInstance
from triton_fast._native.sched.queue cimport Queue
from triton_fast._native.sched.scheduler cimport Scheduler
from triton_fast._native.core.labels cimport LabelTable


# A number that changes whenever a name may resolve to another model version: front ends compare it with the one their
# cached resolution was made at.
cdef class Epoch:
    cdef public long long value


cdef class NativeModel(ModelHandle):
    cdef Queue* queue           # dynamic batching or none
    cdef Scheduler* source      # what instances pull from: the queue, unless another was chosen
    cdef list schedulers        # the owners of what replaces the queue and of the layers
    cdef Stats stats
    cdef LabelTable** labels    # one entry per output; NULL entries have no labels
    cdef list instances
    cdef list runners
    cdef list places            # LimiterPlace of the instances that have one
    cdef object tracer          # TraceSwitch that the model points to, or None
    cdef bint watched           # a thread refuses requests at their deadline
    cdef object __weakref__
    cdef int32_t waiting(self) noexcept


# Have an instance whose thread was not started execute requests of its model on this thread; counted and answered as
# any others. The caller has stamped them. They are delivered or, as far as the instance keeps them, will be.
cdef void run_once(NativeModel self, NativeInstance instance, Request** requests, int32_t n) noexcept
