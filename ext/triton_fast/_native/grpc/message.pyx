# See message.pxd.
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcmp, memcpy, memset

from triton_fast._native.core.memory cimport block_unref, body_grow, body_new
from triton_fast._native.core.native cimport tf_buf, tf_buf_char, tf_buf_free

cdef int64_t CENTURY_NS = <int64_t>100 * 365 * 86400 * 1000000000
cdef const char* HEX = b"0123456789ABCDEF"


cdef void message_begin(Message* m) noexcept nogil:
    block_unref(m.block)
    memset(m, 0, sizeof(Message))


cdef int start_body(Message* m, size_t limit) noexcept nogil:
    if m.prefix[0] > 1:
        return MESSAGE_BAD_FLAG
    m.compressed = m.prefix[0] == 1
    m.length = (<size_t>m.prefix[1] << 24) | (<size_t>m.prefix[2] << 16) | (<size_t>m.prefix[3] << 8) | m.prefix[4]
    if m.length > limit:
        return MESSAGE_TOO_LARGE
    m.at = (64 - (m.length & 63)) & 63
    m.received = 0
    m.block = body_new(m.at + m.length)
    if m.block == NULL:
        return MESSAGE_NO_MEMORY
    return MESSAGE_WHOLE if m.length == 0 else MESSAGE_MORE


cdef int message_take(Message* m, const uint8_t* data, size_t n, size_t limit, size_t* used) noexcept nogil:
    cdef size_t take, room
    cdef int rc
    used[0] = 0
    if m.have < PREFIX:
        take = PREFIX - m.have
        if take > n:
            take = n
        memcpy(&m.prefix[m.have], data, take)
        m.have += <uint8_t>take
        used[0] = take
        if m.have < PREFIX:
            return MESSAGE_MORE
        rc = start_body(m, limit)
        if rc != MESSAGE_MORE:
            return rc
    while used[0] < n:
        room = m.block.cap - m.at - m.received
        if room == 0:
            if body_grow(&m.block, m.at, m.received, m.at + m.length) != 0:
                return MESSAGE_NO_MEMORY
            continue
        take = m.length - m.received
        if take > n - used[0]:
            take = n - used[0]
        if take > room:
            take = room
        memcpy(m.block.data + m.at + m.received, data + used[0], take)
        m.received += take
        used[0] += take
        if m.received == m.length:
            return MESSAGE_WHOLE
    return MESSAGE_MORE


cdef void message_prefix(uint8_t* out, bint compressed, size_t length) noexcept nogil:
    out[0] = compressed
    out[1] = <uint8_t>(length >> 24)
    out[2] = <uint8_t>(length >> 16)
    out[3] = <uint8_t>(length >> 8)
    out[4] = <uint8_t>length


cdef int64_t timeout_ns(const uint8_t* value, size_t n) noexcept nogil:
    cdef int64_t number = 0, unit
    cdef size_t i
    if n < 2 or n > 9:
        return -1
    for i in range(n - 1):
        if value[i] < c"0" or value[i] > c"9":
            return -1
        number = number * 10 + (value[i] - c"0")
    if value[n - 1] == c"H":
        unit = <int64_t>3600 * 1000000000
    elif value[n - 1] == c"M":
        unit = <int64_t>60 * 1000000000
    elif value[n - 1] == c"S":
        unit = 1000000000
    elif value[n - 1] == c"m":
        unit = 1000000
    elif value[n - 1] == c"u":
        unit = 1000
    elif value[n - 1] == c"n":
        unit = 1
    else:
        return -1
    if number > CENTURY_NS // unit:
        return CENTURY_NS
    return number * unit


cdef void put_percent(tf_buf* out, const char* text, size_t n) noexcept nogil:
    cdef size_t i
    cdef uint8_t c
    for i in range(n):
        c = <uint8_t>text[i]
        if 32 <= c <= 126 and c != c"%":
            tf_buf_char(out, text[i])
            continue
        tf_buf_char(out, c"%")
        tf_buf_char(out, HEX[c >> 4])
        tf_buf_char(out, HEX[c & 15])


cdef inline bint is_word(const uint8_t* a, size_t n, const char* b, size_t m) noexcept nogil:
    return n == m and memcmp(a, b, n) == 0


cdef int32_t encoding_of(const uint8_t* value, size_t n) noexcept nogil:
    if is_word(value, n, b"identity", 8) or n == 0:
        return 0
    if is_word(value, n, b"gzip", 4):
        return 1
    if is_word(value, n, b"deflate", 7):
        return 2
    return 3


cdef int32_t encodings_of(const uint8_t* value, size_t n) noexcept nogil:
    cdef int32_t found = 1
    cdef size_t at = 0, end
    while at < n:
        end = at
        while end < n and value[end] != c",":
            end += 1
        while at < end and value[at] == c" ":
            at += 1
        found |= 1 << encoding_of(value + at, end - at)
        at = end + 1
    return found & 7


# gRPC's own choice: of gzip and deflate, in this order, the first for the lowest level and the last for higher ones.
cdef int32_t packing_of(int32_t level, int32_t accepts) noexcept nogil:
    if level == 0 or accepts & 6 == 0:
        return 0
    if accepts & 6 != 6:
        return 1 if accepts & 2 else 2
    return 1 if level == 1 else 2


def split(pieces, size_t limit=2147483647):
    """Feed pieces of one stream of messages; return ([(compressed, bytes)], bytes of the message begun, last status).

    Stops at the first refusal (status below 0).
    """
    cdef Message m
    cdef size_t used
    cdef const uint8_t* data
    cdef size_t n
    cdef int rc = 0
    found = []
    memset(&m, 0, sizeof(Message))
    try:
        for piece in pieces:
            data = <const uint8_t*><const char*>piece
            n = len(piece)
            while n:
                rc = message_take(&m, data, n, limit, &used)
                data += used
                n -= used
                if rc < 0:
                    return found, m.received, rc
                if rc == MESSAGE_WHOLE:
                    if <size_t>(m.block.data + m.at + m.length) % 64:
                        raise AssertionError("the end of a message is not aligned")
                    found.append((bool(m.compressed), (<char*>m.block.data + m.at)[:m.length]))
                    message_begin(&m)
        return found, m.received, rc
    finally:
        message_begin(&m)


def parse_timeout(bytes value):
    """Return a grpc-timeout in ns, -1 when it is not valid."""
    return timeout_ns(<const uint8_t*><const char*>value, len(value))


def percent_encode(bytes text):
    """Return text as grpc-message carries it."""
    cdef tf_buf out
    memset(&out, 0, sizeof(tf_buf))
    put_percent(&out, text, len(text))
    try:
        return out.data[:out.len] if out.len else b""
    finally:
        tf_buf_free(&out)
