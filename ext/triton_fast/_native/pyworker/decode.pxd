# What a worker wrote, checked: response records into responses, BLS records into requests. All of it works on private
# copies of the records; tensors stay in the region (but strings, whose lengths must not change once they are checked).
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_buf, tf_error
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Request, Response
from triton_fast._native.pyworker.layout cimport BlsRecord, Message, ResponseRecord
from triton_fast._native.pyworker.region cimport Region


# The block over a message's outbound allocation, made when the first tensor needs it.
cdef struct Source:
    Region* region
    uint64_t off
    Block* block


# Whether data are `count` strings in wire form.
cdef bint are_strings(const uint8_t* p, size_t left, int64_t count) noexcept nogil
# The index of an output of this name; -1.
cdef int32_t find_output(Model* m, const char* name, uint32_t n) noexcept nogil
# Copy n bytes of the outbound heap at off to the buffer. -1: not there, or memory ran out.
cdef int copy_out(Region* g, uint64_t off, uint64_t n, tf_buf* out) noexcept nogil
# Copy the record at off, which begins with its own size of at least `least` bytes; at most `limit`. -1 as above.
cdef int copy_record(Region* g, uint64_t off, size_t least, uint64_t limit, tf_buf* out) noexcept nogil
cdef void source_begin(Source* s, Region* g, uint64_t off) noexcept nogil
# The message has been read: its memory is the worker's again, once no tensor needs it.
cdef void source_end(Source* s) noexcept nogil
# Fill p, of a request whose model names the outputs, from a copied response record. What does not fit the model fails
# the response; -1: no worker writes that.
cdef int decode_response(Source* s, const char* record, size_t n, Response* p) noexcept nogil
# The strings of a copied BLS record.
cdef int bls_model(const char* record, size_t n, const char** name) noexcept nogil
# A request for model from a copied BLS record, validated. NULL with e filled.
cdef Request* decode_bls(Source* s, const char* record, size_t n, Model* model, tf_error* e) noexcept nogil
