# What the HTTP/1.1 parsers share: the C scanners of include/tf_http_scan.h, characters, and the tests' copy of their
# input. Knows nothing of heads, bodies or errors.

from libc.stdint cimport uint8_t
from libc.stdlib cimport malloc
from libc.string cimport memcpy


cdef extern from "tf_http_scan.h" nogil:
    const uint8_t* tf_class
    const signed char* tf_hex
    enum:
        C_TOKEN
        C_VALUE
        C_HOST
        S_NAME
        S_PATH
        S_QUERY
        S_VALUE
    const char* tf_scan(const char* p, const char* end, const char* last, int kind)
    bint tf_plain(const char* p, size_t n, const char* end)
    bint tf_ieq(const char* p, const char* low, size_t n)

cdef enum:
    CR = 13
    LF = 10
    SP = 32
    HTAB = 9


cdef inline char* exact_copy(bytes data) except NULL:
    # Of exactly its size, so that AddressSanitizer sees a read behind it (a bytes object has a spare NUL).
    cdef char* copy = <char*>malloc(max(<size_t>len(data), <size_t>1))
    if copy == NULL:
        raise MemoryError
    memcpy(copy, <const char*>data, len(data))
    return copy
