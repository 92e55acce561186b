# Python objects that hold on to native structs of a call, for coroutines and for the Python side.
from triton_fast._native.core.request cimport Request
from triton_fast._native.grpc.call cimport Call


# The request of a response that counts as unsent, on its way from one message to the other; freed with this.
cdef class Lent:
    cdef Request* request


# A reference of a call.
cdef class CallRef:
    cdef Call* call

    @staticmethod
    cdef CallRef make(Call* call)
