# Between gRPC messages and the engine: a ModelInferRequest into a queue, a response into a message. Knows calls and
# items, no HTTP/2.
from libc.stdint cimport int32_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Response
from triton_fast._native.grpc.call cimport Item
from triton_fast._native.grpc.out cimport Out
from triton_fast._native.grpc.shared cimport GrpcShared
from triton_fast._native.sched.model cimport NativeModel
from triton_fast._native.wire.pb_infer cimport PbHead


# Triton's code as a gRPC status.
cdef int32_t grpc_status(int32_t code) noexcept
# Submit the message block[at : at + n] as item's request. 0: it is in flight and has taken over the caller's reference
# of block; the caller counts it and keeps the connection. -1: refused, e says why and head for which model and id
# (borrowed from block).
cdef int infer_submit(GrpcShared server, Item* item, Block* block, size_t at, size_t n, PbHead* head,
                      tf_error* e) except -2
# Take the item's request back if no instance has it: True, it is freed. False: its response will come.
cdef bint infer_cancel(Item* item) noexcept
# The final response has come, or the request was taken back: let go of the model.
cdef void infer_done(Item* item) noexcept
# A response of model as a message, prefix included; takes over p's request, also when it raises. NULL: e says why, and
# p's request is still the caller's.
cdef Out* infer_reply(GrpcShared server, Item* item, NativeModel model, Response* p, tf_error* e) except? NULL
# The same for the flags-only final response.
cdef Out* infer_final(GrpcShared server, Item* item, Response* p) except NULL
# An error as a message of ModelStreamInfer. p: the response that failed, NULL when the request did not get so far.
cdef Out* infer_error(GrpcShared server, PbHead* head, Response* p, const char* text, size_t n) except NULL
