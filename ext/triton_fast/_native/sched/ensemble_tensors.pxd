# Tensors between an ensemble, its steps and its client: the request of a step, the response to the client.
# Nothing is copied but dims; memory is passed on by reference.
from libc.stdint cimport int32_t

from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Request, Response
from triton_fast._native.sched.ensemble_plan cimport Member
from triton_fast._native.sched.ensemble_run cimport Exec, Frame, Run
from triton_fast._native.sched.ensemble_slot cimport Mark, Slot


# Where a tensor is, seen from this frame.
cdef inline Slot* slot_of(Run* run, Frame* frame, int32_t tensor) noexcept nogil:
    cdef int32_t level = run.ensemble.plan.tensors[tensor].level
    while frame.level != level:
        frame = frame.parent
    return &frame.slots[run.ensemble.plan.tensors[tensor].at]


# The request of x for this member, checked; NULL with e filled.
cdef Request* child_new(Exec* x, Member* m, tf_error* e) noexcept nogil
# Read what a response says of the sequence into mark, which holds what the step was told. 1: it says something, 0: it
# does not, -1: nonsense, e is filled. Texts lie in the response.
cdef int read_mark(Response* p, Mark* mark, tf_error* e) noexcept nogil
# Give p the outputs that the client wants, of this frame. -1: memory ran out.
cdef int fill_answer(Run* run, Frame* frame, Response* p) noexcept nogil
