# See channel.pxd. Knows no message: the connection consumes, and says what is pushed.
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memmove

from triton_fast._native.core.native cimport now_ns, tf_buf_free, tf_buf_put
from triton_fast._native.core.request cimport Response
from triton_fast._native.http.reply cimport send_now, send_rest
from triton_fast._native.http.shared cimport HttpPeer, HttpShared
from triton_fast._native.net.shared cimport SCRATCH

cdef enum:
    PENDING_MAX = 262144        # unread pipelined bytes kept before reading stops


cdef class Channel(HttpPeer):
    """A connection as far as its bytes are concerned."""

    def __cinit__(self, HttpShared server not None):
        self.server = server
        self.fd = -1
        self.state = ST_CLOSED

    def __dealloc__(self):
        tf_buf_free(&self.pending)

    cdef size_t consume(self, const uint8_t* data, size_t n) except? 0:
        raise TypeError("a connection must consume its bytes")

    cdef int stash(self, const uint8_t* data, size_t n) except -1:
        tf_buf_put(&self.pending, data, n)
        if self.pending.failed:
            raise MemoryError
        if self.state == ST_WAIT and self.pending.len - self.pending_pos > PENDING_MAX and not self.reading_paused:
            self.reading_paused = True
            self.transport.pause_reading()
        return 0

    cdef int use_scratch(self, size_t n) except -1:
        cdef size_t at = 0, used
        while at < n and self.state < ST_WAIT:
            used = self.consume(self.server.scratch + at, n - at)
            if used == 0:
                break
            at += used
        if at < n and self.state <= ST_WAIT:
            self.stash(self.server.scratch + at, n - at)
        return 0

    cdef int use_pending(self) except -1:
        cdef size_t used
        while self.pending_pos < self.pending.len and self.state < ST_WAIT:
            used = self.consume(<uint8_t*>self.pending.data + self.pending_pos, self.pending.len - self.pending_pos)
            if used == 0:
                break
            self.pending_pos += used
        if self.pending_pos == self.pending.len:
            self.pending_pos = 0
            self.pending.len = 0
            if self.pending.cap > SCRATCH:
                tf_buf_free(&self.pending)
        elif self.pending_pos > SCRATCH:
            memmove(self.pending.data, self.pending.data + self.pending_pos, self.pending.len - self.pending_pos)
            self.pending.len -= self.pending_pos
            self.pending_pos = 0
        if self.reading_paused and self.state < ST_CLOSED and (
                self.state != ST_WAIT or self.pending.len - self.pending_pos < PENDING_MAX // 2):
            self.reading_paused = False
            self.transport.resume_reading()
        return 0

    cdef bint push(self, const char* head, size_t n, Response* p, int32_t n_binary,
                   const int32_t* binary_index) except -1:
        cdef size_t total = 0
        cdef ssize_t sent = 0
        if self.state != ST_WAIT or self.is_closing():
            return False
        sent = send_now(-1 if self.paused else self.fd, head, n, p, n_binary, binary_index, &total)
        if sent < 0:
            self.abort()
            return False
        if <size_t>sent < total:
            send_rest(self.transport, <size_t>sent, head, n, p, n_binary, binary_index)
            # A reader that takes nothing must not hold the memory for ever.
            self.seen = self.transport.get_write_buffer_size()
            self.deadline = now_ns() + self.server.body_timeout_ns
        return True

    cdef int close(self) except -1:
        self.state = ST_CLOSED
        self.deadline = 0
        if self.transport is not None:
            self.transport.close()
        return 0

    cdef int abort(self) except -1:
        self.state = ST_CLOSED
        self.deadline = 0
        if self.transport is not None:
            self.transport.abort()
        return 0
