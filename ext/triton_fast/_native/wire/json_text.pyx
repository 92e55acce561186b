# distutils: language = c++
# JSON text of plain values: numbers by shortest round trip, strings escaped. For every JSON encoder of the engine.
# Knows no request and no response. C++ for std::to_chars.
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from triton_fast._native.core.native cimport (
    DT_BOOL, DT_FP32, DT_FP64, DT_INT8, DT_INT16, DT_INT32, DT_INT64, DT_UINT8, DT_UINT16, DT_UINT32, DT_UINT64, tf_buf,
    tf_buf_char, tf_buf_free, tf_buf_put, tf_buf_reserve,
)
from triton_fast._native.wire.numbers cimport number_t

cdef extern from * nogil:
    ctypedef unsigned long long uint128 "unsigned __int128"
    int __builtin_clz(unsigned int v)
    int count_trailing_zeros "__builtin_ctzll"(unsigned long long v)
    int count_leading_zeros "__builtin_clzll"(unsigned long long v)

cdef extern from "<charconv>" nogil:
    struct to_chars_result "std::to_chars_result":
        char* ptr
    ctypedef int chars_format "std::chars_format"
    chars_format SCIENTIFIC "std::chars_format::scientific"
    to_chars_result to_chars "std::to_chars"(char* first, char* last, double v, chars_format format)

cdef enum:
    RUN = 256               # numbers written between two looks at the buffer's room
    NUMBER_ROOM = 32        # the longest number and its comma: -0.0000012345678901234567 has 25 characters
    SLACK = 64              # number writers store in fixed strides and may touch this much past what they write


# --- numbers ----------------------------------------------------------------------------------------------------------

# POW10: 10^k for k = POW10_MIN .. POW10_MAX, scaled to 64 bits, rounded up. LEAST[n]: the least number of n + 1 digits.
# PAIRS: "00" .. "99".
cdef enum:
    POW10_MIN = -31
    POW10_MAX = 45

cdef uint64_t POW10[POW10_MAX - POW10_MIN + 1]
cdef uint32_t LEAST[11]
cdef char PAIRS[200]


cdef void make_tables() noexcept:
    for k in range(POW10_MIN, POW10_MAX + 1):
        scaled = (10 ** k) << 512 if k >= 0 else (1 << 512) // 10 ** -k
        POW10[k - POW10_MIN] = (scaled >> (scaled.bit_length() - 64)) + 1
    for k in range(10):
        LEAST[k] = 10 ** k if k else 0
    for k in range(100):
        PAIRS[2 * k] = 48 + k // 10
        PAIRS[2 * k + 1] = 48 + k % 10


make_tables()


cdef inline int32_t n_digits(uint32_t v) noexcept nogil:
    cdef int32_t guess = ((32 - __builtin_clz(v | 1)) * 1233) >> 12
    return guess + (1 if v >= LEAST[guess] else 0)


# Write v as n digits ending before `end`.
cdef inline void digits_before(char* end, uint32_t v) noexcept nogil:
    cdef uint32_t q
    while v >= 100:
        q = v // 100
        end -= 2
        memcpy(end, &PAIRS[2 * (v - q * 100)], 2)
        v = q
    if v >= 10:
        memcpy(end - 2, &PAIRS[2 * v], 2)
    else:
        (end - 1)[0] = <char>(48 + v)


cdef inline char* write_uint(char* out, uint64_t v) noexcept nogil:
    cdef uint64_t high
    cdef uint32_t low
    cdef int32_t n
    if v >> 32:
        high = v // 1000000000
        low = <uint32_t>(v - high * 1000000000)
        out = write_uint(out, high)
        memcpy(out, b"000000000", 9)
        digits_before(out + 9, low)
        return out + 9
    n = n_digits(<uint32_t>v)
    digits_before(out + n, <uint32_t>v)
    return out + n


cdef inline char* write_int(char* out, int64_t v) noexcept nogil:
    if v < 0:
        out[0] = 45
        return write_uint(out + 1, <uint64_t>0 - <uint64_t>v)
    return write_uint(out, <uint64_t>v)


# 0.d1..dn * 10^point in the layout of RapidJSON: plain up to 21 digits before or 6 places after the point, else 1.5e-7.
# digits must be readable, and out writable, for SLACK bytes.
cdef inline char* lay_out(char* out, const char* digits, int32_t n, int32_t point) noexcept nogil:
    if -6 < point <= 0:
        memcpy(out, b"0.000000", 8)
        memcpy(out + 2 - point, digits, 24)
        return out + 2 - point + n
    if 0 < point < n:
        memcpy(out, digits, 24)
        out[point] = 46
        memcpy(out + point + 1, digits + point, 24)
        return out + n + 1
    if 0 < point <= 21:
        memcpy(out, b"000000000000000000000000", 24)
        memcpy(out, digits, <size_t>n)
        memcpy(out + point, b".0", 2)
        return out + point + 2
    out[0] = digits[0]
    out += 1
    if n > 1:
        out[0] = 46
        memcpy(out + 1, digits + 1, 24)
        out += n
    out[0] = 101
    return write_int(out + 1, point - 1)


# High half of g * cp with every lost bit folded into the lowest: enough to compare it exactly with integers.
cdef inline uint32_t round_to_odd(uint64_t g, uint32_t cp) noexcept nogil:
    cdef uint128 p = <uint128>g * cp
    return <uint32_t>(p >> 64) | (1 if <uint32_t>(p >> 32) > 1 else 0)


# The 8 digits of v < 10^8, one a byte, the first in the lowest byte: three divisions for all of them, side by side.
cdef inline uint64_t eight_digits(uint32_t v) noexcept nogil:
    cdef uint64_t x = v // 10000
    cdef uint64_t q
    x |= <uint64_t>(v - <uint32_t>x * 10000) << 32
    q = ((x * 10486) >> 20) & <uint64_t>0x0000007F0000007F
    x = q | ((x - q * 100) << 16)
    q = ((x * 103) >> 10) & <uint64_t>0x000F000F000F000F
    return q | ((x - q * 10) << 8)


cdef char* write_nine(char* out, uint32_t value, int32_t k) noexcept nogil:
    cdef char digits[SLACK]
    cdef uint64_t x = eight_digits(value % 100000000)
    cdef int32_t n = 9 - (count_leading_zeros(x) >> 3) if x else 1
    x |= <uint64_t>0x3030303030303030
    digits[0] = <char>(48 + value // 100000000)
    memcpy(&digits[1], &x, 8)
    return lay_out(out, &digits[0], n, 9 + k)


# value * 10^k, 1 <= value < 10^9. The usual cases keep the digits in a register.
cdef inline char* write_decimal(char* out, uint32_t value, int32_t k) noexcept nogil:
    cdef char digits[SLACK]
    cdef int32_t n, zeros
    cdef uint64_t x
    if value >= 100000000:
        return write_nine(out, value, k)
    x = eight_digits(value)
    zeros = count_trailing_zeros(x) & 56
    n = 8 - ((count_leading_zeros(x) + zeros) >> 3)     # without the zeros at either end
    x = (x | <uint64_t>0x3030303030303030) >> zeros
    k += 8 - (zeros >> 3)
    if -6 < k <= 0:
        memcpy(out, b"0.000000", 8)
        memcpy(out + 2 - k, &x, 8)
        return out + 2 - k + n
    if 0 < k < n:
        memcpy(out, &x, 8)
        x >>= 8 * k
        out[k] = 46
        memcpy(out + k + 1, &x, 8)
        return out + n + 1
    memcpy(digits, &x, 8)
    return lay_out(out, &digits[0], n, k)


# The shortest decimal that reads back as this float, by Giulietti's Schubfach (2020). bits: no sign, finite, not 0.
cdef inline char* write_float_bits(char* out, uint32_t bits) noexcept nogil:
    cdef uint32_t fraction = bits & 0x7FFFFF
    cdef int32_t exponent = <int32_t>(bits >> 23)
    cdef uint32_t c = fraction | 0x800000 if exponent else fraction
    cdef int32_t q = exponent - 150 if exponent else -149
    cdef bint closer = fraction == 0 and exponent > 1      # the neighbour below is at half the distance
    cdef uint32_t odd = c & 1
    cdef int32_t k, h
    cdef uint64_t g
    cdef uint32_t low, mid, high, s, tens
    cdef bint below, above
    k = (q * 1262611 - (524031 if closer else 0)) >> 22
    h = q + ((-k * 1741647) >> 19) + 1
    g = POW10[-k - POW10_MIN]
    low = round_to_odd(g, (4 * c - 2 + (1 if closer else 0)) << h) + odd
    mid = round_to_odd(g, (4 * c) << h)
    high = round_to_odd(g, (4 * c + 2) << h) - odd
    s = mid >> 2
    if s >= 10:
        tens = s // 10
        below = low <= 40 * tens
        above = 40 * tens + 40 <= high
        if below != above:
            return write_decimal(out, tens + (1 if above else 0), k + 1)
    below = low <= 4 * s
    above = 4 * s + 4 <= high
    if below == above:
        above = mid > 4 * s + 2 or (mid == 4 * s + 2 and s & 1)
    return write_decimal(out, s + (1 if above else 0), k)


cdef inline char* write_special(char* out, bint negative, bint is_nan) noexcept nogil:
    if is_nan:
        memcpy(out, b"NaN", 3)
        return out + 3
    if negative:
        out[0] = 45
        out += 1
    memcpy(out, b"Infinity", 8)
    return out + 8


cdef inline char* write_float(char* out, float v) noexcept nogil:
    cdef uint32_t bits
    memcpy(&bits, &v, 4)
    if (bits & 0x7F800000) == 0x7F800000:
        return write_special(out, bits >> 31, v != v)
    out[0] = 45
    out += bits >> 31
    bits &= 0x7FFFFFFF
    if bits == 0:
        memcpy(out, b"0.0", 3)
        return out + 3
    return write_float_bits(out, bits)


cdef char* write_double(char* out, double v) noexcept nogil:
    cdef char text[SLACK + 32]
    cdef char* end
    cdef char* e
    cdef int32_t n, exponent = 0
    cdef uint64_t bits
    memcpy(&bits, &v, 8)
    if (bits >> 52) & 0x7FF == 0x7FF:
        return write_special(out, bits >> 63, v != v)
    out[0] = 45
    out += bits >> 63
    bits &= <uint64_t>0x7FFFFFFFFFFFFFFF
    if bits == 0:
        memcpy(out, b"0.0", 3)
        return out + 3
    memcpy(&v, &bits, 8)
    end = to_chars(&text[1], &text[1] + 31, v, SCIENTIFIC).ptr      # d[.ddd]e[+-]dd[d]
    e = end - 4
    while e[0] != 101:
        e -= 1
    n = <int32_t>(e - &text[1])
    e += 2
    while e < end:
        exponent = exponent * 10 + e[0] - 48
        e += 1
    if text[1 + n + 1] == 45:
        exponent = -exponent
    # Close up over the point: the first digit moves into its place.
    text[2] = text[1]
    if n > 1:
        n -= 1
        return lay_out(out, &text[2], n, exponent + 1)
    text[1] = text[2]
    return lay_out(out, &text[1], 1, exponent + 1)


cdef inline char* write_number(char* out, number_t v) noexcept nogil:
    if number_t is float:
        return write_float(out, v)
    elif number_t is double:
        return write_double(out, v)
    elif number_t is uint64_t:
        return write_uint(out, v)
    else:
        return write_int(out, v)


# The elements at src, comma-separated. src may have any alignment.
cdef int put_numbers(tf_buf* out, const uint8_t* src, int64_t count, number_t* unused) noexcept nogil:
    cdef number_t v
    cdef int64_t done = 0
    cdef int64_t stop
    cdef char* p
    while done < count:
        if tf_buf_reserve(out, RUN * NUMBER_ROOM + SLACK):
            return -1
        stop = count if count - done < RUN else done + RUN
        p = out.data + out.len
        while done < stop:
            memcpy(&v, src + done * <int64_t>sizeof(number_t), sizeof(number_t))
            p = write_number(p, v)
            p[0] = 44
            p += 1
            done += 1
        out.len = <size_t>(p - out.data)
    if count > 0:
        out.len -= 1        # the last comma
    return 0


cdef int put_bools(tf_buf* out, const uint8_t* src, int64_t count) noexcept nogil:
    cdef int64_t i
    for i in range(count):
        if tf_buf_reserve(out, 8):
            return -1
        if i:
            tf_buf_char(out, 44)
        if src[i]:
            tf_buf_put(out, b"true", 4)
        else:
            tf_buf_put(out, b"false", 5)
    return 0


cdef int json_put_numbers(tf_buf* out, int32_t dtype, const uint8_t* src, int64_t count) noexcept nogil:
    if dtype == DT_FP32:
        return put_numbers(out, src, count, <float*>NULL)
    if dtype == DT_FP64:
        return put_numbers(out, src, count, <double*>NULL)
    if dtype == DT_INT64:
        return put_numbers(out, src, count, <int64_t*>NULL)
    if dtype == DT_INT32:
        return put_numbers(out, src, count, <int32_t*>NULL)
    if dtype == DT_INT16:
        return put_numbers(out, src, count, <int16_t*>NULL)
    if dtype == DT_INT8:
        return put_numbers(out, src, count, <int8_t*>NULL)
    if dtype == DT_UINT64:
        return put_numbers(out, src, count, <uint64_t*>NULL)
    if dtype == DT_UINT32:
        return put_numbers(out, src, count, <uint32_t*>NULL)
    if dtype == DT_UINT16:
        return put_numbers(out, src, count, <uint16_t*>NULL)
    if dtype == DT_UINT8:
        return put_numbers(out, src, count, <uint8_t*>NULL)
    if dtype == DT_BOOL:
        return put_bools(out, src, count)
    return -1


cdef void json_put_int(tf_buf* out, int64_t v) noexcept nogil:
    if tf_buf_reserve(out, SLACK) == 0:
        out.len = <size_t>(write_int(out.data + out.len, v) - out.data)


cdef void json_put_uint(tf_buf* out, uint64_t v) noexcept nogil:
    if tf_buf_reserve(out, SLACK) == 0:
        out.len = <size_t>(write_uint(out.data + out.len, v) - out.data)


cdef void json_put_double(tf_buf* out, double v) noexcept nogil:
    if tf_buf_reserve(out, NUMBER_ROOM + SLACK) == 0:
        out.len = <size_t>(write_double(out.data + out.len, v) - out.data)


# --- strings ----------------------------------------------------------------------------------------------------------

# How many of the 8 bytes at p, from the first, can be copied as they are: printable ASCII but quote and backslash.
cdef inline int plain_run(const uint8_t* p) noexcept nogil:
    cdef uint64_t v, quote, slash, special
    cdef uint64_t ones = <uint64_t>0x0101010101010101
    cdef uint64_t highs = <uint64_t>0x8080808080808080
    memcpy(&v, p, 8)
    quote = v ^ (ones * 0x22)
    slash = v ^ (ones * 0x5C)
    # A borrow can flag a byte wrongly only above one that is flagged rightly, so the first flag is exact.
    special = (v | (v - ones * 0x20) | ((quote - ones) & ~quote) | ((slash - ones) & ~slash)) & highs
    return 8 if special == 0 else count_trailing_zeros(special) >> 3


# Length of the well-formed UTF-8 sequence at p (2 to 4, given a first byte >= 0x80), or 0.
cdef int utf8_length(const uint8_t* p, size_t left) noexcept nogil:
    cdef uint8_t c = p[0]
    cdef uint8_t d
    if c < 0xC2 or c > 0xF4 or left < 2:
        return 0
    d = p[1]
    if c < 0xE0:
        return 2 if d & 0xC0 == 0x80 else 0
    # The second byte bounds out overlong forms, surrogates and what lies past U+10FFFF.
    if d < (0xA0 if c == 0xE0 else 0x90 if c == 0xF0 else 0x80):
        return 0
    if d > (0x9F if c == 0xED else 0x8F if c == 0xF4 else 0xBF):
        return 0
    if left < 3 or p[2] & 0xC0 != 0x80:
        return 0
    if c < 0xF0:
        return 3
    return 4 if left >= 4 and p[3] & 0xC0 == 0x80 else 0


cdef void put_escape(tf_buf* out, uint8_t c) noexcept nogil:
    cdef char text[6]
    cdef char short = 0
    if c == 34 or c == 92:
        short = <char>c
    elif c == 8:
        short = 98
    elif c == 9:
        short = 116
    elif c == 10:
        short = 110
    elif c == 12:
        short = 102
    elif c == 13:
        short = 114
    text[0] = 92
    if short:
        text[1] = short
        tf_buf_put(out, text, 2)
        return
    memcpy(&text[1], b"u00", 3)
    text[4] = <char>(48 + (c >> 4))
    text[5] = b"0123456789ABCDEF"[c & 15]
    tf_buf_put(out, text, 6)


cdef void json_quote(tf_buf* out, const char* text, size_t n) noexcept nogil:
    cdef const uint8_t* p = <const uint8_t*>text
    cdef size_t at = 0
    cdef size_t start = 0
    cdef int k
    if tf_buf_reserve(out, n + 2 if n < <size_t>1 << 40 else n):
        return
    tf_buf_char(out, 34)
    while at < n:
        while n - at >= 8:
            k = plain_run(p + at)
            at += <size_t>k
            if k < 8:
                break
        if at == n:
            break
        if p[at] >= 0x80:
            k = utf8_length(p + at, n - at)
            if k:
                at += <size_t>k
                continue
        elif p[at] >= 32 and p[at] != 34 and p[at] != 92:
            at += 1
            continue
        tf_buf_put(out, p + start, at - start)
        if p[at] >= 0x80:
            tf_buf_put(out, b"\xef\xbf\xbd", 3)
        else:
            put_escape(out, p[at])
        at += 1
        start = at
    if n > start:       # an empty text may have no address
        tf_buf_put(out, p + start, n - start)
    tf_buf_char(out, 34)


# The elements of a STRING tensor; -1 when memory ran out, -2 when the bytes are not exactly count elements.
cdef int json_put_strings(tf_buf* out, const uint8_t* src, size_t left, int64_t count) noexcept nogil:
    cdef int64_t i
    cdef uint32_t n
    for i in range(count):
        if left < 4:
            return -2
        memcpy(&n, src, 4)
        src += 4
        left -= 4
        if n > left:
            return -2
        if i:
            tf_buf_char(out, 44)
        json_quote(out, <const char*>src, n)
        if out.failed:
            return -1
        src += n
        left -= n
    return -2 if left else 0


# --- tests ------------------------------------------------------------------------------------------------------------

def quote(bytes text):
    cdef tf_buf out
    cdef const char* p = text
    cdef size_t n = <size_t>len(text)
    memset(&out, 0, sizeof(out))
    try:
        json_quote(&out, p, n)
        if out.failed:
            raise MemoryError
        return out.data[:out.len]
    finally:
        tf_buf_free(&out)
