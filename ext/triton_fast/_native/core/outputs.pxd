# Which of its model's outputs a request is to get. Inlines only.
from libc.stdint cimport int32_t

from triton_fast._native.core.request cimport Request


# Whether the client wants output k of the model (all, when it named none).
cdef inline bint request_wants(Request* r, int32_t k) noexcept nogil:
    cdef int32_t i
    for i in range(r.n_wanted):
        if r.wanted[i].index == k:
            return True
    return r.n_wanted == 0


# Whether an instance must make output k, for the client or for the scheduler.
cdef inline bint request_needs(Request* r, int32_t k) noexcept nogil:
    return r.model.outputs[k].kept or request_wants(r, k)
