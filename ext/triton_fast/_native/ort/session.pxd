# An opened model. SessionHold is the native owner: instances hold it, and so does every output that ORT allocated and
# a response still carries, because such memory may belong to the session.
from libc.stdint cimport int32_t

from triton_fast._native.core.native cimport tf_add32
from triton_fast._native.ort.capi cimport OrtSession, OrtSessionOptions


cdef struct SessionHold:
    int32_t refs
    OrtSession* session


# Releases the session; any thread, without the GIL.
cdef void hold_free(SessionHold* hold) noexcept nogil


cdef inline void hold_ref(SessionHold* hold) noexcept nogil:
    tf_add32(&hold.refs, 1)


cdef inline void hold_unref(SessionHold* hold) noexcept nogil:
    if hold != NULL and tf_add32(&hold.refs, -1) == 0:
        hold_free(hold)


cdef class SessionOptions:
    cdef OrtSessionOptions* ptr


cdef class Session:
    cdef SessionHold* hold
    cdef readonly tuple inputs
    cdef readonly tuple outputs
    cdef readonly tuple initializers
    cdef readonly dict metadata
