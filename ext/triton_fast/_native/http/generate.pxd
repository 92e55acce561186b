# A generate request in flight: from its responses to the bytes of its answer. Knows no socket and no connection.
from libc.stdint cimport int32_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_buf, tf_error
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Request, Response
from triton_fast._native.http.head cimport Info, Limits
from triton_fast._native.net.seen cimport Seen


cdef enum:
    FILL_DONE = 0           # the last byte of the answer is there
    FILL_MORE = 1           # nothing waits; more responses will come
    FILL_FULL = 2           # there are as many bytes as asked for
    FILL_HEAVY = 3          # the next response takes long to encode: job() does it, on any thread; then fill goes on
    FILL_FAILED = 4         # memory ran out; the answer is of no use

# block[at : at + n] is the body (block NULL: empty) of a generate request. On success the request has taken over the
# caller's reference of block. NULL with e filled when the body is refused.
cdef Request* generate_request(Model* model, Info* info, Limits* limits, Block* block, size_t at, size_t n,
                               tf_error* e) except? NULL


cdef class Generation:
    cdef bint events        # generate_stream: each response is an event; else one response is the answer
    cdef bint keep_alive
    cdef bint http10        # no chunks: the answer ends with the connection
    cdef int32_t load_format
    cdef object app
    cdef Seen* seen         # for the client that asks where the time went; its connection's. NULL: it does not
    cdef bint begun         # the head is out
    cdef bint over          # as FILL_DONE
    cdef int32_t n_responses
    cdef tf_buf only        # the body that generate answers with when there is no second response
    cdef Response* head     # responses that wait to be encoded, in order; owned
    cdef Response* tail
    cdef EventJob pending   # being encoded, or encoded and next

    @staticmethod
    cdef Generation make(Info* info, object app, Seen* seen)
    # The next response; takes over p's request.
    cdef void take(self, Response* p) noexcept
    # Append what there is to send until out has about `room` bytes; FILL_*.
    cdef int fill(self, tf_buf* out, size_t room) except -1
    # What a FILL_HEAVY asks for.
    cdef EventJob job(self)
    # Let go of what waits.
    cdef void drop(self) noexcept

    cdef int begin(self, tf_buf* out, int32_t code) except -1
    cdef int end(self, tf_buf* out) except -1
    cdef int put(self, tf_buf* out, Response* p, EventJob job) except -1


cdef class EventJob:
    cdef Response* p        # owned
    cdef tf_buf text
    cdef tf_error e
    cdef bint good
    cdef bint done
