# See held.pxd.
from triton_fast._native.core.request cimport request_free
from triton_fast._native.grpc.call cimport Call, call_ref, call_unref


cdef class Lent:
    """The request of a response that counts as unsent, on its way from one message to the other."""

    def __dealloc__(self):
        if self.request != NULL:
            request_free(self.request)


cdef class CallRef:
    """A call that Python code holds on to."""

    @staticmethod
    cdef CallRef make(Call* call):
        cdef CallRef held = CallRef.__new__(CallRef)
        call_ref(call)
        held.call = call
        return held

    def __dealloc__(self):
        if self.call != NULL:
            call_unref(self.call)
