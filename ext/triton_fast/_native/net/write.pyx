# See write.pxd.
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.errno cimport EAGAIN, EINTR, errno
from libc.stdint cimport uint8_t
from libc.string cimport memset

from triton_fast._native.core.memory cimport Block, block_ref, block_unref

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        iovec* msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int fd, const msghdr* msg, int flags)
    int MSG_NOSIGNAL
    int MSG_DONTWAIT

cdef enum:
    NOGIL_SEND = 65536          # a write of this size copies long enough to let other threads have the GIL


cdef int socket_of(transport) except -2:
    cdef int fd = -1
    if transport.get_extra_info("sslcontext") is None:
        fd = transport.get_extra_info("socket").fileno()
    # A TLS transport pauses at the limit, not above it: with 0 it would be paused when it is empty.
    transport.set_write_buffer_limits(0 if fd >= 0 else 1, 0)
    return fd


cdef ssize_t send_pieces(int fd, iovec* iov, int n_iov, size_t total) noexcept:
    cdef msghdr msg
    cdef ssize_t sent
    if fd < 0:
        return 0
    memset(&msg, 0, sizeof(msg))
    msg.msg_iov = iov
    msg.msg_iovlen = n_iov
    if total >= NOGIL_SEND:
        with nogil:
            sent = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT)
    else:
        sent = sendmsg(fd, &msg, MSG_NOSIGNAL | MSG_DONTWAIT)
    if sent < 0 and (errno == EAGAIN or errno == EINTR):
        return 0
    return sent


cdef class BlockView:
    """Read-only memory of a block, which lives as long as the view."""

    def __dealloc__(self):
        block_unref(self.block)

    def __len__(self):
        return self.n

    def __getbuffer__(self, Py_buffer* buffer, int flags):
        PyBuffer_FillInfo(buffer, self, self.ptr, self.n, True, flags)


cdef object block_view(Block* block, uint8_t* ptr, size_t n):
    cdef BlockView view = BlockView.__new__(BlockView)
    block_ref(block)
    view.block = block
    view.ptr = ptr
    view.n = n
    return PyMemoryView_FromObject(view)
