# Sequences by id, in lists and in slots. No requests, no tensors, no threads. Hold the lock for all of it.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from triton_fast._native.sched.sequence_types cimport List, Sequence, Sequences


# Memory for the parts above; -1 when there is none. slots_end gives all back, sequences included.
cdef int slots_begin(Sequences* q) noexcept nogil
cdef void slots_end(Sequences* q) noexcept nogil
# The sequence that requests with this id belong to; NULL.
cdef Sequence* sequence_find(Sequences* q, uint64_t number, const char* text, uint32_t n) noexcept nogil
# A new one, in no list and without a seat; NULL when memory ran out. With `named` it is found from now on.
cdef Sequence* sequence_new(Sequences* q, uint64_t number, const char* text, uint32_t n, bint named) noexcept nogil
cdef void sequence_forget(Sequences* q, Sequence* s) noexcept nogil
# It has no request and no seat any more.
cdef void sequence_free(Sequences* q, Sequence* s) noexcept nogil
# Have s at the end of this list and in no other. NULL: in none.
cdef void sequence_move(Sequences* q, Sequence* s, List* to) noexcept nogil
# Give it the free slot that Triton would; False: there is none.
cdef bint slot_take(Sequences* q, Sequence* s) noexcept nogil
# Give it that slot of that seat.
cdef void slot_fill(Sequences* q, Sequence* s, int32_t seat, int32_t slot) noexcept nogil
cdef void slot_clear(Sequences* q, Sequence* s) noexcept nogil
# Deadlines of sequences in the backlog: note s.deadline, or forget it.
cdef void deadline_note(Sequences* q, Sequence* s) noexcept nogil
cdef void deadline_drop(Sequences* q, Sequence* s) noexcept nogil
