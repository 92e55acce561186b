# What a request reads for which a queue has no place, and the bytes that wait: of whichever scheduler holds them.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.native cimport TF_INVALID_ARG, tf_error, tf_fail
from triton_fast._native.core.request cimport Request

cdef extern from * nogil:
    """
    #define TF_FULL "Exceeds maximum queue size"
    """
    const char* FULL "TF_FULL"


cdef inline int64_t bytes_of(Request* r) noexcept nogil:
    cdef int64_t n = 0
    cdef int32_t i
    for i in range(r.n_inputs):
        n += <int64_t>r.inputs[i].nbytes
    return n


# Whether r may wait beside `held` bytes of others where there is room for `most`. 0, or -1 with e: full_code, or that
# it never may.
cdef inline int bytes_check(Request* r, int64_t held, int64_t most, int32_t full_code, tf_error* e) noexcept nogil:
    cdef int64_t n = bytes_of(r)
    if n > most:
        return tf_fail(e, TF_INVALID_ARG, "the request has %lld bytes of inputs, more than the queue may hold "
                       "(max_queue_bytes: %lld)", <long long>n, <long long>most)
    if n > most - held:
        return tf_fail(e, full_code, "%s: its requests have %lld bytes of inputs (max_queue_bytes: %lld)", FULL,
                       <long long>held, <long long>most)
    return 0
