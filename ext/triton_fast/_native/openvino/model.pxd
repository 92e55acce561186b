# A model that was read, and one that a device has compiled; instances keep the compiled one alive.
from triton_fast._native.openvino.capi cimport Core, ov_compiled, ov_model


cdef class Compiled:
    cdef ov_compiled* ptr


cdef class Model:
    cdef ov_model* ptr
    cdef Core core
