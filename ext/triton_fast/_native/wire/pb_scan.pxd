# The C helpers of include/tf_pb.h: reading the protobuf wire format, writing its pieces. Declarations only.
# Readers return 0 or a negative reason (tf_pb_reason) and leave the cursor at what could not be read.
from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t


cdef extern from "tf_pb.h" nogil:
    enum:
        TF_PB_UTF8
        TF_PB_PACKED
        TF_PB_MAX_LENGTH
    ctypedef struct tf_pb:
        const uint8_t* p
        const uint8_t* end
    const char* tf_pb_reason(int reason)
    int tf_pb_varint(tf_pb* c, uint64_t* v)
    # The caller has looked that c.p < c.end.
    int tf_pb_tag(tf_pb* c, uint32_t* tag)
    int tf_pb_span(tf_pb* c, const uint8_t** data, uint32_t* n)
    int tf_pb_fixed(tf_pb* c, void* dst, size_t size)
    # The value of a field that is not known; unknown groups may nest 64 deep.
    int tf_pb_skip(tf_pb* c, uint32_t tag)
    int tf_utf8(const uint8_t* p, uint32_t n)
    # Bytes of the character at p, which is no ASCII; 0: not UTF-8.
    int tf_utf8_char(const uint8_t* p, const uint8_t* end)
    # How many varints p[0:n] holds, or a reason and where.
    int64_t tf_pb_count(const uint8_t* p, uint32_t n, const uint8_t** at)
    # Their low `size` bytes to dst (0: bools); returns the end of what was written. tf_pb_count has accepted them.
    uint8_t* tf_pb_unpack(const uint8_t* p, uint32_t n, uint8_t* dst, int size)

    # Writers: the caller has made room; they return the end of what was written.
    uint32_t tf_pb_varint_size(uint64_t v)
    char* tf_pb_put_varint(char* p, uint64_t v)
    char* tf_pb_put_bytes(char* p, uint8_t tag, const void* src, size_t n)
    char* tf_pb_put_text(char* p, uint8_t tag, const char* src, size_t n)
