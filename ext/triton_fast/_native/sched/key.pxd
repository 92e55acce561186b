# What makes two requests the same for the response cache, as a keyed digest.
from libc.stdint cimport int32_t, uint8_t, uint64_t

from triton_fast._native.core.request cimport Request


cdef extern from "tf_digest.h" nogil:
    ctypedef struct tf_digest_key:
        pass
    ctypedef struct tf_digest:
        uint64_t v0
    void tf_digest_begin(tf_digest* d, const tf_digest_key* key)
    void tf_digest_word(tf_digest* d, uint64_t w)
    void tf_digest_bytes(tf_digest* d, const void* data, size_t n)
    void tf_digest_end(tf_digest* d, uint64_t* out)


# Of a validated request: its inputs in the model's order with datatypes, shapes and bytes, the set of outputs it wants,
# its parameters and correlation. `owner` stands for the model version and its load. 0, or -1: not all inputs are where
# this can read them, or memory ran out; such a request has no key.
cdef int request_key(Request* r, const tf_digest_key* secret, uint64_t owner, uint64_t* key) noexcept nogil
# The same as Python objects, for a digest that other servers agree on: ints and bytes-like, which are those of the
# request's memory. Names stand for positions.
cdef list request_fields(Request* r)
