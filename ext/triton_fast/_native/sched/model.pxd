# A served model version: its checked description, its queue, its counters and its instance threads.
from triton_fast._native.core.request cimport ModelHandle
from triton_fast._native.core.stats cimport Stats
from triton_fast._native.sched.queue cimport Queue
from triton_fast._native.core.labels cimport LabelTable


# A number that changes whenever a name may resolve to another model version: front ends compare it with the one their
# cached resolution was made at.
cdef class Epoch:
    cdef public long long value


cdef class NativeModel(ModelHandle):
    cdef Queue* queue
    cdef Stats stats
    cdef LabelTable** labels    # one entry per output; NULL entries have no labels
    cdef list instances
    cdef list runners
    cdef bint watched           # a thread refuses requests at their deadline
    cdef object __weakref__
