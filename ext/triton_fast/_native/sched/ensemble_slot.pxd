# What an ensemble knows of one tensor while a request runs. Structs only; no extension of its own.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from triton_fast._native.core.request cimport Request
from triton_fast._native.core.tensor cimport Tensor

# What a later step is told of its sequence instead of what the client said.
cdef struct Mark:
    uint64_t correlation
    const char* text        # of a correlation id that is a string
    uint32_t text_len
    uint32_t flags

# A tensor of one frame.
cdef struct Slot:
    bint there              # it was made, or will never be
    bint marked
    int32_t left            # what still needs it: steps, the response
    Tensor* tensor          # NULL: an optional input or an output that was not given
    Request* owner          # what it lies in, one hold; NULL: the ensemble's own request
    int64_t rows            # of the request that made it; 0: made without a batch dimension
    Mark mark
