# See trace_context.pxd. Strict as the W3C recommendation "Trace Context", level 1, asks of who reads a traceparent.
from libc.stdint cimport int32_t, uint8_t, uint64_t
from libc.string cimport memcmp, memcpy

cdef const char* DIGITS = b"0123456789abcdef"
cdef const char* BEGIN = b"{\"traceparent\":\"00-"

cdef enum:
    PARENT = 55             # bytes of version 00
    SPAN_AT = 52            # of the span in a carrier: behind BEGIN, the trace's id and a dash


cdef void context_clear(TraceContext* c) noexcept nogil:
    c.parents = 0
    c.valid = False
    c.overflowed = False
    c.state_len = 0


cdef inline int32_t digit(char c) noexcept nogil:
    if c"0" <= c <= c"9":
        return c - c"0"
    return c - c"a" + 10 if c"a" <= c <= c"f" else -1


# n bytes from 2 n lower-case digits. -1: others, or nothing but zeros.
cdef int read_hex(const char* text, int32_t n, uint8_t* out) noexcept nogil:
    cdef int32_t i, high, low
    cdef uint8_t any_bit = 0
    for i in range(n):
        high = digit(text[2 * i])
        low = digit(text[2 * i + 1])
        if high < 0 or low < 0:
            return -1
        out[i] = <uint8_t>(high << 4 | low)
        any_bit |= out[i]
    return 0 if any_bit else -1


cdef uint64_t number_of(const uint8_t* bytes8) noexcept nogil:
    cdef uint64_t value = 0
    cdef int32_t i
    for i in range(8):
        value = value << 8 | bytes8[i]
    return value


cdef bint parse_parent(TraceContext* c, const char* v, size_t n) noexcept nogil:
    cdef uint8_t[8] span
    cdef int32_t high, low
    if n < PARENT or v[2] != c"-" or v[35] != c"-" or v[52] != c"-":
        return False
    high = digit(v[0])
    low = digit(v[1])
    if high < 0 or low < 0 or (high == 15 and low == 15):
        return False
    # A later version may add fields, which the recommendation has us leave alone.
    if n > PARENT and (high << 4 | low == 0 or v[PARENT] != c"-"):
        return False
    if read_hex(v + 3, 16, c.trace_id) != 0 or read_hex(v + 36, 8, span) != 0:
        return False
    high = digit(v[53])
    low = digit(v[54])
    if high < 0 or low < 0:
        return False
    c.flags = <uint8_t>(high << 4 | low)
    c.span = number_of(span)
    return True


cdef void add_state(TraceContext* c, const char* v, size_t n) noexcept nogil:
    cdef size_t k
    for k in range(n):
        if v[k] < 0x20 or v[k] > 0x7e:
            c.overflowed = True
    if c.overflowed or n + 1 > <size_t>(MAX_STATE - c.state_len):
        c.overflowed = True
        c.state_len = 0
        return
    if n == 0:
        return
    if c.state_len:
        c.state[c.state_len] = c","
        c.state_len += 1
    memcpy(c.state + c.state_len, v, n)
    c.state_len += <unsigned int>n


cdef bint same_name(const char* name, const char* word, size_t n) noexcept nogil:
    cdef size_t k
    cdef char c
    for k in range(n):
        c = name[k]
        if (c + 32 if c"A" <= c <= c"Z" else c) != word[k]:
            return False
    return True


cdef bint context_field(TraceContext* c, const char* name, size_t name_len, const char* value, size_t n) noexcept nogil:
    if name_len == 11 and same_name(name, b"traceparent", 11):
        c.parents += 1
        c.valid = parse_parent(c, value, n)
        return True
    if name_len == 10 and same_name(name, b"tracestate", 10):
        add_state(c, value, n)
        return True
    return False


cdef inline char* put_hex(char* out, uint8_t value) noexcept nogil:
    out[0] = DIGITS[value >> 4]
    out[1] = DIGITS[value & 15]
    return out + 2


cdef size_t context_carrier(char* out, const uint8_t* trace_id, uint64_t span, const char* state,
                            size_t state_len) noexcept nogil:
    cdef char* p = out
    cdef size_t k
    cdef int32_t i
    memcpy(p, BEGIN, TRACE_AT)
    p += TRACE_AT
    for i in range(16):
        p = put_hex(p, trace_id[i])
    p[0] = c"-"
    p += 1
    for i in range(8):
        p = put_hex(p, <uint8_t>(span >> (56 - 8 * i)))
    memcpy(p, b"-01\"", 4)
    p += 4
    if state_len:
        memcpy(p, b",\"tracestate\":\"", 15)
        p += 15
        for k in range(min(state_len, <size_t>MAX_STATE)):
            if state[k] == c"\"" or state[k] == c"\\":
                p[0] = c"\\"
                p += 1
            p[0] = state[k]
            p += 1
        p[0] = c"\""
        p += 1
    p[0] = c"}"
    return p + 1 - out


cdef bint carrier_span(const char* text, size_t n, uint64_t* span) noexcept nogil:
    cdef uint8_t[8] found
    if n < SPAN_AT + 16 or memcmp(text, BEGIN, TRACE_AT) != 0 or read_hex(text + SPAN_AT, 8, found) != 0:
        return False
    span[0] = number_of(found)
    return True


def parse(fields):
    """Return ``(trace id, span id, flags, tracestate)`` of (name, value) pairs of bytes, or None (tests only)."""
    cdef TraceContext c
    context_clear(&c)
    for name, value in fields:
        context_field(&c, <const char*>name, len(name), <const char*>value, len(value))
    if not context_given(&c):
        return None
    return c.trace_id[:16], c.span, c.flags, c.state[:c.state_len] if c.state_len else b""


def carrier(bytes trace_id not None, uint64_t span, bytes state=b""):
    """Return the JSON for what is below ``span`` (tests only)."""
    cdef char[MAX_CARRIER] out
    cdef size_t n
    if len(trace_id) != 16 or len(state) > MAX_STATE:
        raise ValueError("a trace id has 16 bytes, a state at most 512")
    n = context_carrier(out, <const uint8_t*><const char*>trace_id, span, <const char*>state, len(state))
    return out[:n]


def span_in(bytes text not None):
    """Return the span that a carrier names, or None (tests only)."""
    cdef uint64_t span = 0
    return span if carrier_span(<const char*>text, len(text), &span) else None
