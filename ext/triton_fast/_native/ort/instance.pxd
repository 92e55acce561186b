# One instance of an ONNX model: the execute function of sched/instance.pxd over an ORT session.
from triton_fast._native.ort.state cimport OrtRun
from triton_fast._native.sched.instance cimport NativeInstance


cdef class OrtInstance(NativeInstance):
    cdef OrtRun* run
