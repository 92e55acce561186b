# A call as far as others look on: the access log, which has a line for each unary call and for each request of a
# ModelStreamInfer, and the client that asks where the time of its ModelInfer went. Knows calls and items, no HTTP/2.
from libc.stdint cimport int32_t

from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Response
from triton_fast._native.grpc.call cimport Call, Item
from triton_fast._native.grpc.out cimport Out
from triton_fast._native.grpc.shared cimport GrpcPeer, GrpcShared
from triton_fast._native.wire.pb_infer cimport PbHead


# The call's head is there: choose who looks on.
cdef int watch_call(GrpcShared server, GrpcPeer peer, object transport, Call* call) except -1
# A request message is there whole.
cdef void watch_item(GrpcShared server, Item* item) noexcept
# It was refused, or a response to it has come back.
cdef void watch_refusal(GrpcShared server, Item* item, PbHead* head, int32_t status) noexcept
cdef void watch_response(GrpcShared server, Item* item, Response* p, int32_t status) noexcept
# A request is through, or given up: for a stream that is its line. status: how it ended, unless a response said so.
cdef int watch_item_end(GrpcShared server, GrpcPeer peer, object transport, Item* item, int32_t status) except -1
# The call's status is decided.
cdef int watch_end(GrpcShared server, GrpcPeer peer, object transport, Call* call, int32_t status) except -1


cdef inline void watch_out(Item* item, Out* out) noexcept:
    if item.seen != NULL:
        item.seen.n_responses += 1
        item.seen.bytes_out += out.left
