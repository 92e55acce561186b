# What other adapters between Python objects and requests share with this one.
from triton_fast._native.core.request cimport Param, Request


# Parameters from a sequence of (key, bool, int or str), in r's memory, as a list that begins at link[0].
cdef int params_from(Request* r, Param** link, object params) except -1


# Say which Python instance executes r, if r was submitted here; ``runner`` is the instance's key.
cdef void note_runner(Request* r, void* runner) noexcept nogil
