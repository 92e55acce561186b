# Text and numbers into a growable buffer. Inlines only.
from libc.stdint cimport uint64_t
from libc.string cimport strlen

from triton_fast._native.core.native cimport tf_buf, tf_buf_put


cdef inline void print_text(tf_buf* out, const char* text) noexcept nogil:
    tf_buf_put(out, text, strlen(text))


cdef inline void print_number(tf_buf* out, uint64_t value) noexcept nogil:
    cdef char[24] digits
    cdef int at = 24
    while True:
        at -= 1
        digits[at] = <char>(48 + value % 10)
        value //= 10
        if value == 0:
            break
    tf_buf_put(out, &digits[at], <size_t>(24 - at))
