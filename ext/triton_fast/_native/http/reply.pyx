# See reply.pxd. The one place that spells HTTP response heads.
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport strlen

from triton_fast._native.core.memory cimport Block, block_ref, block_unref
from triton_fast._native.core.native cimport tf_buf, tf_buf_put, tf_buf_reserve

from http import HTTPStatus

cdef const char* lines[600]
_kept_alive = {}


def _fill():
    cdef bytes line
    for status in HTTPStatus:
        line = f"HTTP/1.1 {int(status)} {status.phrase}\r\n".encode()
        _kept_alive[int(status)] = line
        lines[int(status)] = line


_fill()


cdef const char* status_of(int32_t status) noexcept:
    if 0 <= status < 600 and lines[status] != NULL:
        return lines[status]
    return lines[500]


cdef inline void put(tf_buf* out, const char* text) noexcept:
    tf_buf_put(out, text, strlen(text))


cdef void put_number(tf_buf* out, size_t value) noexcept:
    cdef char[24] digits
    cdef int at = 24
    while True:
        at -= 1
        digits[at] = <char>(48 + value % 10)
        value //= 10
        if value == 0:
            break
    tf_buf_put(out, &digits[at], 24 - at)


cdef void reply_head(tf_buf* out, int32_t status, const char* extra, size_t body_len, size_t binary_len,
                     bint keep_alive, bint http10) noexcept:
    if tf_buf_reserve(out, 256) != 0:
        return
    put(out, status_of(status))
    if extra != NULL:
        put(out, extra)
    elif binary_len:
        put(out, b"Content-Type: application/octet-stream\r\nInference-Header-Content-Length: ")
        put_number(out, body_len)
        put(out, b"\r\n")
    else:
        put(out, b"Content-Type: application/json\r\n")
    put(out, b"Content-Length: ")
    put_number(out, body_len + binary_len)
    if not keep_alive:
        put(out, b"\r\nConnection: close\r\n\r\n")
    elif http10:
        put(out, b"\r\nConnection: keep-alive\r\n\r\n")
    else:
        put(out, b"\r\n\r\n")


cdef class BlockView:
    """Read-only memory of a block, which lives as long as the view."""

    @staticmethod
    cdef BlockView make(Block* block, uint8_t* ptr, size_t n):
        cdef BlockView view = BlockView.__new__(BlockView)
        block_ref(block)
        view.block = block
        view.ptr = ptr
        view.n = n
        return view

    def __dealloc__(self):
        block_unref(self.block)

    def __len__(self):
        return self.n

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.ptr, self.n, True, flags)
