# max_inflight_requests: so many requests of each step of an ensemble may be with its member, over all runs.
from libc.stdint cimport int32_t

from triton_fast._native.sched.ensemble_run cimport Ensemble, Exec, Run


# Put x, which was ready, in its run's list of what is under way.
cdef void list_out(Run* run, Exec* x) noexcept nogil
# The same, with a place; False: it waits for one.
cdef bint place_take(Run* run, Exec* x) noexcept nogil
# One place of the step is free. Returns who waited longest for it and must be told (the place is its own), or NULL.
cdef Exec* place_leave(Ensemble* ens, int32_t step) noexcept nogil
# Whether x no longer waits. False: it has got a place and will be told.
cdef bint place_forgo(Ensemble* ens, Exec* x) noexcept nogil
