# Controls: room in a request for the inputs that the batcher adds, their values, and padding for empty slots.
from libc.stdint cimport int64_t

from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Request
from triton_fast._native.sched.sequence_types cimport Entry, Seat, Sequences


# What r needs to be a request of a sequence, in r's memory; r itself is as it was. NULL when memory ran out.
cdef Entry* entry_new(Sequences* q, Request* r) noexcept nogil
# r has its room now.
cdef void entry_use(Request* r, Entry* e) noexcept nogil
# Whether its id can be told to the model. 0, or -1 with e filled.
cdef int controls_check(Sequences* q, Request* r, tf_error* e) noexcept nogil
# Say what the request is.
cdef void controls_fill(Sequences* q, Request* r) noexcept nogil
# A request for an empty slot in a batch with `like`: its shapes, zero bytes, not ready. NULL when memory ran out.
cdef Request* padding_new(Sequences* q, Seat* seat, Request* like, int64_t now) noexcept nogil
