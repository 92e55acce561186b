# What a sequence does with the responses of its requests: it keeps their states, and queues a request again whose model
# asks for that. Only models with states, and iterative ones, need it.
from triton_fast._native.core.request cimport Request
from triton_fast._native.sched.sequence_types cimport Sequences


# See r's responses before they go on. r is executed next; with its final response it leaves its sequence.
cdef void responses_begin(Sequences* q, Request* r) noexcept nogil
