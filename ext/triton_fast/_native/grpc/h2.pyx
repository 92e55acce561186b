# distutils: libraries = nghttp2
# See h2.pxd. A uvloop BufferedProtocol around a session of libnghttp2. All methods run on the loop's thread; nghttp2's
# callbacks run inside its functions, which are called with the GIL.
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.memoryview cimport PyMemoryView_FromObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t
from libc.string cimport memset

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport now_ns, tf_buf, tf_buf_free, tf_buf_put
from triton_fast._native.core.request cimport Response
from triton_fast._native.core.ring cimport ring_kept
from triton_fast._native.grpc.call cimport (
    Call, call_new, call_peek, call_put, call_read, call_skip, call_unref, drop_outs,
)
from triton_fast._native.grpc.answer cimport answer_head, answer_http, answer_status, answer_trailer
from triton_fast._native.grpc.message cimport put_percent
from triton_fast._native.grpc.nghttp2 cimport *
from triton_fast._native.grpc.out cimport Out, out_free
from triton_fast._native.grpc.outgoing cimport MAX_REFS, Outgoing, outgoing_drop, outgoing_ref, outgoing_write
from triton_fast._native.grpc.shared cimport GrpcPeer, GrpcShared
from triton_fast._native.grpc.watch cimport watch_end
from triton_fast._native.net.write cimport socket_of

cdef enum:
    WINDOW = 1048576            # bytes of one call that may be on their way
    CONNECTION_WINDOW = 16777216
    NO_COPY_MIN = 4096          # tensor bytes that are sent from where they lie
    FLUSH_BYTES = 262144        # bytes offered to the socket at once
    RESET_BURST = 2000          # calls a peer may give up at once, and per second, before it is sent away
    RESET_RATE = 500
    SETTINGS_BURST = 100        # changes of its settings; each may touch every call
    SETTINGS_RATE = 10
    MAX_SETTINGS = 16           # of one frame
    MAX_ACKS = 1000             # SETTINGS and PING answers that may wait
    WIDE = 16                   # times the largest head: what is larger ends the connection
    FRAMES_PER_CALL = 4         # frames without data that may wait for a slow reader: head, window, end and one more
    MAX_TEXT = 7000             # bytes of a grpc-message: clients take 8 KiB for all fields

cdef int64_t GOODBYE_NS = 1000000000
cdef int64_t MINUTE_NS = <int64_t>60 * 1000000000

SHUTTING_DOWN = "GRPC server is shutting down and has stopped accepting new requests."

cdef nghttp2_session_callbacks* callbacks = NULL
cdef nghttp2_option* option = NULL

HINT = b"This port speaks gRPC over HTTP/2. HTTP/1.1 is served on --http-port, 8000 by default.\n"
HTTP1_ANSWER = b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain\r\nConnection: close\r\n\r\n" + HINT

# ---- nghttp2's callbacks

cdef int on_begin_headers(nghttp2_session* session, const nghttp2_frame* frame, void* user) noexcept:
    cdef H2Session self = <H2Session>user
    if frame.hd.type != NGHTTP2_HEADERS or frame.headers.cat != NGHTTP2_HCAT_REQUEST:
        return 0
    return self.open_call(frame.hd.stream_id)


cdef int on_header(nghttp2_session* session, const nghttp2_frame* frame, const uint8_t* name, size_t n,
                   const uint8_t* value, size_t m, uint8_t flags, void* user) noexcept:
    cdef H2Session self = <H2Session>user
    cdef Call* call = <Call*>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    if call == NULL:
        return 0
    call.head_size += n + m + 32
    if call.head_size > self.server.max_metadata:
        call.wide = True
        if call.head_size // WIDE <= self.server.max_metadata:
            return 0
        # Of a field in the table one byte makes thousands, and even to skip them takes long.
        self.too_wide = True
        return NGHTTP2_ERR_CALLBACK_FAILURE
    if call.started:
        return 0                # trailers say nothing
    try:
        self.on_field(call, name, n, value, m)
    except Exception as error:
        return self.call_failed(call, error)
    return 0


cdef int on_frame(nghttp2_session* session, const nghttp2_frame* frame, void* user) noexcept:
    cdef H2Session self = <H2Session>user
    cdef Call* call
    if frame.hd.type == NGHTTP2_PING:
        return self.on_ping((frame.hd.flags & NGHTTP2_FLAG_ACK) != 0)
    if frame.hd.type == NGHTTP2_SETTINGS and not frame.hd.flags & NGHTTP2_FLAG_ACK:
        return self.charge(&self.settings, SETTINGS_BURST, SETTINGS_RATE)
    if frame.hd.type != NGHTTP2_HEADERS and frame.hd.type != NGHTTP2_DATA:
        return 0
    call = <Call*>nghttp2_session_get_stream_user_data(session, frame.hd.stream_id)
    if call == NULL:
        return 0
    try:
        if not call.started:
            call.started = True
            self.on_head(call)
        if frame.hd.flags & NGHTTP2_FLAG_END_STREAM and not call.ended:
            call.ended = True
            if not call.finished:
                self.on_end(call)
    except Exception as error:
        return self.call_failed(call, error)
    return 0


cdef int on_chunk(nghttp2_session* session, uint8_t flags, int32_t stream_id, const uint8_t* data, size_t n,
                  void* user) noexcept:
    cdef H2Session self = <H2Session>user
    cdef Call* call = <Call*>nghttp2_session_get_stream_user_data(session, stream_id)
    # What one call does not use yet must not stand in the way of the others.
    if nghttp2_session_consume_connection(session, n) != 0:
        return NGHTTP2_ERR_CALLBACK_FAILURE
    if call == NULL:
        return 0
    call.still_since = 0
    try:
        if call.finished:
            self.give_back(call, n)
        else:
            self.on_data(call, data, n)
    except Exception as error:
        return self.call_failed(call, error)
    return 0


cdef int on_stream_close(nghttp2_session* session, int32_t stream_id, uint32_t code, void* user) noexcept:
    cdef H2Session self = <H2Session>user
    cdef Call* call = <Call*>nghttp2_session_get_stream_user_data(session, stream_id)
    if call == NULL:
        return 0
    nghttp2_session_set_stream_user_data(session, stream_id, NULL)
    if not call.trailed:        # whatever the code says
        self.charge(&self.resets, RESET_BURST, RESET_RATE)
    try:
        self.drop_call(call)
    except Exception as error:
        self.server.app.failed(error)
    return 0


cdef inline void end_messages(nghttp2_session* session, Call* call, uint32_t* flags) noexcept:
    flags[0] |= NGHTTP2_DATA_FLAG_EOF | NGHTTP2_DATA_FLAG_NO_END_STREAM
    call.trailed = True
    answer_trailer(session, call)


# The bytes of a call's messages, copied or only counted; behind them the trailer.
cdef ssize_t read_call(nghttp2_session* session, int32_t stream_id, uint8_t* buf, size_t length, uint32_t* flags,
                       nghttp2_data_source* source, void* user) noexcept:
    cdef Call* call = <Call*>source.ptr
    cdef const uint8_t* ptr
    cdef Block* block = NULL
    cdef size_t n
    call.still_since = 0
    n = call_peek(call, length, &ptr, &block)
    if block != NULL and n >= NO_COPY_MIN and (<H2Session>user).server.outgoing.n_refs < MAX_REFS:
        flags[0] |= NGHTTP2_DATA_FLAG_NO_COPY
        if n == call.out_bytes and call.finished:
            end_messages(session, call, flags)
        return <ssize_t>n
    n = call_read(call, buf, length)
    if call.out_head != NULL:
        return <ssize_t>n
    if call.finished:
        end_messages(session, call, flags)
    elif n == 0:
        call.deferred = True
        return NGHTTP2_ERR_DEFERRED
    return <ssize_t>n


# A frame whose payload read_call only counted: the frame's head goes to the buffer, the payload by reference.
cdef int send_data(nghttp2_session* session, nghttp2_frame* frame, const uint8_t* head, size_t length,
                   nghttp2_data_source* source, void* user) noexcept:
    cdef Call* call = <Call*>source.ptr
    cdef Outgoing* out = &(<H2Session>user).server.outgoing
    cdef const uint8_t* ptr
    cdef Block* block = NULL
    cdef size_t n = call_peek(call, length, &ptr, &block)
    tf_buf_put(&out.buf, head, 9)
    outgoing_ref(out, ptr, n, block)
    call_skip(call, n)
    return 0


cdef int make_callbacks() except -1:
    global callbacks, option
    if nghttp2_session_callbacks_new(&callbacks) != 0 or nghttp2_option_new(&option) != 0:
        raise MemoryError
    nghttp2_session_callbacks_set_on_begin_headers_callback(callbacks, on_begin_headers)
    nghttp2_session_callbacks_set_on_header_callback(callbacks, on_header)
    nghttp2_session_callbacks_set_on_frame_recv_callback(callbacks, on_frame)
    nghttp2_session_callbacks_set_on_data_chunk_recv_callback(callbacks, on_chunk)
    nghttp2_session_callbacks_set_on_stream_close_callback(callbacks, on_stream_close)
    nghttp2_session_callbacks_set_send_data_callback(callbacks, send_data)
    nghttp2_option_set_no_auto_window_update(option, 1)
    nghttp2_option_set_no_closed_streams(option, 1)
    nghttp2_option_set_max_outbound_ack(option, MAX_ACKS)
    nghttp2_option_set_max_settings(option, MAX_SETTINGS)
    # The connection counts resets itself, by what was given up; nghttp2's own limit would hit clients with deadlines.
    tf_nghttp2_reset_limit(option, 1000000, 1000000)
    return 0


make_callbacks()


cdef class H2Session(GrpcPeer):
    """One HTTP/2 session on its socket; ``GrpcConnection`` gives its calls their meaning."""

    def __cinit__(self, GrpcShared server not None):
        self.server = server
        self.fd = -1

    def __dealloc__(self):
        if self.session != NULL:
            nghttp2_session_del(self.session)

    # ---- what a call means, and what time brings, is the subclasses' business

    cdef int on_field(self, Call* call, const uint8_t* name, size_t n, const uint8_t* value, size_t m) except -1:
        return 0

    cdef int on_head(self, Call* call) except -1:
        return self.finish(call, GRPC_UNIMPLEMENTED, NULL, 0)

    cdef int on_data(self, Call* call, const uint8_t* data, size_t n) except -1:
        return self.give_back(call, n)

    cdef int on_end(self, Call* call) except -1:
        return 0

    cdef int on_close(self, Call* call) except -1:
        return 0

    cdef bint on_drained(self, Call* call) except -1:
        return False

    cdef int on_ping(self, bint ack) noexcept:
        return 0

    cdef int on_spoken(self) noexcept:
        return 0

    # ---- the event loop's side

    def connection_made(self, transport):
        cdef nghttp2_settings_entry[5] settings
        self.transport = transport
        self.is_closing = transport.is_closing
        if self.server.is_full():
            transport.abort()
            return
        self.fd = socket_of(transport)
        if nghttp2_session_server_new2(&self.session, callbacks, <void*>self, option) != 0:
            transport.abort()
            return
        settings[0].settings_id = NGHTTP2_SETTINGS_MAX_CONCURRENT_STREAMS
        settings[0].value = self.server.max_streams
        settings[1].settings_id = NGHTTP2_SETTINGS_INITIAL_WINDOW_SIZE
        settings[1].value = WINDOW
        settings[2].settings_id = NGHTTP2_SETTINGS_MAX_HEADER_LIST_SIZE
        settings[2].value = <uint32_t>self.server.max_metadata
        settings[3].settings_id = NGHTTP2_SETTINGS_NO_RFC7540_PRIORITIES
        settings[3].value = 1
        nghttp2_submit_settings(self.session, NGHTTP2_FLAG_NONE, settings, 4)
        nghttp2_session_set_local_window_size(self.session, NGHTTP2_FLAG_NONE, 0, CONNECTION_WINDOW)
        self.born = now_ns()
        self.server.connections.add(self)

    def connection_lost(self, error):
        self.server.connections.discard(self)
        self.transport = None
        self.is_closing = None
        self.fd = -1
        self.end_session()

    def eof_received(self):
        # HTTP/2 has no half-closed connections: acknowledgements could no longer come.
        return False

    def pause_writing(self):
        self.paused = True
        self.stuck_since = 0

    def resume_writing(self):
        self.paused = False
        self.flush_safely()

    def get_buffer(self, sizehint):
        return self if self.fd >= 0 else PyMemoryView_FromObject(self)

    def __getbuffer__(self, Py_buffer* view, int flags):
        PyBuffer_FillInfo(view, self, self.server.scratch, self.server.scratch_len, False, flags)

    def buffer_updated(self, Py_ssize_t n):
        cdef ssize_t rc
        if self.session == NULL:
            return
        self.n_read += 1
        self.reading = True
        self.submitted = False
        self.server.keeps = True
        rc = nghttp2_session_mem_recv(self.session, self.server.scratch, n)
        self.server.keeps = False
        self.deliver_kept()
        self.reading = False
        if self.transport is None:
            self.end_session()      # connection_lost came meanwhile
            return
        if self.is_closing():
            return
        if rc < 0:
            self.broken(<int>rc, n)
            return
        self.greeted = True
        if self.paused and nghttp2_session_get_outbound_queue_size(self.session) > MAX_ACKS + (
                <size_t>self.server.max_streams * FRAMES_PER_CALL):
            self.abort()            # it asks without end and does not read
            return
        try:
            if self.submitted and self.server.in_flight == 1 and self.server.poll_ns:
                self.server.deliver(self.server.poll_answer(), self)
            self.flush()
        except Exception as error:
            self.server.app.failed(error)
            self.abort()

    # What was answered within its submit, now that nghttp2 is not at work.
    cdef int deliver_kept(self) noexcept:
        cdef Response* p = ring_kept(&self.server.ring.ring)
        if p == NULL:
            return 0
        try:
            self.server.deliver(p, self)
        except Exception as error:
            self.server.app.failed(error)
            self.abort()
        return 0

    # The session can not go on: say why, if that can be said, and end.
    cdef int broken(self, int rc, size_t n) except -1:
        if rc == NGHTTP2_ERR_BAD_CLIENT_MAGIC:
            if not self.greeted and c"A" <= self.server.scratch[0] <= c"Z":
                self.transport.write(HTTP1_ANSWER)
            return self.close()
        self.greeted = True         # the preface was good
        nghttp2_session_terminate_session(
            self.session,
            NGHTTP2_INTERNAL_ERROR
            if rc == NGHTTP2_ERR_NOMEM or rc == NGHTTP2_ERR_CALLBACK_FAILURE and not self.too_wide
            else NGHTTP2_ENHANCE_YOUR_CALM)
        self.flush_safely()
        return self.close()

    # ---- calls

    cdef int open_call(self, int32_t stream_id) noexcept:
        cdef Call* call = call_new(<void*>self, stream_id)
        if call == NULL:
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE
        call.began = now_ns()
        call.open = True
        call.accepts = 1
        call.next = self.calls
        if self.calls != NULL:
            self.calls.prev = call
        self.calls = call
        self.n_calls += 1
        nghttp2_session_set_stream_user_data(self.session, stream_id, call)
        return 0

    # What went wrong is this call's own affair.
    cdef int call_failed(self, Call* call, object error) noexcept:
        try:
            self.server.app.failed(error)
            self.finish_text(call, GRPC_INTERNAL, "internal error, see the server log")
            return 0
        except Exception:
            return NGHTTP2_ERR_TEMPORAL_CALLBACK_FAILURE

    # The stream is closed: unlink the call, give up what it still waits for.
    cdef int drop_call(self, Call* call) except -1:
        if call.prev != NULL:
            call.prev.next = call.next
        else:
            self.calls = call.next
        if call.next != NULL:
            call.next.prev = call.prev
        self.n_calls -= 1
        if call.held:
            self.n_held -= 1
            call.held = False
        self.server.unwatch(call)
        call.open = False
        drop_outs(call)
        try:
            self.on_close(call)
        finally:
            call_unref(call)
        return 0

    cdef int end_session(self) except -1:
        cdef nghttp2_session* session = self.session
        if self.reading or self.sending:
            return 0                # it is at work; who called it comes back
        self.session = NULL
        while self.calls != NULL:
            try:
                self.drop_call(self.calls)
            except Exception as error:
                self.server.app.failed(error)
        if session != NULL:
            nghttp2_session_del(session)
        return 0

    # A peer that does it more often, such as giving up calls faster than they can be worth anything (rapid reset), is
    # sent away.
    cdef int charge(self, Budget* budget, int64_t burst, int64_t rate) noexcept:
        cdef int64_t now = now_ns()
        cdef int64_t back = min(now - budget.at, MINUTE_NS) * rate // 1000000000
        if back >= budget.used:
            budget.used = 0
            budget.at = now
        else:
            budget.used -= back
            budget.at += back * 1000000000 // rate
        budget.used += 1
        if budget.used > burst and self.session != NULL:
            nghttp2_session_terminate_session(self.session, NGHTTP2_ENHANCE_YOUR_CALM)
        return 0

    cdef int give_back(self, Call* call, size_t n) except -1:
        if n and call.open and self.session != NULL:
            nghttp2_session_consume_stream(self.session, call.stream_id, n)
        return 0

    # ---- answers

    cdef int reply(self, Call* call) except -1:
        cdef nghttp2_data_provider provider
        provider.source.ptr = call
        provider.read_callback = read_call
        call.replied = True
        self.spoke = True
        if answer_head(self.session, call, &provider) != 0:
            raise MemoryError
        return 0

    cdef int send(self, Call* call, Out* out) except -1:
        if not call.open or call.trailed or self.session == NULL:
            out_free(out)
            return 0
        if call.out_head == NULL:
            call.still_since = 0
        self.spoke = True
        call_put(call, out)
        if not call.replied:
            return self.reply(call)
        if call.deferred:
            call.deferred = False
            nghttp2_session_resume_data(self.session, call.stream_id)
        return 0

    cdef int finish(self, Call* call, int32_t status, const char* text, size_t n) except -1:
        cdef tf_buf encoded
        if call.finished:
            return 0
        call.finished = True
        call.status = status if 0 <= status <= 16 else GRPC_UNKNOWN
        if call.watch or self.server.access.share:
            watch_end(self.server, self, self.transport, call, call.status)
        self.server.unwatch(call)
        if not call.open or self.session == NULL:
            return 0
        if n:
            memset(&encoded, 0, sizeof(tf_buf))
            put_percent(&encoded, text, n if n < MAX_TEXT else MAX_TEXT)
            if encoded.failed:
                tf_buf_free(&encoded)
            call.text = encoded.data
            call.text_len = encoded.len
            if call.text_len > MAX_TEXT:
                call.text_len = MAX_TEXT
                while call.text[call.text_len - 1] == c"%" or call.text[call.text_len - 2] == c"%":
                    call.text_len -= 1
        if not call.ended:
            self.overdue = True
        if call.replied:
            if call.deferred:
                call.deferred = False
                nghttp2_session_resume_data(self.session, call.stream_id)
            return 0
        call.replied = True
        call.trailed = True
        self.spoke = True
        if answer_status(self.session, call) != 0:
            raise MemoryError
        return 0

    cdef int finish_text(self, Call* call, int32_t status, str text) except -1:
        cdef bytes encoded = text.encode("utf-8", "replace")
        return self.finish(call, status, <const char*>encoded, len(encoded))

    cdef int refuse_http(self, Call* call, int32_t http_status) except -1:
        call.finished = True
        call.replied = True
        call.trailed = True
        self.server.unwatch(call)
        if not call.ended:
            self.overdue = True
        if answer_http(self.session, call, http_status) != 0:
            raise MemoryError
        return 0

    # ---- bytes out

    cdef int flush_safely(self) except -1:
        try:
            self.flush()
        except Exception as error:
            self.server.app.failed(error)
            self.abort()
        return 0

    cdef int flush(self) except -1:
        if self.session == NULL or self.paused or self.reading or self.flushing or not self.greeted:
            return 0
        if self.server.flushing:
            # Within another connection's turn: a handler that is told of a call's end may end others.
            self.server.loop.call_soon(self.flush_soon)
            return 0
        self.flushing = True
        self.server.flushing = True
        try:
            while self.send_all():
                if self.n_held == 0 or not self.release_held():
                    break
        finally:
            self.flushing = False
            self.server.flushing = False
            outgoing_drop(&self.server.outgoing)
        return 0 if self.paused else self.close_when_empty()

    def flush_soon(self):
        self.flush_safely()

    # True: there is no more to send. False: the transport is full, or the connection at its end.
    cdef bint send_all(self) except -1:
        cdef const uint8_t* data
        cdef ssize_t n
        cdef Outgoing* out = &self.server.outgoing
        while True:
            self.sending = True
            n = nghttp2_session_mem_send(self.session, &data)
            self.sending = False
            if n < 0 or self.transport is None:
                self.abort()
                return False
            if n:
                tf_buf_put(&out.buf, data, n)
            if n == 0 or out.buf.len + out.ref_bytes >= FLUSH_BYTES or out.n_refs > MAX_REFS - 8:
                if self.is_closing() or outgoing_write(out, self.fd, self.transport):
                    self.abort()
                    return False
                if self.paused or self.session == NULL:
                    return False
                if n == 0 and not self.end_overdue():
                    break
        if self.spoke:
            self.spoke = False
            self.on_spoken()
        return True

    # Calls that were answered before their client was through: it can stop now. True: there is more to send for it.
    cdef bint end_overdue(self) except? False:
        cdef Call* call = self.calls
        cdef bint more = False, left = False
        if not self.overdue:
            return False
        while call != NULL:
            if call.finished and not call.ended and not call.cut_off:
                if call.trailed:
                    call.cut_off = True
                    more = True
                    nghttp2_submit_rst_stream(self.session, NGHTTP2_FLAG_NONE, call.stream_id, NGHTTP2_NO_ERROR)
                else:
                    left = True
            call = call.next
        self.overdue = left
        return more

    # Whether a call that was held goes on.
    cdef bint release_held(self) except? False:
        cdef Call* call = self.calls
        cdef bint any = False
        while call != NULL:
            if call.held:
                try:
                    any |= self.on_drained(call)
                except Exception as error:
                    self.call_failed(call, error)
                    any = True
            call = call.next
        return any

    cdef int close_when_empty(self) except -1:
        if self.session == NULL or self.transport is None:
            return 0
        if self.leaving == THROWN_OUT or (self.leaving == LEFT and self.n_calls == 0) or not (
                nghttp2_session_want_read(self.session) or nghttp2_session_want_write(self.session)):
            self.close()
        return 0

    cdef int close(self) except -1:
        if self.transport is not None:
            self.transport.close()
            # A TLS transport waits for the client's goodbye, too; nobody waits that long.
            self.deadline = now_ns() + GOODBYE_NS
        self.end_session()
        return 0

    cdef int timed_out(self, int64_t now) except -1:
        return self.abort()

    # ---- the end

    cdef int abort(self) except -1:
        if self.transport is not None:
            self.transport.abort()
        self.end_session()      # while nghttp2 is at work on it, connection_lost does that
        return 0
