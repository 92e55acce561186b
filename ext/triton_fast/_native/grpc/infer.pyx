# See infer.pxd.
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.string cimport memcpy, memset

from triton_fast._native.core.marks cimport T_RECEIVED
from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport (
    TF_INTERNAL, TF_UNSUPPORTED, tf_buf, tf_buf_free, tf_buf_put, tf_error, tf_fail,
)
from triton_fast._native.core.regions cimport Registry
from triton_fast._native.core.request cimport Request, Response, request_free, request_new
from triton_fast._native.core.ring cimport ring_expect, ring_expect_no_more
from triton_fast._native.core.trace_types cimport FROM_GRPC, TraceRecord
from triton_fast._native.core.tracing cimport trace_attach, trace_begin, trace_detach, trace_drop, trace_refused
from triton_fast._native.core.validate cimport request_validate
from triton_fast._native.grpc.call cimport KIND_INFER, Item
from triton_fast._native.grpc.message cimport PREFIX, message_prefix
from triton_fast._native.grpc.out cimport Out, out_new
from triton_fast._native.grpc.shared cimport GrpcShared
from triton_fast._native.net.fields cimport add_parameters
from triton_fast._native.net.seen cimport seen_request
from triton_fast._native.sched.lent cimport lent_begin
from triton_fast._native.sched.model cimport NativeModel
from triton_fast._native.sched.scheduler cimport (
    SUBMIT_OK, SUBMIT_STOPPED, scheduler_cancel, scheduler_submit, scheduler_wake,
)
from triton_fast._native.wire.classify cimport reply_classify
from triton_fast._native.wire.pb_infer cimport PbHead, pb_decode_infer, pb_infer_head
from triton_fast._native.wire.pb_reply cimport (
    pb_encode_reply, pb_encode_stream_error, pb_encode_stream_final, pb_encode_stream_reply,
)

from triton_fast.errors import STATUS, ServerError

cdef enum:
    NOGIL_MESSAGE = 65536       # a message of this size may take long enough to let other threads have the GIL
    MAX_ENCODED = 2147483647    # bytes of one message, by gRPC's own rule

cdef extern from "tf_error.h" nogil:
    enum: TF_ERROR_TEXT

cdef int32_t[16] statuses
for _code in range(16):
    statuses[_code] = 2
for _code, _row in STATUS.items():
    statuses[int(_code)] = _row.grpc


cdef int32_t grpc_status(int32_t code) noexcept:
    return statuses[code] if 0 <= code < 16 else 2


cdef int error_of(tf_error* e, error) except -1:
    cdef bytes text = str(error).encode("utf-8", "replace")[:TF_ERROR_TEXT - 1]
    e.code = int(error.code)
    e.len = <unsigned int>len(text)
    memcpy(e.text, <const char*>text, len(text) + 1)
    return 0


cdef int decode(Request* r, const uint8_t* message, size_t n, size_t max_input, Registry* regions,
                tf_error* e) noexcept nogil:
    if pb_decode_infer(r, message, n, max_input, regions, e) != 0:
        return -1
    return request_validate(r, e)


# The request is on its way: nothing may fail any more.
cdef int wake_up(GrpcShared server, NativeModel model) noexcept:
    try:
        server.wake_later(model)
    except Exception as error:
        scheduler_wake(model.ptr.scheduler)
        server.app.failed(error)
    return 0


# r was decoded, and nobody takes it; its message stays the call's.
cdef void refused(Item* item, Request* r, tf_error* e) noexcept:
    r.body = NULL
    r.response.code = e.code        # for its trace
    if item.seen != NULL:
        seen_request(item.seen, r)
    request_free(r)


cdef int infer_submit(GrpcShared server, Item* item, Block* block, size_t at, size_t n, PbHead* head,
                      tf_error* e) except -2:
    cdef const uint8_t* message = block.data + at
    cdef NativeModel model
    cdef Request* r
    cdef int rc = pb_infer_head(message, n, head, e)
    cdef int _
    cdef bint wake = False
    cdef TraceRecord* trace = NULL
    if rc != 0:
        return -1
    for _ in range(3):
        try:
            model = server.find_model(head)
        except ServerError as error:
            error_of(e, error)
            trace_refused(trace, item.call.began, e.code)
            return -1
        if model.ptr.decoupled and item.call.kind == KIND_INFER:
            tf_fail(e, TF_UNSUPPORTED, "ModelInfer RPC doesn't support models with decoupled transaction policy")
            trace_refused(trace, item.call.began, e.code)
            return -1
        if trace == NULL:
            trace = trace_begin(model.ptr, item.call.context, FROM_GRPC)
        r = request_new(model.ptr)
        if r == NULL:
            raise MemoryError
        if n >= NOGIL_MESSAGE:
            with nogil:
                rc = decode(r, message, n, server.max_inflated, server.regions, e)
        else:
            rc = decode(r, message, n, server.max_inflated, server.regions, e)
        if rc != 0:
            request_free(r)
            trace_refused(trace, item.call.began, e.code)
            return -1
        if item.call.forwarded != NULL:
            try:
                add_parameters(r, <list>item.call.forwarded)
            except BaseException:
                request_free(r)
                trace_drop(trace)
                raise
        r.body = block
        r.ctx = item
        r.sink = &server.ring.ring.sink
        r.stamps[T_RECEIVED] = item.call.began
        r.watch |= item.watch
        r.max_responses = server.max_responses
        if trace != NULL:
            trace_attach(trace, r)
        if r.lent != NULL and lent_begin(r, e) != 0:
            refused(item, r, e)
            return -1
        if server.keeps and not model.ptr.decoupled:
            ring_expect(&server.ring.ring, &r.response)
        rc = scheduler_submit(model.ptr.scheduler, r, &wake, e)
        ring_expect_no_more(&server.ring.ring)
        if rc == SUBMIT_OK:
            # An instance may be at work on it by now; only this thread frees it.
            item.request = r
            item.message = message
            item.ordered = not model.ptr.decoupled
            Py_INCREF(model)
            item.model = <PyObject*>model
            server.in_flight += 1
            server.requests += 1
            if wake:
                wake_up(server, model)
            return 0
        trace = trace_detach(r) if rc == SUBMIT_STOPPED else NULL
        refused(item, r, e)
        if rc != SUBMIT_STOPPED:
            return -1
        server.forget_models()
    trace_refused(trace, item.call.began, e.code)
    return -1


cdef bint infer_cancel(Item* item) noexcept:
    cdef Request* r = item.request
    if r == NULL or not scheduler_cancel((<NativeModel>item.model).ptr.scheduler, r):
        return False
    request_free(r)
    infer_done(item)
    return True


cdef void infer_done(Item* item) noexcept:
    cdef PyObject* model = item.model
    item.request = NULL
    item.model = NULL
    if model != NULL:
        Py_DECREF(<object>model)


cdef Out* finish_message(GrpcShared server, Response* p, size_t total, Request* request, bint keep) except NULL:
    cdef tf_buf* head = &server.head
    cdef Out* out
    if head.failed:
        tf_buf_free(head)
        if request != NULL:
            request_free(request)
        raise MemoryError
    message_prefix(<uint8_t*>head.data, False, total)
    out = out_new(head.data, head.len, p, server.cut, request, keep)
    if head.cap > (1 << 20):
        tf_buf_free(head)
    if out == NULL:
        raise MemoryError
    return out


cdef inline void begin_message(tf_buf* head) noexcept:
    head.len = 0
    tf_buf_put(head, b"\0\0\0\0\0", PREFIX)


cdef Out* infer_reply(GrpcShared server, Item* item, NativeModel model, Response* p, tf_error* e) except? NULL:
    cdef tf_buf* head = &server.head
    cdef int64_t total
    if p.n_outputs > server.cut_room:
        try:
            server.grow_cut(p.n_outputs)
        except BaseException:
            request_free(p.request)
            raise
    begin_message(head)
    total = reply_classify(p, model.labels, e)
    if total == 0 and item.call.kind == KIND_INFER:
        total = pb_encode_reply(p, -1, head, server.cut, e)
    elif total == 0:
        total = pb_encode_stream_reply(p, p.is_final, head, server.cut, e)
    if total > MAX_ENCODED:
        total = tf_fail(e, TF_INTERNAL, "Response has byte size %lld which exceeds gRPC's byte size limit %d.",
                        <long long>total, <int>MAX_ENCODED)
    if total < 0:
        return NULL
    # While there is a limit of unsent responses, one counts until it is sent, however small.
    return finish_message(server, p, <size_t>total, p.request, not p.is_final and server.max_responses > 0)


cdef Out* infer_final(GrpcShared server, Item* item, Response* p) except NULL:
    cdef Request* r = p.request
    cdef tf_buf* head = &server.head
    cdef PbHead asked
    cdef tf_error e
    memset(&asked, 0, sizeof(asked))
    pb_infer_head(item.message, item.nbytes, &asked, &e)       # the version as the client gave it
    begin_message(head)
    pb_encode_stream_final(head, r.id, r.id_len, r.model.name, r.model.name_len, asked.version, asked.version_len)
    return finish_message(server, NULL, head.len - PREFIX, r, False)


cdef Out* infer_error(GrpcShared server, PbHead* head, Response* p, const char* text, size_t n) except NULL:
    begin_message(&server.head)
    if p != NULL:
        pb_encode_stream_error(&server.head, text, n, p.request.id, p.request.id_len, p.request.model, p.is_final)
    else:
        pb_encode_stream_error(&server.head, text, n, head.id, head.id_len, NULL, -1)
    return finish_message(server, NULL, server.head.len - PREFIX, NULL, False)
