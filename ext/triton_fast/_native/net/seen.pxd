# What is kept of a request for those who look on, since it may be gone before its answer is told of; and where its time
# went, as Server-Timing says it. Plain values; knows no protocol.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from triton_fast._native.core.native cimport tf_buf
from triton_fast._native.core.request cimport Request

cdef enum:
    SEEN_ID = 128           # bytes of an id that are kept
    SEEN_TRACE = 64         # more than a W3C trace id, or the number in a trace file, has
    SEEN_MODEL = 128
    SEEN_TENSORS = 512      # of the inputs, as text
    TIMING_TEXT = 512       # room that timing_text needs

cdef struct Seen:
    int64_t began           # ns: its first byte was read
    int64_t whole           # it was there whole; 0 = it never was
    int64_t taken           # its response came back; 0 = it was not executed
    int64_t[8] stamps       # of the request
    int64_t version         # of the model that took it; -1 = none
    int32_t status          # HTTP status, or 0
    int32_t n_responses
    uint64_t bytes_in       # of the message: an HTTP body, or a gRPC message
    uint64_t bytes_out      # of the answer: with its head (HTTP), or its messages before they are compressed (gRPC)
    uint32_t id_len
    uint32_t trace_len
    uint32_t tensors_len
    uint32_t model_len
    char[128] id
    char[64] trace
    char[512] tensors
    char[128] model


# Forget the one before; a new one begins.
cdef void seen_begin(Seen* s, int64_t began) noexcept nogil
# r has its response: the last one, or one of a carrier's. tensors: keep its inputs' names, types and shapes, too.
cdef void seen_take(Seen* s, Request* r, bint tensors) noexcept nogil
# It is for this model and has this id, but there is no request of it.
cdef void seen_name(Seen* s, const char* model, size_t model_len, const char* id, size_t id_len) noexcept nogil
# It was made into r, which has no response.
cdef void seen_request(Seen* s, Request* r) noexcept nogil
# Nanoseconds from being queued to being taken up, and from then to the response; -1 for a request that never was.
cdef int64_t seen_queue_ns(Seen* s) noexcept nogil
cdef int64_t seen_compute_ns(Seen* s) noexcept nogil
# The value of Server-Timing, at the time `now` at which the answer is made; returns its length. The parts are
# consecutive: in microseconds their sum is the total. A part that the request did not reach is 0.
cdef size_t timing_text(Seen* s, int64_t now, char* text) noexcept nogil
# Put the field into an HTTP head that has just been ended.
cdef void timing_line(tf_buf* head, Seen* s) noexcept nogil
