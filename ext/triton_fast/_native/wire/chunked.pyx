# Chunked bodies (RFC 9112 section 7.1), sans-IO; interface and limits in chunked.pxd. Must not know heads, sockets or
# routes. Called without the GIL by the connection code; the Python name at the end is for tests.
#
# Strict where two readings of one body could differ (request smuggling): every line ends in CR LF.

from libc.stdint cimport UINT64_MAX, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free
from libc.string cimport memcpy, memset

from triton_fast._native.wire.http1_scan cimport CR, C_TOKEN, C_VALUE, HTAB, LF, SP, exact_copy, tf_class, tf_hex

from triton_fast._native.wire.http1 import HttpError


cdef enum:              # Chunked.state
    K_SIZE = 0          # first digit of a chunk-size
    K_DIGITS
    K_EXT
    K_SIZE_LF
    K_DATA
    K_DATA_CR
    K_DATA_LF
    K_LINE              # start of a trailer line
    K_NAME
    K_VALUE
    K_VALUE_LF
    K_END_LF
    K_DONE
    K_ERROR


cdef void chunked_init(Chunked* c, uint64_t max_body, uint32_t max_chunks) noexcept nogil:
    memset(c, 0, sizeof(Chunked))
    c.max_body = max_body
    c.max_chunks = max_chunks


cdef int _chunked_fail(Chunked* c, int status, const char* text) noexcept nogil:
    c.error_status = status
    snprintf(c.error_text, sizeof(c.error_text), b"%s", text)
    return K_ERROR


cdef int chunked_feed(Chunked* c, const uint8_t* src, size_t n, uint8_t* dst, size_t dst_cap,
                      size_t* consumed, size_t* produced) noexcept nogil:
    cdef size_t i = 0, o = 0, k
    cdef int state = c.state
    while state < K_DONE:
        if state == K_DATA:
            k = n - i
            if dst != NULL and k > dst_cap - o:
                k = dst_cap - o
            if k > c.chunk_left:
                k = c.chunk_left
            if k and dst != NULL:
                memcpy(dst + o, src + i, k)
            i += k
            o += k
            c.chunk_left -= k
            if c.chunk_left:
                break
            state = K_DATA_CR
        if i == n:
            break
        state = _chunked_byte(c, state, src[i])
        i += 1
    c.state = <uint8_t>state
    consumed[0] = i
    produced[0] = o
    return -1 if state == K_ERROR else state == K_DONE


cdef inline int _chunked_byte(Chunked* c, int state, uint8_t ch) noexcept nogil:
    # One byte of framing: the next state.
    if state == K_SIZE or state == K_DIGITS:
        if tf_hex[ch] >= 0:
            if c.digits == 16:
                return _chunked_fail(c, 400, b"chunk size has more than 16 hexadecimal digits")
            c.digits += 1
            c.chunk_left = c.chunk_left << 4 | <uint8_t>tf_hex[ch]
            return K_DIGITS
        if state == K_SIZE:
            return _chunked_fail(c, 400, b"malformed chunk size; expected hexadecimal digits")
        if ch == CR:
            return K_SIZE_LF
        if ch == c';':
            return _chunked_ext(c)
        if ch == SP or ch == HTAB:
            return _chunked_fail(c, 400, b"space after a chunk size")
        return _chunked_fail(c, 400, b"malformed chunk size; expected hexadecimal digits")
    elif state == K_EXT:
        if ch == CR:
            return K_SIZE_LF
        if not tf_class[ch] & C_VALUE:
            return _chunked_fail(c, 400, b"control character in a chunk extension")
        return _chunked_ext(c)
    elif state == K_SIZE_LF:
        return _chunked_size(c) if ch == LF else _chunked_fail(c, 400, b"chunk size line must end with CR LF")
    elif state == K_DATA_CR:
        return K_DATA_LF if ch == CR else _chunked_fail(c, 400, b"chunk data is longer than its chunk size")
    elif state == K_DATA_LF:
        return K_SIZE if ch == LF else _chunked_fail(c, 400, b"chunk data must end with CR LF")
    elif state == K_END_LF:
        return K_DONE if ch == LF else _chunked_fail(c, 400, b"chunked body must end with CR LF")

    # Trailer fields are checked and dropped: none of them may change how the request is read.
    c.trailer_bytes += 1
    if c.trailer_bytes > HTTP_MAX_TRAILER:
        return _chunked_fail(c, 431, b"trailer section exceeds the maximum of 8192 bytes; send fewer trailer fields")
    if state == K_LINE:
        if ch == CR:
            return K_END_LF
        if tf_class[ch] & C_TOKEN:
            return K_NAME
    elif state == K_NAME:
        if ch == c':':
            return K_VALUE
        if tf_class[ch] & C_TOKEN:
            return K_NAME
    elif state == K_VALUE:
        if ch == CR:
            return K_VALUE_LF
        if tf_class[ch] & C_VALUE:
            return K_VALUE
    elif ch == LF:
        return K_LINE
    return _chunked_fail(c, 400, b"malformed trailer field; expected: Name: value")


cdef inline int _chunked_ext(Chunked* c) noexcept nogil:
    c.ext_bytes += 1
    if c.ext_bytes > HTTP_MAX_CHUNK_EXT:
        return _chunked_fail(c, 400, b"chunk extensions exceed the maximum of 4096 bytes; send none")
    return K_EXT


cdef int _chunked_size(Chunked* c) noexcept nogil:
    c.digits = 0
    if c.chunk_left == 0:
        return K_LINE
    if c.n_chunks >= c.max_chunks:
        c.error_status = 400
        snprintf(c.error_text, sizeof(c.error_text), b"Chunked request body exceeds maximum of %u non-empty chunks. "
                 b"Send fewer or larger HTTP chunks.", <unsigned int>c.max_chunks)
        return K_ERROR
    if c.chunk_left > c.max_body - c.body:
        c.error_status = 413
        snprintf(c.error_text, sizeof(c.error_text), b"Chunked request body exceeds the maximum of %llu bytes. "
                 b"Send a smaller body.", <unsigned long long>c.max_body)
        return K_ERROR
    c.n_chunks += 1
    c.body += c.chunk_left
    return K_DATA


# ---- Python name, for tests and fuzzing ----

cdef class ChunkedDecoder:
    cdef Chunked state

    def __cinit__(self, uint64_t max_body=UINT64_MAX, uint32_t max_chunks=HTTP_MAX_CHUNKS):
        chunked_init(&self.state, max_body, max_chunks)

    @property
    def n_chunks(self):
        return self.state.n_chunks

    cdef object _feed(self, bytes data, uint8_t* dst, size_t dst_cap):
        cdef size_t consumed = 0, produced = 0
        cdef char* copy = exact_copy(data)
        cdef int rc = chunked_feed(&self.state, <uint8_t*>copy, len(data), dst, dst_cap, &consumed, &produced)
        free(copy)
        if rc < 0:
            raise HttpError(self.state.error_status, self.state.error_text.decode())
        return produced, rc == 1, consumed

    def feed(self, bytes data not None, size_t dst_cap=65536):
        cdef bytearray dst = bytearray(min(<size_t>len(data), dst_cap))
        produced, done, consumed = self._feed(data, <uint8_t*><char*>dst, len(dst))
        return bytes(dst[:produced]), done, consumed

    def discard(self, bytes data not None):
        return self._feed(data, NULL, 0)
