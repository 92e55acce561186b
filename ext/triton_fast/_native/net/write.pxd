# Writing to sockets: sendmsg without waiting, and memory of a block as a Python buffer for what they did not take.
from libc.stdint cimport uint8_t

from triton_fast._native.core.memory cimport Block

cdef extern from "<sys/uio.h>" nogil:
    struct iovec:
        void* iov_base
        size_t iov_len

cdef enum:
    MAX_IOV = 64

# The socket of a new connection, which is then written to directly; -1 under TLS, where the transport takes everything.
# Has the transport pause as soon as it holds anything back.
cdef int socket_of(transport) except -2
# Offer n_iov pieces, total bytes together, to the socket. How many bytes were taken (0 for fd < 0 or a full socket), -1
# when the connection is broken.
cdef ssize_t send_pieces(int fd, iovec* iov, int n_iov, size_t total) noexcept


cdef class BlockView:
    cdef Block* block
    cdef uint8_t* ptr
    cdef size_t n


# n bytes at ptr, which lie in block, as a memoryview: TLS transports take nothing that only has a buffer.
cdef object block_view(Block* block, uint8_t* ptr, size_t n)
