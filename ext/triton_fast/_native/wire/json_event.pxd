# Responses of generate requests: one flat JSON object each, as a whole body, a server-sent event, or either in an HTTP
# chunk. Appends to a tf_buf; knows no connection.
from libc.stdint cimport int32_t

from triton_fast._native.core.native cimport tf_buf, tf_error
from triton_fast._native.core.request cimport Response


cdef enum:
    EVENT_SSE = 1           # data: {...} and an empty line
    EVENT_CHUNK = 2         # with the size of the chunk before it and CR LF behind

# Append the object of a successful response in this form. 0, or -1 with e filled and nothing appended.
cdef int event_put(tf_buf* out, Response* p, int32_t form, tf_error* e) noexcept nogil
# The same for {"error": text}. Memory trouble shows in out.failed.
cdef void event_put_error(tf_buf* out, const char* text, size_t n, int32_t form) noexcept nogil
# The same for an object that was encoded before.
cdef void event_put_text(tf_buf* out, const char* json, size_t n, int32_t form) noexcept nogil
# Bytes of outputs that printing a response takes to go over.
cdef size_t event_weight(Response* p) noexcept nogil
