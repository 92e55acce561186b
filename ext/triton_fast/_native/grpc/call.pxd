# A gRPC call (one HTTP/2 stream) and the infer requests it has in hand (items). Plain
# structs with their lists; who owns what. No sockets, no HTTP/2.
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t, uint8_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_buf
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.trace_context cimport TraceContext
from triton_fast._native.grpc.message cimport Message
from triton_fast._native.grpc.out cimport Out
from triton_fast._native.net.gate cimport KeyHold
from triton_fast._native.net.seen cimport Seen

cdef enum:
    KIND_NONE = 0           # the path has not come yet
    KIND_INFER = 1          # ModelInfer
    KIND_STREAM = 2         # ModelStreamInfer
    KIND_PYTHON = 3         # every other method: its messages go to the Python side

# One infer request of a call, from its message to its last response. In flight (request not NULL) it holds one Python
# reference of the connection and one of the model.
cdef struct Item:
    Item* next
    Item* prev
    Call* call              # one reference
    Request* request
    PyObject* model         # NativeModel
    const uint8_t* message  # borrowed from the request's body
    size_t nbytes           # of the message, as long as the item lives
    bint ordered            # its responses wait for those of earlier ordered items
    uint32_t watch          # WATCH_*
    Seen* seen              # what is kept for those who look on; NULL: nobody does. A unary call's is handed to it
    bint last               # the final response has come
    bint done               # and it is ready to be sent
    bint packing            # responses are being compressed on another thread, in order: those in raw wait for it
    Out* raw_head
    Out* raw_tail
    Out* head               # responses that wait for their turn
    Out* tail

cdef struct Call:
    Call* next              # calls of the connection
    Call* prev
    Call* due_next          # calls of the listener that have a deadline
    Call* due_prev
    int32_t refs            # the open stream, each item, a Python object or task that knows it; loop thread only
    int32_t stream_id
    int32_t kind
    void* connection        # borrowed: GrpcConnection. Items in flight keep it
    int64_t began           # ns: the head arrived
    int64_t still_since     # ns: the look since which no byte of it came or went; 0 = bytes moved since the last one
    int64_t deadline        # ns; 0 = none
    bint open               # HTTP/2 still has the stream
    bint started            # its head was looked at
    bint ended              # the client has sent all
    bint replied            # response head submitted
    bint provided           # replied with a body, so that the end is a trailer
    bint finished           # the status is decided; nothing is added any more
    bint trailed            # the trailer was submitted
    bint cut_off            # the client was told to stop sending
    bint deferred           # HTTP/2 waits for more bytes of it
    bint granted            # the restricted category's secret came
    KeyHold hold            # where the gate has its API key
    bint error_mode         # triton_grpc_error: the first error ends the call
    bint busy               # a message is being inflated; what follows waits in stash, and keeps the window taken
    bint turned_away        # a message came when the server took no more
    bint held               # as many requests or bytes in hand as one call may have; what follows waits in stash
    bint wide               # head too large
    bint typed              # content-type was that of gRPC
    int32_t http_status     # the head is refused with this HTTP status; 0: it is not
    bint bad_timeout
    int32_t encoding_in     # 0 identity, 1 gzip, 2 deflate, 3 unknown
    int32_t accepts         # encodings the client takes: bits 1 << encoding
    int32_t packed          # encoding of its responses: 0 or as encoding_in
    int32_t n_messages
    int32_t status          # gRPC status, once finished
    char* text              # its message, percent-encoded; owned
    size_t text_len
    size_t head_size        # as HTTP/2 counts it: names, values, 32 a field
    size_t max_message      # bytes of one of its messages
    Message message
    tf_buf stash
    Out* out_head
    Out* out_tail
    size_t out_bytes
    Item* items             # all of them, oldest first
    Item* items_tail
    int32_t n_items
    size_t item_bytes
    PyObject* forwarded     # list of (name, value), or NULL; owned
    TraceContext* context   # of a trace; NULL: it brought none; owned
    PyObject* metadata      # list of (name, value) of bytes, or NULL; owned
    PyObject* key           # bytes: the API key that it presents, or NULL; owned
    uint32_t watch          # WATCH_* of a unary call
    Seen* seen
    size_t bytes_in         # of messages, and of those of a KIND_PYTHON call's answers
    size_t bytes_out
    char* timing            # where the time went, for a client that asked; owned
    size_t timing_len
    PyObject* handler       # the Python object of a KIND_PYTHON call, until either side ends it; owned


cdef Call* call_new(void* connection, int32_t stream_id) noexcept
cdef void call_ref(Call* call) noexcept
cdef void call_unref(Call* call) noexcept
# A new item at the end of the call's list; NULL when memory ran out.
cdef Item* item_new(Call* call) noexcept
# Take it off the call's list and free it with what waits in it. It must not be in flight.
cdef void item_free(Item* item) noexcept
# Copy what waits in the call to buf, up to room bytes. Messages that are through are freed. Returns how many bytes.
cdef size_t call_read(Call* call, uint8_t* buf, size_t room) noexcept
# The longest next stretch of memory, at most room bytes: *ptr, *block (NULL: copy it). Call call_skip with its length.
cdef size_t call_peek(Call* call, size_t room, const uint8_t** ptr, Block** block) noexcept
cdef void call_skip(Call* call, size_t n) noexcept
cdef void call_put(Call* call, Out* out) noexcept
# Drop what waits to be sent, whatever became of it.
cdef void drop_outs(Call* call) noexcept
# A field of the call's head that may belong to the context of a trace.
cdef int call_context(Call* call, const uint8_t* name, size_t n, const uint8_t* value, size_t m) except -1
