# The gRPC message framing and the few field values of gRPC over HTTP/2 that have a grammar. Sans I/O.
from libc.stdint cimport int32_t, int64_t, uint8_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_buf

cdef enum:
    PREFIX = 5              # one byte of flags, the length in four bytes, big-endian
    MESSAGE_MORE = 0
    MESSAGE_WHOLE = 1
    MESSAGE_TOO_LARGE = -1
    MESSAGE_NO_MEMORY = -2
    MESSAGE_BAD_FLAG = -3

# One message on its way in. Its bytes are block.data[at : at + length]; they end at a 64-byte boundary, so that the
# tensor that ends the message, mostly the only one, is aligned to its elements.
cdef struct Message:
    uint8_t[5] prefix
    uint8_t have            # bytes of the prefix that came
    bint compressed
    Block* block            # NULL while the prefix is not whole; one reference
    size_t at
    size_t length
    size_t received


# Use bytes of the stream, no further than the end of the message; *used says how many. MESSAGE_WHOLE: it is whole, and
# message_begin must come before the next call. A length over limit is refused before anything is allocated; memory
# grows with what arrives, not with what is promised.
cdef int message_take(Message* m, const uint8_t* data, size_t n, size_t limit, size_t* used) noexcept nogil
# Ready for the next message; drops the block, unless it was taken (set to NULL).
cdef void message_begin(Message* m) noexcept nogil
cdef void message_prefix(uint8_t* out, bint compressed, size_t length) noexcept nogil
# grpc-timeout to ns (capped to 100 years), or -1 when it is not one to eight digits and a unit.
cdef int64_t timeout_ns(const uint8_t* value, size_t n) noexcept nogil
# Append text as grpc-message wants it: percent-encoded but for printable ASCII.
cdef void put_percent(tf_buf* out, const char* text, size_t n) noexcept nogil
# grpc-encoding as a number: 0 identity, 1 gzip, 2 deflate, 3 any other; grpc-accept-encoding as bits 1 << number; and
# what responses are compressed with at a level (0: not at all) for who accepts these.
cdef int32_t encoding_of(const uint8_t* value, size_t n) noexcept nogil
cdef int32_t encodings_of(const uint8_t* value, size_t n) noexcept nogil
cdef int32_t packing_of(int32_t level, int32_t accepts) noexcept nogil
