# gRPC on an HTTP/2 connection: heads, messages, ModelInfer and ModelStreamInfer natively from the message to the queue
# and back, every other method through the Python side. All methods run on the loop's thread.
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int32_t, uint8_t
from libc.string cimport memcmp, memcpy, memmove

from triton_fast._native.core.marks cimport FLAG_EMPTY_FINAL, WATCH_TIMING, WATCH_TRACE
from triton_fast._native.core.memory cimport Block, block_unref, body_whole
from triton_fast._native.core.native cimport TF_OK, tf_buf, tf_buf_free, tf_buf_put, tf_error
from triton_fast._native.core.request cimport Response, request_free
from triton_fast._native.core.tracing cimport trace_answer
from triton_fast._native.grpc.call cimport (
    KIND_INFER, KIND_PYTHON, KIND_STREAM, Call, Item, call_context, call_ref, call_unref, item_free, item_new,
)
from triton_fast._native.grpc.h2 cimport (
    GRPC_CANCELLED, GRPC_DEADLINE_EXCEEDED, GRPC_INTERNAL, GRPC_INVALID_ARGUMENT, GRPC_OK, GRPC_RESOURCE_EXHAUSTED,
    GRPC_UNAVAILABLE, GRPC_UNIMPLEMENTED,
)
from triton_fast._native.grpc.held cimport CallRef, Lent
from triton_fast._native.grpc.infer cimport (
    grpc_status, infer_cancel, infer_done, infer_error, infer_final, infer_reply, infer_submit,
)
from triton_fast._native.grpc.message cimport (
    MESSAGE_NO_MEMORY, MESSAGE_TOO_LARGE, MESSAGE_WHOLE, Message, encoding_of, encodings_of, message_begin,
    message_take, packing_of, timeout_ns,
)
from triton_fast._native.grpc.out cimport Out, bytes_of, chain_put, out_free, out_of
from triton_fast._native.grpc.shared cimport GrpcShared
from triton_fast._native.grpc.upkeep cimport H2Connection
from triton_fast._native.grpc.watch cimport (
    watch_call, watch_end, watch_item, watch_item_end, watch_out, watch_refusal, watch_response,
)
from triton_fast._native.net.fields cimport is_secret, reserved_field
from triton_fast._native.sched.model cimport NativeModel
from triton_fast._native.wire.pb_infer cimport PbHead

from triton_fast._native.grpc.h2 import SHUTTING_DOWN
from triton_fast.errors import NO_ROOM, ServerError, Unavailable

cdef enum:
    MAX_ITEMS = 1024            # requests one stream may have in hand
    MAX_ITEM_BYTES = 67108864   # bytes of their messages
    MAX_OUT_BYTES = 4194304     # bytes of answers that wait for a slow reader
    PACK_HERE = 4096            # bytes compressed or inflated on the loop's thread; more may take long
    PLAIN_HERE = 65536          # bytes they may inflate to there

cdef const char* INFER_PATH = b"/inference.GRPCInferenceService/ModelInfer"
cdef const char* STREAM_PATH = b"/inference.GRPCInferenceService/ModelStreamInfer"


cdef inline bint same(const uint8_t* a, size_t n, const char* b, size_t m) noexcept:
    return n == m and memcmp(a, b, n) == 0


cdef class GrpcCall(CallRef):
    """A call of a method that the Python side answers."""

    cdef GrpcConnection connection
    cdef readonly str path
    cdef readonly dict metadata

    @property
    def buffered(self):
        """Bytes given to ``send`` that the peer has not taken yet."""
        return self.call.out_bytes

    def send(self, bytes data not None):
        """Queue one response message."""
        if self.call.finished or not self.call.open:
            return
        self.call.bytes_out += len(data)
        self.connection.send(self.call, out_of(data, False))
        self.connection.flush_safely()

    def finish(self, int32_t status, str text=""):
        """End the call. What was sent before still goes out; nothing that comes after has an effect."""
        self.connection.drop_handler(self.call)
        self.connection.finish_text(self.call, status, text)
        self.connection.flush_safely()


cdef class GrpcConnection(H2Connection):
    """One client connection; made by ``GrpcServer`` for the event loop."""

    # ---- the head

    cdef int on_field(self, Call* call, const uint8_t* name, size_t n, const uint8_t* value, size_t m) except -1:
        cdef GrpcShared server = self.server
        if name[0] == c":":
            if same(name, n, b":path", 5):
                self.take_path(call, value, m)
            elif same(name, n, b":method", 7) and not same(value, m, b"POST", 4):
                call.http_status = 405
            return 0
        if n == 12 and memcmp(name, b"content-type", 12) == 0:
            call.typed = m >= 16 and memcmp(value, b"application/grpc", 16) == 0 and (
                m == 16 or value[16] == c"+" or value[16] == c";")
        elif n == 12 and memcmp(name, b"grpc-timeout", 12) == 0:
            call.deadline = timeout_ns(value, m)
            call.bad_timeout = call.deadline < 0
            call.deadline += call.began
        elif same(name, n, b"grpc-encoding", 13):
            call.encoding_in = encoding_of(value, m)
        elif same(name, n, b"grpc-accept-encoding", 20):
            call.accepts = encodings_of(value, m)
        elif same(name, n, b"triton_grpc_error", 17):
            call.error_mode = same(value, m, b"true", 4)
        elif server.timing and same(name, n, b"triton-fast-timing", 18) and same(value, m, b"1", 1):
            call.watch |= WATCH_TIMING
        if call.kind == KIND_PYTHON:
            (<list>call.metadata).append(((<char*>name)[:n], (<char*>value)[:m]))
            return 0
        if server.contexts:
            call_context(call, name, n, value, m)
        if server.gate is not None and server.take_key(call, <char*>name, n, <char*>value, m):
            return 0
        if server.guard_name is not None and is_secret(<char*>name, n, <char*>value, m, server.guard_name,
                                                       server.guard_value):
            call.granted = True
        if server.forward is not None and server.forward.search((<char*>name)[:n].decode("latin-1")):
            if call.forwarded == NULL:
                forwarded = []
                Py_INCREF(forwarded)
                call.forwarded = <PyObject*>forwarded
            (<list>call.forwarded).append(((<char*>name)[:n], (<char*>value)[:m]))
        return 0

    cdef int take_path(self, Call* call, const uint8_t* value, size_t n) except -1:
        if same(value, n, INFER_PATH, 42):
            call.kind = KIND_INFER
        elif same(value, n, STREAM_PATH, 48):
            call.kind = KIND_STREAM
        elif call.metadata == NULL:
            call.kind = KIND_PYTHON
            metadata = [(b":path", (<char*>value)[:n])]
            Py_INCREF(metadata)
            call.metadata = <PyObject*>metadata
        return 0

    cdef int on_head(self, Call* call) except -1:
        cdef GrpcShared server = self.server
        cdef bytes refused
        call.max_message = server.max_message
        watch_call(server, self, self.transport, call)
        server.requests += call.kind == KIND_PYTHON
        if call.http_status or not call.typed:
            return self.refuse_http(call, call.http_status if call.http_status else 415)
        if server.draining:
            return self.finish_text(call, GRPC_UNAVAILABLE, SHUTTING_DOWN)
        if call.wide:
            return self.finish_text(
                call, GRPC_RESOURCE_EXHAUSTED,
                f"received metadata size exceeds the limit of {server.max_metadata} bytes (--grpc-max-metadata-size)")
        if call.encoding_in == 3:
            return self.finish_text(call, GRPC_UNIMPLEMENTED,
                                    "the grpc-encoding of the call is not supported: use identity, deflate or gzip")
        if call.bad_timeout:
            return self.finish_text(
                call, GRPC_INTERNAL, "malformed grpc-timeout: expected one to eight digits and H, M, S, m, u or n")
        if server.is_guarded and self.is_denied(call, call.kind == KIND_INFER):
            return 0
        if call.forwarded != NULL:
            refused = reserved_field(<list>call.forwarded)
            if refused is not None:
                return self.finish(call, GRPC_INVALID_ARGUMENT, refused, len(refused))
        if call.deadline:
            server.watch(call)
        if call.kind == KIND_PYTHON:
            return self.start_python(call)
        call.packed = packing_of(server.compression_level, call.accepts)
        return 0

    # Refuse inference without what it needs. A key may have been taken back since the call began.
    cdef bint is_denied(self, Call* call, bint counts) except -1:
        lacks = self.server.lacks(call, counts) if call.kind != KIND_PYTHON else None
        if lacks is None:
            return False
        self.cancel_items(call)
        status, text = self.server.app.denied(lacks)
        self.finish_text(call, status, text)
        return True

    cdef int start_python(self, Call* call) except -1:
        cdef GrpcCall held = GrpcCall.__new__(GrpcCall)
        call_ref(call)
        held.call = call
        held.connection = self
        metadata = <list>call.metadata
        held.path = metadata[0][1].decode("utf-8", "replace")
        held.metadata = {}
        for name, value in metadata[1:]:
            held.metadata.setdefault(name.decode("latin-1"), value.decode("latin-1"))
        handler = self.server.app.start(held)
        if handler is None:
            if not call.finished:
                self.finish_text(call, GRPC_UNIMPLEMENTED, "")
        elif not call.finished:
            limit = getattr(handler, "limit", None)
            if limit is not None:
                call.max_message = min(<size_t>limit, self.server.max_message)
            Py_INCREF(handler)
            call.handler = <PyObject*>handler
        return 0

    # ---- messages in

    cdef int on_data(self, Call* call, const uint8_t* data, size_t n) except -1:
        cdef size_t used = 0
        if not (call.busy or call.held):
            used = self.feed(call, data, n)
            self.give_back(call, used)
        if used < n:
            # At most the stream's window: it is not given back before it is used.
            tf_buf_put(&call.stash, data + used, n - used)
            if call.stash.failed:
                tf_buf_free(&call.stash)
                self.finish_text(call, GRPC_UNAVAILABLE, NO_ROOM)
        return 0

    # Use bytes until there are no more, or the call must wait; how many were used.
    cdef size_t feed(self, Call* call, const uint8_t* data, size_t n) except? 0:
        cdef size_t used, at = 0
        cdef int rc
        while at < n and not call.finished and not call.busy and not call.held:
            if call.kind == KIND_INFER and call.n_messages:
                self.finish_text(call, GRPC_INTERNAL, "a unary call has one request message, got more")
                break
            rc = message_take(&call.message, data + at, n - at, call.max_message, &used)
            at += used
            if rc == MESSAGE_WHOLE:
                self.on_message(call)
            elif rc < 0:
                self.refuse_message(call, rc)
        return n if call.finished else at

    cdef int refuse_message(self, Call* call, int rc) except -1:
        if rc == MESSAGE_TOO_LARGE:
            return self.finish_text(
                call, GRPC_RESOURCE_EXHAUSTED,
                f"Received message larger than max ({call.message.length} vs. {call.max_message})")
        if rc == MESSAGE_NO_MEMORY:
            return self.finish_text(call, GRPC_UNAVAILABLE, NO_ROOM)
        return self.finish_text(call, GRPC_INTERNAL, "invalid message prefix: its first byte must be 0 or 1")

    cdef int on_message(self, Call* call) except -1:
        cdef Message* m = &call.message
        call.n_messages += 1
        call.bytes_in += m.length
        if not m.compressed:
            return self.take_message(call)
        if call.encoding_in == 0:
            return self.finish_text(call, GRPC_INTERNAL, "a compressed message needs the header grpc-encoding")
        data = (<char*>m.block.data + m.at)[:m.length]
        if m.length <= PACK_HERE:
            try:
                plain = self.server.app.inflate(data, call.encoding_in, min(<size_t>PLAIN_HERE,
                                                                            self.server.max_inflated))
            except ServerError:
                plain = None        # it is broken or much larger: where it may take long, it is found out which
            if plain is not None:
                self.replace_message(call, plain)
                return self.take_message(call)
        call.busy = True
        self.server.loop.create_task(self.inflate_later(CallRef.make(call), data))
        return 0

    cdef int replace_message(self, Call* call, bytes data) except -1:
        cdef Message* m = &call.message
        cdef size_t n = len(data)
        cdef size_t at = (64 - (n & 63)) & 63
        cdef Block* block = body_whole(at + n)
        if block == NULL:
            raise Unavailable(NO_ROOM)
        memcpy(block.data + at, <const char*>data, n)
        block_unref(m.block)
        m.block = block
        m.at = at
        m.length = n
        m.received = n
        return 0

    async def inflate_later(self, CallRef held, bytes data):
        cdef Call* call = held.call
        try:
            try:
                plain = await self.server.app.run_later(
                    self.server.app.inflate, data, call.encoding_in, self.server.max_inflated)
            finally:
                call.busy = False
            if not call.open or call.finished:
                return
            self.replace_message(call, plain)
            self.take_message(call)
            self.go_on(call)
        except ServerError as error:
            self.fail_call(call, error)
        except Exception as error:
            self.call_failed(call, error)
        self.flush_safely()

    cdef int fail_call(self, Call* call, error) except -1:
        return self.finish_text(call, grpc_status(int(error.code)), str(error))

    # A whole, plain message: a unary call's waits for the end of the call.
    cdef int take_message(self, Call* call) except -1:
        cdef Message* m = &call.message
        if call.kind == KIND_STREAM:
            if self.takes_no_more():
                call.turned_away = True
            elif self.server.gate is None or not self.is_denied(call, True):
                self.take_request(call)
            message_begin(m)
        elif call.kind == KIND_PYTHON:
            data = (<char*>m.block.data + m.at)[:m.length]
            message_begin(m)
            if call.handler != NULL:
                handler = <object>call.handler
                handler.message(data)
        return 0

    # Bytes that had to wait, and the end behind them.
    cdef int go_on(self, Call* call) except -1:
        cdef size_t used
        cdef tf_buf* stash = &call.stash
        if stash.len and not call.busy and not call.held:
            used = self.feed(call, <uint8_t*>stash.data, stash.len)
            self.give_back(call, used)
            if used < stash.len:
                drop_used(stash, used)
            else:
                tf_buf_free(stash)
        if call.ended and not call.finished:
            self.on_end(call)
        elif call.turned_away and not call.finished:
            self.end_stream(call)
        return 0

    cdef int on_end(self, Call* call) except -1:
        cdef Message* m = &call.message
        if call.busy or call.stash.len:
            return 0            # go_on comes back to it
        if call.kind == KIND_INFER and call.n_messages:
            if call.n_items == 0:
                self.take_request(call)
            return 0
        if m.have:
            return self.finish_text(call, GRPC_INTERNAL, "the call ended in the middle of a message")
        if call.kind == KIND_INFER:
            return self.finish_text(call, GRPC_INTERNAL, "the call ended without a request message")
        if call.kind == KIND_STREAM:
            return self.end_stream(call)
        if call.handler != NULL:
            handler = <object>call.handler
            handler.end()
        return 0

    # ---- requests

    cdef int take_request(self, Call* call) except -1:
        cdef PbHead head
        cdef tf_error e
        cdef Message* m = &call.message
        cdef Item* item = item_new(call)
        cdef int rc
        if item == NULL:
            raise MemoryError
        item.ordered = True
        item.nbytes = m.length
        call.item_bytes += m.length
        watch_item(self.server, item)
        head.id_len = head.model_name_len = 0
        try:
            rc = infer_submit(self.server, item, m.block, m.at, m.length, &head, &e)
        except BaseException:
            item_free(item)
            raise
        if rc == 0:
            m.block = NULL
            self.submitted = True
            Py_INCREF(self)
            return self.hold_if_full(call)
        watch_refusal(self.server, item, &head, grpc_status(e.code))
        watch_item_end(self.server, self, self.transport, item, 0)
        if call.kind == KIND_INFER or call.error_mode:
            item_free(item)
            if call.kind == KIND_STREAM:
                self.cancel_items(call)
            return self.finish(call, grpc_status(e.code), e.text, e.len)
        item.done = True
        chain_put(&item.head, &item.tail, infer_error(self.server, &head, NULL, e.text, e.len))
        self.advance(call)
        return self.hold_if_full(call)

    cdef int hold_if_full(self, Call* call) except -1:
        if call.kind == KIND_STREAM and not call.held and self.is_full(call):
            call.held = True
            self.n_held += 1
        return 0

    cdef bint is_full(self, Call* call) noexcept:
        return (call.n_items >= MAX_ITEMS or call.item_bytes >= MAX_ITEM_BYTES or call.out_bytes >= MAX_OUT_BYTES)

    cdef bint on_drained(self, Call* call) except -1:
        # Go on only when there is some room again, not for each single message.
        if call.n_items > MAX_ITEMS // 2 or call.item_bytes > MAX_ITEM_BYTES // 2 or (
                call.out_bytes > MAX_OUT_BYTES // 2):
            return False
        call.held = False
        self.n_held -= 1
        self.go_on(call)
        return True

    # Give up every request of the call: those that run are told, and freed when they come back. The newest first: an
    # instance that is told to stop must not find the next one of them.
    cdef int cancel_items(self, Call* call) except -1:
        cdef Item* item = call.items_tail
        cdef Item* after
        call_ref(call)
        while item != NULL:
            after = item.prev
            watch_item_end(self.server, self, self.transport, item, GRPC_CANCELLED)
            if item.request == NULL:
                if not item.packing:
                    item_free(item)
            elif infer_cancel(item):
                self.server.in_flight -= 1
                item_free(item)
                Py_DECREF(self)
            item = after
        call_unref(call)
        return 0

    cdef int on_deadline(self, Call* call) except -1:
        if call.finished:
            return 0
        self.cancel_items(call)
        self.cancel_handler(call)
        return self.finish(call, GRPC_DEADLINE_EXCEEDED, b"Deadline Exceeded", 17)

    cdef int on_close(self, Call* call) except -1:
        if not call.finished:
            watch_end(self.server, self, self.transport, call, GRPC_CANCELLED)
        call.finished = True
        self.cancel_items(call)
        return self.cancel_handler(call)

    # The call ends, and not by its handler.
    cdef int cancel_handler(self, Call* call) except -1:
        if call.handler != NULL:
            handler = <object>call.handler
            self.drop_handler(call)
            try:
                handler.cancel()
            except Exception as error:
                self.server.app.failed(error)
        return 0

    # It knows the call, and the call must not keep it for ever.
    cdef int drop_handler(self, Call* call) except -1:
        cdef PyObject* handler = call.handler
        call.handler = NULL
        if handler != NULL:
            Py_DECREF(<object>handler)
        return 0

    # ---- responses

    cdef int on_response(self, Item* item, Response* p) except -1:
        cdef Call* call = item.call
        cdef NativeModel model = <NativeModel>item.model
        cdef tf_error e
        cdef Out* out = NULL
        cdef int32_t code = p.code
        cdef const char* text = p.text
        cdef size_t n = p.text_len
        if p.request.watch & WATCH_TRACE:
            trace_answer(p)
        call_ref(call)
        try:
            if p.is_final:
                # Now already: whatever goes wrong, nothing is left that could be cancelled.
                infer_done(item)
                item.last = True
            if not call.open or call.finished:
                request_free(p.request)
                if item.last and not item.packing:
                    item_free(item)
                return 0
            watch_response(self.server, item, p, grpc_status(code) if code != TF_OK else GRPC_OK)
            if code == TF_OK and not (p.is_final and p.n_outputs == 0 and p.request.model.decoupled):
                out = infer_reply(self.server, item, model, p, &e)
                if out == NULL:
                    code, text, n = e.code, e.text, e.len
            elif code == TF_OK and p.request.flags & FLAG_EMPTY_FINAL:
                out = infer_final(self.server, item, p)
            elif code == TF_OK:
                request_free(p.request)
            if code != TF_OK:
                try:
                    if call.kind == KIND_INFER or call.error_mode:
                        self.cancel_items(call)
                        return self.finish(call, grpc_status(code), text, n)
                    out = infer_error(self.server, NULL, p, text, n)
                finally:
                    request_free(p.request)
            if out != NULL:
                watch_out(item, out)
                self.queue_response(item, out)
            if item.last:
                watch_item_end(self.server, self, self.transport, item, grpc_status(code) if code != TF_OK else GRPC_OK)
            item.done = item.last and not item.packing
            if call.kind == KIND_INFER:
                if item.done:
                    self.end_infer(call)
                return 0
            self.advance(call)
        finally:
            call_unref(call)
        return 0

    # A response, compressed if it is to be, behind those of the item that came before.
    cdef int queue_response(self, Item* item, Out* out) except -1:
        cdef Call* call = item.call
        if call.packed == 0:
            chain_put(&item.head, &item.tail, out)
            return 0
        chain_put(&item.raw_head, &item.raw_tail, out)
        if item.packing:
            return 0
        if out.left <= PACK_HERE:
            data, lent = self.take_raw(item)
            return self.put_packed(
                item, data, self.server.app.deflate(data, call.packed, self.server.compression_level), lent)
        self.server.loop.create_task(self.pack_later(CallRef.make(call), <size_t>item))
        item.packing = True
        return 0

    # The bytes of the next message to be compressed, and what keeps counting as unsent until they are sent.
    cdef tuple take_raw(self, Item* item):
        cdef Out* out = item.raw_head
        cdef Lent lent = Lent.__new__(Lent)
        item.raw_head = out.next
        if item.raw_head == NULL:
            item.raw_tail = NULL
        try:
            data = bytes_of(out)
            if self.server.max_responses > 0 and out.request != NULL and out.request.parent != NULL:
                lent.request = out.request
                out.request = NULL
        finally:
            out_free(out)
        return data, lent

    cdef int put_packed(self, Item* item, bytes data, bytes packed, Lent lent) except -1:
        # What does not get smaller goes as it is.
        cdef Out* out = out_of(packed, True) if len(packed) < len(data) else out_of(data, False)
        out.request = lent.request
        lent.request = NULL
        chain_put(&item.head, &item.tail, out)
        return 0

    async def pack_later(self, CallRef held, size_t address):
        cdef Item* item = <Item*>address     # it lives as long as packing is set
        cdef Call* call = held.call
        try:
            while item.raw_head != NULL and call.open and not call.finished:
                data, lent = self.take_raw(item)
                packed = await self.server.app.run_later(
                    self.server.app.deflate, data, call.packed, self.server.compression_level)
                self.put_packed(item, data, packed, lent)
        except Exception as error:
            self.call_failed(call, error)
        finally:
            item.packing = False
            if (call.finished or not call.open) and item.request == NULL:
                item_free(item)
                item = NULL
        try:
            if item != NULL and not call.finished:
                item.done = item.last
                if call.kind == KIND_STREAM:
                    self.advance(call)
                elif item.done:
                    self.end_infer(call)
        except Exception as error:
            self.call_failed(call, error)
        self.flush_safely()

    cdef int end_infer(self, Call* call) except -1:
        cdef Item* item = call.items
        cdef Out* out = item.head
        if out == NULL or item.head != item.tail:
            item_free(item)
            return self.finish_text(call, GRPC_INTERNAL, "expected a single response")
        item.head = NULL
        item.tail = NULL
        item_free(item)
        # Decided before the message is sent, so that both go in one turn.
        self.send(call, out)
        return self.finish(call, GRPC_OK, NULL, 0)

    # Send what may be sent of a stream: ordered items answer in the order they came, others as they are ready.
    cdef int advance(self, Call* call) except -1:
        cdef Item* item = call.items
        cdef Item* after
        cdef bint blocked = False
        while item != NULL:
            after = item.next
            if not (item.ordered and blocked):
                self.send_responses(item)
                if item.done:
                    item_free(item)
                elif item.ordered:
                    blocked = True
            item = after
        if call.n_items == 0 and (call.ended or self.takes_no_more()):
            self.end_stream(call)
        return 0

    cdef int send_responses(self, Item* item) except -1:
        cdef Out* out = item.head
        while out != NULL:
            item.head = out.next
            self.send(item.call, out)
            out = item.head
        item.tail = NULL
        return 0

    cdef int end_stream(self, Call* call) except -1:
        if call.n_items or call.busy or call.stash.len:
            return 0
        if call.turned_away or not call.ended:
            return self.finish_text(call, GRPC_UNAVAILABLE, SHUTTING_DOWN)
        return self.finish(call, GRPC_OK, NULL, 0)


cdef int drop_used(tf_buf* b, size_t used) noexcept:
    memmove(b.data, b.data + used, b.len - used)
    b.len -= used
    return 0


cdef class GrpcServer(GrpcShared):
    """What the connections of a listener share; also their factory for ``loop.create_server``."""

    def __call__(self):
        return GrpcConnection(self)
