# An HTTP/1.1 connection as a uvloop BufferedProtocol. Infer requests go from the socket into blocks, through the native
# decoder into a queue, and back by one gathered write; everything else is handed to the Python side as plain values.
# One request is in flight per connection; later pipelined bytes wait. All methods run on the loop's thread.
from cpython.buffer cimport PyBuffer_FillInfo
from cpython.bytes cimport PyBytes_FromStringAndSize
from cpython.memoryview cimport PyMemoryView_FromObject
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcmp, memcpy, memset

from triton_fast._native.core.marks cimport T_RECEIVED, WATCH_TRACE
from triton_fast._native.core.memory cimport Block, block_unref, body_grow, body_new
from triton_fast._native.core.native cimport (
    TF_OK, now_ns, tf_buf, tf_buf_free, tf_buf_put, tf_error,
)
from triton_fast._native.core.request cimport Request, Response, request_free
from triton_fast._native.core.ring cimport ring_expect, ring_expect_no_more, ring_kept
from triton_fast._native.core.trace_context cimport TraceContext
from triton_fast._native.core.trace_types cimport FROM_HTTP, TraceRecord
from triton_fast._native.core.tracing cimport trace_answer, trace_attach, trace_begin, trace_detach, trace_refused
from triton_fast._native.http.body cimport (
    CHUNKS_NO_MEMORY, block_of, body_request, chunks_take,
)
from triton_fast._native.http.channel cimport ST_BODY, ST_CHUNKED, ST_CLOSED, ST_DISCARD, ST_HEAD, ST_WAIT
from triton_fast._native.http.generate cimport (
    FILL_DONE, FILL_FAILED, FILL_FULL, FILL_HEAVY, EventJob, Generation, generate_request,
)
from triton_fast._native.http.head cimport (
    ROUTE_INFER, ROUTE_NONE, Info, find_header, forwarded_headers, head_context, head_info, native_route,
    take_typed_length, text_of, wants_timing,
)
from triton_fast._native.http.plan cimport (
    Plan, plan_free, plan_reply_learn, plan_reply_matches,
)
from triton_fast._native.http.reply cimport ReplyJob, reply_head, reply_is_heavy
from triton_fast._native.http.shared cimport HttpShared
from triton_fast._native.http.watch cimport Watched
from triton_fast._native.net.fields cimport add_parameters, reserved_field
from triton_fast._native.net.gate cimport KeyHold
from triton_fast._native.net.shared cimport SCRATCH
from triton_fast._native.net.write cimport socket_of
from triton_fast._native.sched.lent cimport lent_begin
from triton_fast._native.sched.model cimport NativeModel
from triton_fast._native.sched.scheduler cimport (
    SUBMIT_OK, SUBMIT_REFUSED, SUBMIT_STOPPED, scheduler_cancel, scheduler_submit,
)
from triton_fast._native.wire.chunked cimport Chunked, HTTP_MAX_CHUNKS, chunked_init
from triton_fast._native.wire.http1 cimport HTTP_ERROR_TEXT, Head, M_POST, Slice, http1_error_text, http1_parse_head
from triton_fast._native.wire.json_reply cimport json_encode_reply

from triton_fast.errors import NO_ROOM as NO_ROOM_TEXT, ServerError


cdef enum:
    SMALL_WINDOW = 8192         # the same after a large body: what lies in scratch has to be copied to the body's block
    LARGE_BODY = 131072
    DISCARD_MAX = 16777216      # bytes thrown away after a refusal, so that the client reads its answer
    INFLATE_HERE = 4096         # compressed bytes inflated on the loop's thread; more may take long
    MIN_RATE = 1024             # bytes per second a body must keep up after its timeout
    STREAM_WRITE = 65536        # bytes of a generate answer encoded before they are offered to the socket

cdef bytes NO_ROOM = NO_ROOM_TEXT.encode()
cdef bytes CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


cdef class HttpConnection(Watched):
    """One client connection; made by ``HttpServer`` for the event loop."""

    cdef bint answered      # the answer of the request in hand was given to the socket or the transport
    cdef size_t scan_from
    cdef bint head_begun
    cdef bint lingering     # this was refused: throw away the rest before the end
    cdef tf_buf memo        # the last infer head, whose info still holds
    cdef object lacks       # what the infer request in hand is refused for; None: nothing
    cdef KeyHold hold       # where the gate has the key of its head
    cdef Block* block
    cdef size_t body_at     # where the body begins in block
    cdef Chunked* chunks
    cdef object task        # its coroutine's task
    cdef list forwarded     # (name, value) of the infer head's headers that become parameters; None: no header does
    cdef int64_t model_version
    cdef NativeModel model
    cdef int64_t epoch
    cdef Request* request   # in flight
    cdef Generation generation  # the answer of a generate request in flight
    cdef bint planned       # request was made from plan
    cdef Plan plan
    cdef TraceContext* context  # of the infer head; NULL: no head has brought one

    def __dealloc__(self):
        tf_buf_free(&self.memo)
        block_unref(self.block)
        free(self.chunks)
        plan_free(&self.plan)
        free(self.context)

    # ---- the event loop's side

    def connection_made(self, transport):
        self.transport = transport
        self.is_closing = transport.is_closing
        if self.server.is_full():
            transport.abort()
            return
        self.fd = socket_of(transport)
        self.server.connections.add(self)
        self.state = ST_HEAD
        self.deadline = now_ns() + self.server.idle_timeout_ns

    def connection_lost(self, error):
        cdef Request* r = self.request
        if self.watch:
            self.watch_gone(r)
        self.state = ST_CLOSED
        self.deadline = 0
        self.server.connections.discard(self)
        self.transport = None
        self.is_closing = None
        self.fd = -1
        self.generation = None
        if self.task is not None:
            self.task.cancel()
            self.task = None
        # A queued request is dropped now; one that runs is freed when it comes back through the ring.
        if r != NULL and scheduler_cancel(self.model.ptr.scheduler, r):
            self.request = NULL
            request_free(r)
            self.server.in_flight -= 1
            Py_DECREF(self)

    def eof_received(self):
        # A TLS transport closes in any case, and would warn.
        return self.stays_open() and self.fd >= 0

    cdef bint stays_open(self) except -1:
        # No more bytes will come. A queued request is given up, as for a connection that is gone; what already runs is
        # answered, since the peer may have closed only its half.
        cdef Request* r = self.request
        self.info.keep_alive = False
        if self.generation is not None:
            # Nobody generates for a reader that is probably gone: Triton takes this for a disconnect, too.
            self.abort()
            return False
        if self.state == ST_WAIT and not self.answered:
            self.server.app.left(self.task)
            if r == NULL or not scheduler_cancel(self.model.ptr.scheduler, r):
                return True
            self.request = NULL
            request_free(r)
            self.server.in_flight -= 1
            Py_DECREF(self)
        if self.paused:
            return True
        return False

    def pause_writing(self):
        self.paused = True

    def resume_writing(self):
        self.paused = False
        if self.state != ST_WAIT or not (self.answered or self.generation is not None):
            return
        try:
            if self.answered:
                self.next_request()
            else:
                self.deadline = 0
                self.flush()
            self.use_pending()
        except Exception as error:
            self.server.app.failed(error)
            self.abort()

    def __getbuffer__(self, Py_buffer* view, int flags):
        # The window that the next read fills: the rest of a body in its own block, else the server's scratch.
        if self.state == ST_BODY:
            PyBuffer_FillInfo(view, self, self.block.data + self.body_at + self.received, self.room(), False, flags)
        else:
            PyBuffer_FillInfo(view, self, self.server.scratch, self.server.scratch_len
                              if self.info.length < LARGE_BODY else SMALL_WINDOW, False, flags)

    def get_buffer(self, sizehint):
        # Under TLS uvloop asks for the length, too.
        return self if self.fd >= 0 else PyMemoryView_FromObject(self)

    def buffer_updated(self, Py_ssize_t n):
        try:
            if self.state == ST_BODY:
                self.received += n
                self.after_body()
                if self.state != ST_BODY:
                    self.use_pending()
            elif self.state < ST_WAIT and self.pending.len == 0:
                self.use_scratch(n)
            elif self.state == ST_DISCARD:
                self.received += n
                if self.received > DISCARD_MAX:
                    self.abort()
            elif self.state != ST_CLOSED:
                self.stash(self.server.scratch, n)
                self.use_pending()
        except Exception as error:
            self.server.app.failed(error)
            self.abort()

    # ---- bytes in

    # Use bytes for the message in hand; returns how many, 0 when more must come first.
    cdef size_t consume(self, const uint8_t* data, size_t n) except? 0:
        cdef size_t used
        cdef int rc
        if self.state == ST_BODY:
            used = min(n, self.room())
            memcpy(self.block.data + self.body_at + self.received, data, used)
            self.received += used
            self.after_body()
            return used
        if self.state == ST_CHUNKED:
            return self.consume_chunks(data, n)
        if self.memo.len and self.memo.len <= n and memcmp(self.memo.data, data, self.memo.len) == 0 and (
                self.server.gate is None or self.server.gate.holds(&self.hold)):
            self.began = now_ns()
            self.head_begun = False
            self.scan_from = 0
            used = self.memo.len
            self.begin_body(n - used)
            return used
        if not self.head_begun:
            self.head_begun = True
            self.began = now_ns()
            self.deadline = self.began + self.server.head_timeout_ns
        self.server.head.scan_from = self.scan_from
        rc = http1_parse_head(<const char*>data, n, self.server.limits.max_head, &self.server.head)
        if rc == 0:
            self.scan_from = self.server.head.scan_from
            return 0
        self.scan_from = 0
        self.head_begun = False
        if rc < 0:
            self.refuse_head()
            return n
        used = self.server.head.head_len
        self.memo.len = 0
        if self.take_head() == 0:
            return n
        if self.info.route and self.lacks is None and used <= 2048 and not (
                self.info.chunked or self.info.expect or self.info.once):
            tf_buf_put(&self.memo, data, used)
            if self.memo.failed:
                tf_buf_free(&self.memo)
        self.begin_body(n - used)
        return used

    # Bytes of the body that fit its block now; never 0 while it is not whole.
    cdef size_t room(self) noexcept:
        return min(self.info.length - self.received, self.block.cap - self.body_at - self.received)

    cdef int after_body(self) except -1:
        if self.received == self.info.length:
            return self.dispatch()
        if self.room() == 0 and body_grow(&self.block, self.body_at, self.received,
                                          self.body_at + self.info.length) != 0:
            return self.refuse(503, NO_ROOM)
        return 0

    cdef size_t consume_chunks(self, const uint8_t* data, size_t n) except? 0:
        cdef size_t used = 0
        cdef int rc = chunks_take(self.chunks, &self.block, self.body_at, &self.received, data, n, &used)
        if rc == CHUNKS_NO_MEMORY:
            self.refuse(503, NO_ROOM)
            return n
        if rc < 0:
            self.refuse(self.chunks.error_status, self.chunks.error_text)
            return n
        if rc == 1:
            self.info.length = self.received
            self.dispatch()
        return used

    cdef int refuse_head(self) except -1:
        cdef char[HTTP_ERROR_TEXT] text
        cdef size_t n = http1_error_text(&self.server.head, text, HTTP_ERROR_TEXT)
        memset(&self.info, 0, sizeof(Info))
        self.refuse(self.server.head.error_status, text[:n])
        return 0

    # From the parsed head to self.info. False: it was refused and answered.
    cdef bint take_head(self) except -1:
        cdef Head* h = &self.server.head
        cdef int32_t status = 0
        cdef size_t end = 0
        cdef int64_t version = -1
        cdef int32_t route = ROUTE_NONE
        cdef bytes refused, mistyped = None
        cdef str name = None
        cdef bint lasting = True
        if h.method == M_POST:
            if self.server.allow_infer:
                route = native_route(&h.path, &end, &version)
            elif self.server.binary_type is not None:
                found = self.find_route(h)
                if found is not None:
                    route, name, version, lasting = found
                    mistyped = take_typed_length(h, self.server.binary_type)
        refused = head_info(h, &self.info, &self.server.limits, route, &status)
        if mistyped is not None and refused is None:
            refused, status = mistyped, 400
        self.info.once = not lasting
        self.received = 0
        if self.server.draining:
            self.info.keep_alive = False
        if refused is not None:
            self.refuse(status, refused)
            return False
        self.verb = None
        self.forwarded = None
        if route:
            self.info.timing = self.server.timing and wants_timing(h)
            if name is None:
                name = h.path.ptr[11:end].decode("utf-8", "replace")
            if name != self.model_name or version != self.model_version:
                self.model_name = name
                self.model_version = version
                self.epoch = -1
            if self.server.contexts:
                head_context(h, &self.context)
            self.lacks = self.server.lacks(&self.hold) if self.server.is_guarded else None
            if self.lacks is not None and (self.info.chunked or self.info.expect or self.info.length > SCRATCH):
                # A large body is not taken from who may not send it.
                self.refuse_with(self.server.app.denied(self.lacks))
                return False
            if route != ROUTE_INFER:
                return True
            if self.server.forward is not None:
                self.forwarded = forwarded_headers(h, self.server.forward, self.server.gate is not None)
                refused = reserved_field(self.forwarded)
                if refused is not None:
                    self.refuse(400, refused)
                    return False
            if h.accept_encoding.ptr != NULL:
                self.info.encoding_out = self.server.app.choose_encoding(text_of(&h.accept_encoding))
        else:
            self.verb = (text_of(&h.method_name), text_of(&h.path), text_of(&h.query),
                         [(text_of(&h.headers[i].name), text_of(&h.headers[i].value)) for i in range(h.n_headers)])
        return True

    # What a POST means on the port of a cloud's front end, or None.
    cdef object find_route(self, Head* h):
        cdef Slice* given = find_header(h, self.server.route_header)
        return self.server.app.native(text_of(&h.path), None if given == NULL else text_of(given))

    # The head is done and `rest` bytes of what follows are at hand: make ready for the body, or go on without one.
    cdef int begin_body(self, size_t rest) except -1:
        cdef size_t pad = 0
        if self.info.chunked:
            if self.chunks == NULL:
                self.chunks = <Chunked*>malloc(sizeof(Chunked))
                if self.chunks == NULL:
                    raise MemoryError
            chunked_init(self.chunks, self.info.limit, HTTP_MAX_CHUNKS)
            self.state = ST_CHUNKED
            self.block = body_new(SMALL_WINDOW)
        elif self.info.length == 0:
            self.received = 0
            self.dispatch()
            return 0
        else:
            # The first binary tensor begins where the JSON ends: put the body so that this is an aligned address.
            if self.info.has_header_len and 0 < self.info.header_len < <int64_t>self.info.length:
                pad = (64 - (<size_t>self.info.header_len & 63)) & 63
            self.state = ST_BODY
            self.block = body_new(self.info.length + pad)
        if self.block == NULL:
            return self.refuse(503, NO_ROOM)
        self.body_at = pad
        self.received = 0
        self.seen = 0
        if rest < self.info.length or self.info.chunked:
            self.deadline = self.began + self.server.body_timeout_ns
            if self.info.expect and rest == 0:
                self.transport.write(CONTINUE)
        return 0

    # ---- a whole message is here

    cdef int dispatch(self) except -1:
        self.state = ST_WAIT
        self.answered = False
        self.deadline = 0
        self.server.requests += 1
        self.watch_request()
        if self.info.route:
            self.dispatch_infer()
        else:
            self.dispatch_verb()
        return 0

    cdef int dispatch_verb(self) except -1:
        method, path, query, headers = self.verb
        self.verb = (method, path)
        result = self.server.app.control(method, path, query, headers, self.take_body())
        if type(result) is tuple:
            self.reply(*result)
        else:
            self.task = self.server.loop.create_task(self.finish_verb(result))
        return 0

    async def finish_verb(self, coroutine):
        try:
            try:
                result = await coroutine
            except ServerError as error:
                result = self.server.app.error_reply(error.code, str(error).encode("utf-8", "replace"))
            self.task = None
            if self.state != ST_CLOSED:
                self.reply(*result)
                self.use_pending()
        except Exception as error:
            self.server.app.failed(error)
            self.abort()

    cdef int drop_block(self) except -1:
        block_unref(self.block)
        self.block = NULL
        return 0

    cdef int find_model(self) except -1:
        # Read before the lookup: what changes during it is looked up again by the next request.
        cdef int64_t epoch = self.server.epoch.value
        self.model = self.server.app.resolve(self.model_name, self.model_version)
        self.epoch = epoch
        return 0

    cdef int dispatch_infer(self) except -1:
        if self.lacks is not None:
            self.drop_block()
            self.reply(*self.server.app.denied(self.lacks))
            return 0
        try:
            if self.epoch != self.server.epoch.value or self.model is None:
                self.find_model()
            if self.info.encoding_in and self.info.route == ROUTE_INFER:
                data = self.take_body()
                if len(data) > INFLATE_HERE:
                    self.task = self.server.loop.create_task(self.finish_inflate(data))
                    return 0
                self.take_plain(self.server.app.inflate(data, self.info.encoding_in, self.server.limits.max_input))
        except ServerError as error:
            return self.fail_with(error)
        return self.submit_infer()

    cdef bytes take_body(self):
        cdef bytes data = b""
        if self.block != NULL:
            data = PyBytes_FromStringAndSize(<char*>self.block.data + self.body_at, self.received)
            self.drop_block()
        return data

    cdef int take_plain(self, bytes data) except -1:
        self.block = block_of(data)
        self.body_at = 0
        self.received = len(data)
        return 0

    async def finish_inflate(self, bytes data):
        try:
            plain = await self.server.app.run_later(
                self.server.app.inflate, data, self.info.encoding_in, self.server.limits.max_input)
            self.task = None
            if self.state == ST_CLOSED:
                return
            self.take_plain(plain)
            self.submit_infer()
            self.use_pending()
        except ServerError as error:
            self.task = None
            if self.state != ST_CLOSED:
                self.fail_with(error)
                self.use_pending()
        except Exception as error:
            self.server.app.failed(error)
            self.abort()

    cdef int submit_infer(self) except -1:
        cdef tf_error e
        cdef int status, _
        cdef bint wake = False
        cdef Response* p
        cdef TraceRecord* trace = trace_begin(self.model.ptr, self.context, FROM_HTTP)
        for _ in range(3):
            e.len = 0
            if self.info.route == ROUTE_INFER:
                self.request = body_request(self.model.ptr, &self.info, &self.server.limits, &self.plan, self.block,
                                            self.body_at, self.received, &self.planned, &e)
            else:
                self.request = generate_request(self.model.ptr, &self.info, &self.server.limits, self.block,
                                                self.body_at, self.received, &e)
            if self.request == NULL:
                break
            self.block = NULL
            if self.forwarded:
                add_parameters(self.request, self.forwarded)
            self.request.ctx = <void*>self
            self.request.sink = &self.server.ring.ring.sink
            self.request.stamps[T_RECEIVED] = self.began
            self.request.watch |= self.watch
            self.request.max_responses = self.server.max_responses if self.model.ptr.decoupled else 0
            if trace != NULL:
                trace_attach(trace, self.request)
            if self.request.lent != NULL and lent_begin(self.request, &e) != 0:
                status = SUBMIT_REFUSED
            else:
                if self.info.route == ROUTE_INFER:
                    ring_expect(&self.server.ring.ring, &self.request.response)
                status = scheduler_submit(self.model.ptr.scheduler, self.request, &wake, &e)
                ring_expect_no_more(&self.server.ring.ring)
            if status == SUBMIT_OK:
                Py_INCREF(self)
                self.server.in_flight += 1
                if wake:
                    self.server.wake_later(self.model)
                if self.info.route != ROUTE_INFER:
                    return self.begin_generation()
                p = ring_kept(&self.server.ring.ring)
                if p == NULL and self.server.in_flight == 1 and self.server.poll_ns:
                    p = self.server.poll_answer()
                if p != NULL:
                    self.server.deliver(p, self)
                return 0
            # The body may still be needed for another try.
            self.block = self.request.body
            self.request.body = NULL
            trace = trace_detach(self.request) if status == SUBMIT_STOPPED else NULL
            self.watch_refused(self.request, &e)
            request_free(self.request)
            self.request = NULL
            if status != SUBMIT_STOPPED:
                break
            try:
                self.find_model()
            except ServerError as error:
                trace_refused(trace, self.began, error.code)
                return self.fail_with(error)
        trace_refused(trace, self.began, e.code)
        self.drop_block()
        self.fail(e.code, e.text[:e.len])
        return 0

    # ---- answers out

    cdef int on_response(self, Response* p) except -1:
        cdef Request* r = p.request
        cdef int32_t n_binary
        cdef tf_error e
        cdef HttpShared server = self.server
        cdef int32_t encoding = self.info.encoding_out
        if p.is_final:
            self.request = NULL
        if r.watch & WATCH_TRACE:
            trace_answer(p)
        self.watch_response(p)
        if self.generation is not None:
            self.generation.take(p)
            self.touched = True
            return 0
        if self.state != ST_WAIT:
            request_free(r)
            return 0
        if p.code == TF_OK and (encoding or reply_is_heavy(p, 0)):
            return self.reply_in_one_piece(ReplyJob.make(p, self.model, encoding, server.app.deflate,
                                                         server.binary_type), reply_is_heavy(p, encoding))
        try:
            if (p.code == TF_OK and self.planned and plan_reply_matches(&self.plan, p) and self.info.keep_alive
                    and not self.info.http10 and not self.info.timing):
                self.send(self.plan.reply.data, self.plan.reply.len, p, self.plan.n_binary, self.plan.binary_index)
            elif p.code == TF_OK:
                server.grow_binary(p.n_outputs)
                server.json.len = 0
                n_binary = json_encode_reply(p, self.model.labels, &server.json, server.binary_index, &e)
                if n_binary < 0:
                    self.fail(e.code, e.text[:e.len])
                else:
                    self.send_reply(p, n_binary)
            else:
                self.fail(p.code, p.text[:p.text_len])
        finally:
            request_free(r)
        return 0

    cdef int begin_generation(self) except -1:
        if self.info.http10:
            self.info.keep_alive = False
        self.generation = Generation.make(&self.info, self.server.app, &self.kept)
        return 0

    # Send what there is of a generate answer, as long as the socket takes it.
    cdef int flush(self) except -1:
        cdef tf_buf* out = &self.server.out
        cdef int filled = FILL_FULL
        while filled == FILL_FULL and self.generation is not None and not self.paused and self.task is None:
            out.len = 0
            filled = self.generation.fill(out, STREAM_WRITE)
            if filled == FILL_FAILED:
                tf_buf_free(out)
                raise MemoryError
            if filled == FILL_DONE:
                self.generation = None
                self.send(out.data, out.len, NULL, 0, NULL)
            elif out.len:
                self.push(out.data, out.len, NULL, 0, NULL)
                if not self.paused:
                    self.deadline = 0       # the model may take its time
            if out.cap > (1 << 22):
                tf_buf_free(out)
        if filled == FILL_HEAVY:
            self.task = self.server.loop.create_task(self.finish_event(self.generation.job()))
        return 0

    async def finish_event(self, EventJob job):
        try:
            await self.server.app.run_later(job.run)
            self.task = None
            if self.state == ST_WAIT:
                self.flush()
                self.use_pending()
        except Exception as error:
            self.server.app.failed(error)
            self.abort()

    cdef int reply_in_one_piece(self, ReplyJob job, bint later) except -1:
        if later:
            self.task = self.server.loop.create_task(self.finish_verb(self.server.app.run_later(job.run)))
            return 0
        try:
            self.reply(*job.run())
        except ServerError as error:
            self.fail_with(error)
        return 0

    cdef int send_reply(self, Response* p, int32_t n_binary) except -1:
        cdef HttpShared server = self.server
        cdef size_t binary = server.binary_bytes(p, n_binary)
        cdef bytes typed
        server.out.len = 0
        if binary and server.binary_type is not None:
            typed = b"Content-Type: %b%d\r\n" % (server.binary_type, server.json.len)
            reply_head(&server.out, 200, <const char*>typed, server.json.len + binary, 0, self.info.keep_alive,
                       self.info.http10)
        else:
            reply_head(&server.out, 200, NULL, server.json.len, binary, self.info.keep_alive, self.info.http10)
        self.watch_head(&server.out)
        tf_buf_put(&server.out, server.json.data, server.json.len)
        if server.out.failed or server.json.failed:
            tf_buf_free(&server.out)
            tf_buf_free(&server.json)
            raise MemoryError
        if self.planned and self.info.keep_alive and not self.info.http10 and not self.info.timing:
            plan_reply_learn(&self.plan, p, server.out.data, server.out.len, n_binary, server.binary_index)
        self.send(server.out.data, server.out.len, p, n_binary, server.binary_index)
        if server.json.cap > (1 << 22):
            tf_buf_free(&server.json)
            tf_buf_free(&server.out)
        return 0

    # Answer with an error of the engine's: a Triton code and its text.
    cdef int fail(self, int32_t code, bytes text) except -1:
        self.reply(*self.server.app.error_reply(code, text))
        return 0

    cdef int fail_with(self, error) except -1:
        self.drop_block()
        return self.fail(error.code, str(error).encode("utf-8", "replace"))

    # Answer and end: the message is broken or will not be read to its end.
    cdef int refuse(self, int32_t status, bytes text) except -1:
        return self.refuse_with(self.server.app.refusal(status, text))

    cdef int refuse_with(self, tuple answer) except -1:
        self.drop_block()
        self.info.keep_alive = False
        self.info.length = 0
        self.lingering = True
        self.state = ST_WAIT
        self.answered = False
        self.server.requests += 1
        self.verb = None
        self.watch_request()
        self.reply(*answer)
        return 0

    def reply(self, int status, headers, bytes body):
        """Answer the request in hand. ``headers``: pairs of str, without Content-Length and Connection."""
        cdef HttpShared server = self.server
        cdef const char* data = body
        server.out.len = 0
        extra = "".join([f"{name}: {value}\r\n" for name, value in headers]).encode("latin-1", "replace")
        reply_head(&server.out, status, <const char*>extra, len(body), 0, self.info.keep_alive, self.info.http10)
        self.watch_head(&server.out)
        if not self.info.head_only:
            tf_buf_put(&server.out, data, len(body))
        if server.out.failed:
            tf_buf_free(&server.out)
            raise MemoryError
        self.send(server.out.data, server.out.len, NULL, 0, NULL)

    # Write head and the binary tensors of p, which are the answer, and go on behind it.
    cdef int send(self, const char* head, size_t n, Response* p, int32_t n_binary,
                  const int32_t* binary_index) except -1:
        cdef bint gone = self.push(head, n, p, n_binary, binary_index)
        self.answered = True
        if self.server.access.share:
            self.watch_end()
        if gone and not self.paused:
            self.next_request()
        return 0

    cdef int next_request(self) except -1:
        if not self.info.keep_alive or self.server.draining:
            if self.lingering and not self.server.draining:
                # Refused before its end: let the client finish sending and read the answer.
                self.state = ST_DISCARD
                self.received = 0
                self.deadline = now_ns() + <int64_t>2 * 1000000000
                if self.transport.can_write_eof():
                    self.transport.write_eof()
                return 0
            self.close()
            return 0
        self.state = ST_HEAD
        self.deadline = now_ns() + self.server.idle_timeout_ns
        return 0

    # ---- the end

    cdef int begin_drain(self) except -1:
        self.memo.len = 0
        if self.state == ST_HEAD and self.pending.len == self.pending_pos:
            self.close()
            # A TLS transport waits for the client's goodbye, too; nobody waits that long.
            self.deadline = now_ns() + <int64_t>1000000000
        elif self.state != ST_HEAD:
            self.info.keep_alive = False
            if self.generation is not None:
                self.generation.keep_alive = False
        return 0

    cdef int end_incomplete(self) except -1:
        if self.state < ST_WAIT:
            memset(&self.info, 0, sizeof(Info))
            self.refuse(503, b"Server exiting")
        return 0

    cdef int timed_out(self, int64_t now) except -1:
        # Bytes that must have moved since the last look for a body or an answer to be given more time.
        cdef size_t least = <size_t>max(self.server.body_timeout_ns // 1000000000, 1) * MIN_RATE, left
        if self.state == ST_BODY or self.state == ST_CHUNKED:
            if self.received - self.seen >= least:
                self.seen = self.received
                self.deadline = now + self.server.body_timeout_ns
                return 0
            self.refuse(408, b"the request body did not arrive in time")
        elif self.state == ST_HEAD and self.head_begun:
            memset(&self.info, 0, sizeof(Info))
            self.refuse(408, b"the request head did not arrive in time")
        elif self.state == ST_HEAD:
            self.close()
        elif self.state == ST_WAIT and self.transport is not None:
            left = self.transport.get_write_buffer_size()
            if left > self.seen or self.seen - left < least:
                self.abort()
                return 0
            self.seen = left
            self.deadline = now + self.server.body_timeout_ns
        else:
            self.abort()
        return 0


cdef class HttpServer(HttpShared):
    """What connections of a listener share (see ``HttpShared``); also their factory for ``loop.create_server``."""

    def __call__(self):
        return HttpConnection(self)
