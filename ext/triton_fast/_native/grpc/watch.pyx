# See watch.pxd. Nothing is kept of a call that nobody looks at, unless it fails by the server's fault.
from libc.stdint cimport int32_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from triton_fast._native.core.marks cimport WATCH_LOG, WATCH_TIMING
from triton_fast._native.core.native cimport now_ns
from triton_fast._native.core.request cimport Response
from triton_fast._native.grpc.call cimport KIND_INFER, KIND_PYTHON, KIND_STREAM, Call, Item
from triton_fast._native.grpc.shared cimport GrpcPeer, GrpcShared
from triton_fast._native.net.access cimport (
    ACCESS_GRPC, ACCESS_GRPC_INFER, ACCESS_GRPC_STREAM, Access, access_pick, access_text,
)
from triton_fast._native.net.seen cimport Seen, TIMING_TEXT, seen_begin, seen_name, seen_request, seen_take, timing_text
from triton_fast._native.wire.pb_infer cimport PbHead

from triton_fast._native.net.access import peer_of


# Statuses of the server's fault: UNKNOWN, INTERNAL, UNAVAILABLE, DATA_LOSS.
cdef inline bint is_fault(int32_t status) noexcept:
    return status == 2 or 13 <= status <= 15


cdef int watch_call(GrpcShared server, GrpcPeer peer, object transport, Call* call) except -1:
    if call.kind != KIND_STREAM:
        call.watch |= access_pick(server.access)
    if server.access.share and peer.peer is None and transport is not None:
        peer.peer = peer_of(transport)
    return 0


cdef Seen* make_seen(Item* item) noexcept:
    cdef Seen* s = <Seen*>malloc(sizeof(Seen))
    if s != NULL:
        seen_begin(s, item.call.began if item.call.kind == KIND_INFER else now_ns())
        s.whole = now_ns()
        s.bytes_in = item.nbytes
        item.seen = s
    return s


cdef void watch_item(GrpcShared server, Item* item) noexcept:
    item.watch = item.call.watch if item.call.kind == KIND_INFER else access_pick(server.access)
    if item.watch:
        make_seen(item)


cdef void watch_refusal(GrpcShared server, Item* item, PbHead* head, int32_t status) noexcept:
    if item.seen == NULL and not (server.access.share and is_fault(status) and make_seen(item) != NULL):
        return
    item.seen.status = status
    seen_name(item.seen, head.model_name, head.model_name_len, head.id, head.id_len)


cdef void watch_response(GrpcShared server, Item* item, Response* p, int32_t status) noexcept:
    if item.seen == NULL and not (server.access.share and is_fault(status) and make_seen(item) != NULL):
        return
    if p.is_final or item.seen.taken == 0:
        seen_take(item.seen, p.request, server.access.tensors)
    if status:
        item.seen.status = status


cdef int put(GrpcShared server, GrpcPeer peer, object transport, Seen* s, int32_t kind, int32_t status,
             bytes path) except -1:
    cdef Access a
    memset(&a, 0, sizeof(a))
    a.kind = kind
    a.status = status
    if peer.peer is None and transport is not None:
        peer.peer = peer_of(transport)
    a.peer = access_text(peer.peer)
    a.path = access_text(path)
    server.access.put(&a, s)
    return 0


cdef int watch_item_end(GrpcShared server, GrpcPeer peer, object transport, Item* item, int32_t status) except -1:
    cdef Seen* s = item.seen
    if s == NULL:
        return 0
    if item.request != NULL and s.taken == 0:
        seen_request(s, item.request)
    if item.call.kind != KIND_STREAM:
        return 0
    item.seen = NULL
    try:
        if s.status:
            status = s.status
        if server.access.share and (item.watch & WATCH_LOG or is_fault(status)):
            put(server, peer, transport, s, ACCESS_GRPC_STREAM, status, None)
    finally:
        free(s)
    return 0


cdef int watch_end(GrpcShared server, GrpcPeer peer, object transport, Call* call, int32_t status) except -1:
    cdef Seen none
    cdef Seen* s = call.seen
    cdef bytes path = None
    cdef int32_t kind = ACCESS_GRPC_INFER
    if call.kind == KIND_STREAM and call.n_messages:
        return 0                # its requests are told of
    if s == NULL and call.items != NULL:
        s = call.items.seen
        if s != NULL and call.items.request != NULL and s.taken == 0:
            seen_request(s, call.items.request)
    if s == NULL:
        seen_begin(&none, call.began)
        s = &none
    if call.watch & WATCH_TIMING and call.kind == KIND_INFER and call.timing == NULL:
        call.timing = <char*>malloc(TIMING_TEXT)
        if call.timing != NULL:
            call.timing_len = timing_text(s, now_ns(), call.timing)
    if server.access.share == 0 or not (call.watch & WATCH_LOG or is_fault(status)):
        return 0
    if call.kind == KIND_STREAM:
        kind = ACCESS_GRPC_STREAM
    elif call.kind != KIND_INFER:
        kind = ACCESS_GRPC
        s.bytes_in = call.bytes_in
        s.bytes_out = call.bytes_out
        if call.kind == KIND_PYTHON and call.metadata != NULL:
            path = (<list>call.metadata)[0][1]
    s.n_responses = 0
    return put(server, peer, transport, s, kind, status, path)
