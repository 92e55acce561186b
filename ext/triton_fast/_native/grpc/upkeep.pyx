# distutils: libraries = nghttp2
# See upkeep.pxd. Knows frames and calls, not what the calls mean.
from libc.stdint cimport int64_t, uint8_t

from triton_fast._native.core.native cimport now_ns
from triton_fast._native.grpc.call cimport KIND_INFER, Call
from triton_fast._native.grpc.h2 cimport GRPC_UNAVAILABLE, LEFT, LEAVING, STAYS, THROWN_OUT, H2Session
from triton_fast._native.grpc.nghttp2 cimport *

from triton_fast._native.grpc.h2 import SHUTTING_DOWN

cdef enum:
    NOTICE_NS = 500000000       # from the first GOAWAY to the one that names the last call

cdef int64_t LAST_STALL_NS = 2000000000                 # of a peer that takes nothing while the server ends
cdef int64_t IDLE_PING_NS = <int64_t>7200 * 1000000000
cdef int64_t GREETING_NS = <int64_t>20 * 1000000000     # for the first bytes of a connection


cdef class H2Connection(H2Session):
    """One HTTP/2 connection with its pings, its age and its way out."""

    cdef int on_ping(self, bint ack) noexcept:
        cdef int64_t now, least
        if ack:
            self.pinged = 0
            return 0
        if self.server.max_ping_strikes == 0:
            return 0
        now = now_ns()
        # As gRPC's servers do: without calls two hours are the least, unless such pings are allowed.
        least = self.server.min_ping_interval_ns
        if self.n_calls == 0 and not self.server.keepalive_idle and least < IDLE_PING_NS:
            least = IDLE_PING_NS
        if self.last_ping and now - self.last_ping < least:
            self.strikes += 1
            if self.strikes > self.server.max_ping_strikes and self.leaving < THROWN_OUT:
                nghttp2_submit_goaway(self.session, NGHTTP2_FLAG_NONE,
                                      nghttp2_session_get_last_proc_stream_id(self.session),
                                      NGHTTP2_ENHANCE_YOUR_CALM, <const uint8_t*>b"too_many_pings", 14)
                self.leaving = THROWN_OUT
        self.last_ping = now
        return 0

    cdef int on_spoken(self) noexcept:
        self.pings = 0
        self.strikes = 0
        self.last_ping = 0
        return 0

    cdef int tick(self, int64_t now) except -1:
        if self.session == NULL:
            return 0
        if not self.greeted and now - self.born > GREETING_NS:
            return self.abort()
        if self.n_read != self.n_read_then or self.heard == 0:
            self.n_read_then = self.n_read
            self.heard = now
            self.pinged = 0
        if self.server.max_age_ns and not self.aged and now - self.born > self.server.max_age_ns:
            self.aged = True
            self.begin_drain()
        if self.leaving == LEAVING and now - self.left_at > NOTICE_NS:
            self.end_incomplete()
        if self.aged and self.server.age_grace_ns and now - self.left_at > self.server.age_grace_ns:
            return self.abort()
        if self.session == NULL:
            return 0            # leaving was the last it had to do
        if self.is_stuck(now):
            return self.abort()
        self.keep_alive(now)
        self.end_stalled(now)
        self.flush()
        return 0

    # The peer takes nothing at all: then it can not be told of the end of a call either.
    cdef bint is_stuck(self, int64_t now) except -1:
        cdef size_t left
        if not self.paused:
            return False
        left = self.transport.get_write_buffer_size()
        if self.stuck_since == 0 or left != self.stuck_bytes:
            self.stuck_since = now
            self.stuck_bytes = left
        return now - self.stuck_since > self.patience()

    cdef int64_t patience(self) noexcept:
        return min(self.server.stall_ns, LAST_STALL_NS) if self.server.draining else self.server.stall_ns

    cdef int keep_alive(self, int64_t now) except -1:
        if self.pinged:
            if now - self.pinged > self.server.keepalive_timeout_ns:
                self.abort()
            return 0
        if self.server.keepalive_ns == 0 or now - self.heard < self.server.keepalive_ns:
            return 0
        if self.n_calls == 0 and not self.server.keepalive_idle:
            return 0
        if self.server.max_pings and self.pings >= self.server.max_pings and self.n_calls == 0:
            return 0
        self.pings += 1
        self.pinged = now
        nghttp2_submit_ping(self.session, NGHTTP2_FLAG_NONE, NULL)
        return 0

    # Calls whose client neither takes what is there for it nor sends what it began.
    cdef int end_stalled(self, int64_t now) except -1:
        cdef Call* call = self.calls
        cdef int64_t longest = self.patience()
        while call != NULL:
            if call.out_head == NULL and (call.ended or call.finished or call.held or call.busy or (
                    call.message.have == 0 and call.kind != KIND_INFER)):
                call.still_since = 0
            elif call.still_since == 0:
                call.still_since = now
            elif now - call.still_since > longest:
                nghttp2_submit_rst_stream(self.session, NGHTTP2_FLAG_NONE, call.stream_id, NGHTTP2_CANCEL)
            call = call.next
        return 0

    cdef bint takes_no_more(self) noexcept:
        return self.server.draining and self.leaving >= LEFT

    cdef int begin_drain(self) except -1:
        if self.session == NULL or self.leaving != STAYS:
            return 0
        self.leaving = LEAVING
        self.left_at = now_ns()
        if not self.greeted:
            return self.abort()
        nghttp2_submit_shutdown_notice(self.session)
        return self.flush()

    # Name the last call there will be; those whose messages have not come whole by now get no more time when the server
    # ends, and streams end with the answers to what they have asked.
    cdef int end_incomplete(self) except -1:
        cdef Call* call
        if self.session == NULL or self.leaving >= LEFT:
            return 0
        self.leaving = LEFT
        nghttp2_submit_goaway(self.session, NGHTTP2_FLAG_NONE, nghttp2_session_get_last_proc_stream_id(self.session),
                              NGHTTP2_NO_ERROR, NULL, 0)
        if self.server.draining:
            call = self.calls
            while call != NULL:
                if not call.ended and not call.finished and call.n_items == 0:
                    self.finish_text(call, GRPC_UNAVAILABLE, SHUTTING_DOWN)
                call = call.next
        return self.flush()
