# Base class of what backends hand out; see instance.pxd for the contract of execute.


cdef class NativeInstance:
    """One model instance: a C function that executes a batch, and its state.

    Backends subclass it in Cython and set ``execute`` and ``state``; Python code only passes it on.
    """

    def __cinit__(self, *args, **kwargs):
        self.execute = NULL
        self.state = NULL
        self.name = ""
