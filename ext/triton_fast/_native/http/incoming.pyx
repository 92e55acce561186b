# See incoming.pxd. Knows no message: the connection consumes.
from libc.stdint cimport uint8_t
from libc.string cimport memmove

from triton_fast._native.core.native cimport tf_buf_free, tf_buf_put
from triton_fast._native.http.shared cimport HttpPeer
from triton_fast._native.net.shared cimport SCRATCH

cdef enum:
    PENDING_MAX = 262144        # unread pipelined bytes kept before reading stops


cdef class Incoming(HttpPeer):
    """What a connection knows of bytes that it can not use yet."""

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
