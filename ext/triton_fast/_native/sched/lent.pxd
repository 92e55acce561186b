# What becomes of a request that uses memory of its client's: a tap that writes outputs to where the client wants them.
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Request


# To be called once, before r, which has `lent`, is submitted. From then on each of its responses passes here, on the
# thread that made it: outputs with a place are copied there and leave without data (kind MEM_CLIENT), no other output
# leaves in memory that a client may change, and what came of a region that broke leaves as an error. 0, or -1 with e
# filled. A request that uses memory of a GPU gets FLAG_DEVICE here, one with inputs in its client's FLAG_LENT; outputs
# for a GPU are on their way together and waited for before the response goes on.
cdef int lent_begin(Request* r, tf_error* e) noexcept nogil
