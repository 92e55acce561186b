# See log_text.pxd. What is hidden is what escape.py hides; a test compares the two on every character.
from libc.stdint cimport uint8_t, uint32_t

from triton_fast._native.core.native cimport tf_buf, tf_buf_char, tf_buf_free, tf_buf_put

cdef uint8_t[256] care          # 1: a byte that does not stand for itself
for _byte in range(256):
    care[_byte] = not (0x20 <= _byte < 0x7F and _byte not in b'"\\')

cdef const char* HEX = b"0123456789ABCDEF"


# C0 and C1 controls, separators, bidirectional marks, zero-width and invisible characters, tags.
cdef bint is_hidden(uint32_t c) noexcept nogil:
    if c < 0xAD:
        return c < 0x20 or 0x7F <= c <= 0x9F
    if c < 0x2000:
        return c == 0xAD or c == 0x61C or c == 0x180E
    if c < 0x2070:
        return 0x200B <= c <= 0x200F or 0x2028 <= c <= 0x202E or c >= 0x2060
    return c == 0xFEFF or 0xFFF9 <= c <= 0xFFFB or 0xE0000 <= c <= 0xE007F


# The character at p[0:n], n > 0; its length in *used, 0 when it is no UTF-8.
cdef uint32_t character(const uint8_t* p, size_t n, size_t* used) noexcept nogil:
    cdef uint32_t c = p[0], least
    cdef size_t k, i
    used[0] = 0
    if c < 0x80:
        used[0] = 1
        return c
    if 0xC2 <= c <= 0xDF:
        k, c, least = 2, c & 0x1F, 0x80
    elif 0xE0 <= c <= 0xEF:
        k, c, least = 3, c & 0x0F, 0x800
    elif 0xF0 <= c <= 0xF4:
        k, c, least = 4, c & 0x07, 0x10000
    else:
        return 0
    if n < k:
        return 0
    for i in range(1, k):
        if p[i] & 0xC0 != 0x80:
            return 0
        c = c << 6 | (p[i] & 0x3F)
    if c < least or c > 0x10FFFF or 0xD800 <= c <= 0xDFFF:
        return 0
    used[0] = k
    return c


cdef void put_unit(tf_buf* out, uint32_t unit) noexcept nogil:
    cdef char[6] text
    cdef int i
    text[0] = c"\\"
    text[1] = c"u"
    for i in range(4):
        text[2 + i] = HEX[unit >> (12 - 4 * i) & 15]
    tf_buf_put(out, text, 6)


cdef void put_escape(tf_buf* out, uint32_t c) noexcept nogil:
    cdef char short = 0
    if c == c"\b":
        short = c"b"
    elif c == c"\f":
        short = c"f"
    elif c == c"\n":
        short = c"n"
    elif c == c"\r":
        short = c"r"
    elif c == c"\t":
        short = c"t"
    elif c == c'"' or c == c"\\":
        short = <char>c
    if short:
        tf_buf_char(out, c"\\")
        tf_buf_char(out, short)
    elif c > 0xFFFF:
        put_unit(out, 0xD800 + (c - 0x10000 >> 10))
        put_unit(out, 0xDC00 + (c & 0x3FF))
    else:
        put_unit(out, c)


cdef size_t log_text_plain(const char* text, size_t n) noexcept nogil:
    cdef const uint8_t* p = <const uint8_t*>text
    cdef size_t at = 0
    while at < n and not care[p[at]]:
        at += 1
    return at


cdef void log_text_put(tf_buf* out, const char* text, size_t n) noexcept nogil:
    cdef const uint8_t* p = <const uint8_t*>text
    cdef size_t at = 0, begin = 0, used
    cdef uint32_t c
    tf_buf_char(out, c'"')
    while at < n:
        if not care[p[at]]:
            at += 1
            continue
        c = character(p + at, n - at, &used)
        if used and c != c'"' and c != c"\\" and not is_hidden(c):
            at += used
            continue
        tf_buf_put(out, p + begin, at - begin)
        if used:
            put_escape(out, c)
        else:
            tf_buf_put(out, b"\xef\xbf\xbd", 3)
            used = 1
        at += used
        begin = at
    tf_buf_put(out, p + begin, n - begin)
    tf_buf_char(out, c'"')


def quoted(bytes text not None):
    """Return ``text`` as a JSON string, bytes (tests only)."""
    cdef tf_buf out
    cdef const char* p = text
    cdef size_t n = len(text)
    out.data = NULL
    out.len = out.cap = 0
    out.failed = 0
    with nogil:
        log_text_put(&out, p, n)
    try:
        if out.failed:
            raise MemoryError
        return out.data[:out.len]
    finally:
        tf_buf_free(&out)
