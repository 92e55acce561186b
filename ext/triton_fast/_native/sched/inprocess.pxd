# What other adapters between Python objects and requests share with this one.
from libc.stdint cimport int64_t, uint32_t

from triton_fast._native.core.request cimport Request
from triton_fast._native.core.tensor cimport Param
from triton_fast._native.sched.model cimport NativeModel


# A request with copies of all it is given, validated, without a sink; the caller owns it. Raises a ServerError.
cdef Request* make_request(NativeModel model, object inputs, object outputs, str id, int64_t priority,
                           int64_t timeout_us, uint32_t flags, object correlation, object params, str trace) except NULL


# Parameters from a sequence of (key, bool, int or str), in r's memory, as a list that begins at link[0].
cdef int params_from(Request* r, Param** link, object params) except -1


# Say which Python instance executes r, if r was submitted here; ``runner`` is the instance's key.
cdef void note_runner(Request* r, void* runner) noexcept nogil
