# What a request to an ensemble waits for, and an end of the waiting: for who finds models that wait for each other.
from libc.stdint cimport int32_t

from triton_fast._native.core.request cimport Request


# What r waits for, members of members included: ((key of a model, "queued", "running" or "waiting" for a place of the
# step, key of the Python instance that has it or 0), ...). Empty where it waits for nothing of that, or r's model is no
# ensemble. The caller holds r, and no lock that a sink takes. Lets go of the GIL.
cdef tuple ensemble_waits(Request* r)
# Fail one request to a member that no instance has, and so r, with this error. False: there is none. As above.
cdef bint ensemble_refuse(Request* r, int32_t code, const char* text, size_t n) noexcept nogil
# Say which Python instance executes r, if a step of an ensemble made it.
cdef void step_runner(Request* r, void* runner) noexcept nogil
