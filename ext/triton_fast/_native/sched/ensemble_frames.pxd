# The memory of a run: its frames, their tensors, and which steps are ready. For the thread that works on it alone.
from libc.stdint cimport int32_t

from triton_fast._native.core.request cimport Request
from triton_fast._native.sched.ensemble_plan cimport Members
from triton_fast._native.sched.ensemble_run cimport Ensemble, Exec, Frame, Run
from triton_fast._native.sched.ensemble_slot cimport Slot


# Of r, which the ensemble counts already; it takes the reference of members. NULL: memory ran out, nothing is taken.
cdef Run* run_new(Ensemble* ens, Request* r, Members* members) noexcept nogil
# A frame for the response `source` of a step of `parent`, with one reference; NULL: memory ran out.
cdef Frame* frame_new(Run* run, Frame* parent, int32_t level, Request* source) noexcept nogil
# A step of f is over, a frame below it has gone, or its answer was sent.
cdef void frame_unref(Run* run, Frame* f) noexcept nogil
# Let go of all tensors and frames: nothing is under way.
cdef void frames_clear(Run* run) noexcept nogil
# A tensor of f is there, or will never be: what waited for it becomes ready.
cdef void made(Run* run, Frame* f, int32_t tensor) noexcept nogil
cdef void make_ready(Run* run, Exec* x) noexcept nogil
# One use of a tensor less.
cdef void slot_used(Slot* slot) noexcept nogil
