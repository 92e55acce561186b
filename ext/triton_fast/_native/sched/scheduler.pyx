# Layers: the functions of a scheduler that only pass on to what is below. See scheduler.pxd.
from libc.stdint cimport int32_t

from triton_fast._native.core.native cimport tf_error, tf_store32
from triton_fast._native.core.request cimport Request


cdef int pass_submit(Scheduler* s, Request* r, bint* wake, tf_error* e) noexcept nogil:
    return s.inner.submit(s.inner, r, wake, e)


cdef void pass_wake(Scheduler* s) noexcept nogil:
    s.inner.wake(s.inner)


cdef bint pass_cancel(Scheduler* s, Request* r, bint tell) noexcept nogil:
    return s.inner.cancel(s.inner, r, tell)


cdef void pass_stop(Scheduler* s, bint abort) noexcept nogil:
    tf_store32(&s.stopping, True)
    s.inner.stop(s.inner, abort)


cdef void pass_join(Scheduler* s) noexcept nogil:
    if s.inner.join != NULL:
        s.inner.join(s.inner)


cdef int32_t pass_pending(Scheduler* s) noexcept nogil:
    return s.inner.pending(s.inner)


cdef void layer_begin(Scheduler* s) noexcept nogil:
    s.submit = pass_submit
    s.wake = pass_wake
    s.cancel = pass_cancel
    s.take = NULL
    s.stop = pass_stop
    s.join = pass_join
    s.pending = pass_pending


cdef class NativeScheduler:
    """A scheduler or a layer over one; its subclasses say which. Handed to ``NativeModel.use`` or ``add_layer``."""
