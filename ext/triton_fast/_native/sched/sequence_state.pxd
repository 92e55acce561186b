# Implicit state: what a sequence's requests leave behind for the next. Blocks change hands by reference; a state's
# memory is never written again, and no sequence gets another's.
from libc.stdint cimport int32_t

from triton_fast._native.core.request cimport Request, Response
from triton_fast._native.sched.sequence_types cimport Entry, Sequence, Sequences


# Bytes that a sequence needs behind itself, and their beginning.
cdef size_t states_size(Sequences* q) noexcept nogil
cdef void states_begin(Sequences* q, Sequence* s) noexcept nogil
# Give back what it holds.
cdef void states_clear(Sequences* q, Sequence* s) noexcept nogil
# What a sequence starts with.
cdef void states_reset(Sequences* q, Sequence* s) noexcept nogil
# Bytes that a request needs, and their beginning; at is 8-byte aligned.
cdef size_t states_entry_size(Sequences* q) noexcept nogil
cdef void states_entry_begin(Sequences* q, Entry* e, char* at) noexcept nogil
# Whether the next requests of both, which are not executed now, find states of the same dims.
cdef bint states_alike(Sequences* q, Sequence* one, Sequence* other) noexcept nogil
# Have r's added inputs be the states of s. Its requests run one at a time, so that no lock is needed.
cdef void states_fill(Sequences* q, Sequence* s, Request* r) noexcept nogil
# Take the states out of a response, but for outputs that the client is to see. What is no such state fails it.
cdef void states_take(Sequences* q, Entry* e, Response* p) noexcept nogil
# The sequence has them now; or nobody.
cdef void states_commit(Sequences* q, Sequence* s, Entry* e) noexcept nogil
cdef void states_drop(Sequences* q, Entry* e) noexcept nogil
