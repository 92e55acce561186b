# The access log as far as requests meet it: who is picked, and a bounded ring of records that one thread, the loop's,
# fills and another empties. Knows no protocol and no file.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from triton_fast._native.core.marks cimport WATCH_LOG
from triton_fast._native.net.seen cimport Seen

# What a record is of.
cdef enum:
    ACCESS_HTTP = 0         # a verb, or what could not be read
    ACCESS_INFER = 1
    ACCESS_GENERATE = 2
    ACCESS_STREAM = 3       # generate_stream
    ACCESS_GRPC = 4         # any call but inference
    ACCESS_GRPC_INFER = 5
    ACCESS_GRPC_STREAM = 6  # one request of a ModelStreamInfer

# One text of a record; NULL is none.
cdef struct AccessText:
    const char* text
    size_t n

# What a record says besides what is in its Seen.
cdef struct Access:
    int32_t kind            # ACCESS_*
    int32_t status          # of HTTP, or of gRPC
    AccessText peer
    AccessText method
    AccessText path         # or the gRPC method; for inference it is not said, the model is


cdef class AccessLog:
    cdef uint64_t share     # of 2 ** 32 requests so many are picked; 0 = the log is off
    cdef public bint tensors    # tell the inputs' names, types and shapes
    cdef uint64_t seed
    cdef char* ring
    cdef int64_t cap        # a power of two
    cdef int64_t head       # bytes ever written; the producer's
    cdef int64_t tail       # and read; the consumer's
    cdef int64_t n_lost
    cdef int32_t sleeping   # 1: the consumer waits for anything, 2: for much; 0: it is awake
    cdef int32_t word       # what it sleeps on
    cdef int32_t closed
    cdef int64_t second     # of which stamp is the text
    cdef int32_t stamp_len
    cdef char[48] stamp
    # Add a record, or count it as lost when there is no room.
    cdef void put(self, Access* a, Seen* s) noexcept


# WATCH_LOG for a request that gets its line, else 0.
cdef inline uint32_t access_pick(AccessLog log) noexcept:
    if log.share == 0:
        return 0
    log.seed ^= log.seed << 13
    log.seed ^= log.seed >> 7
    log.seed ^= log.seed << 17
    return WATCH_LOG if (log.seed >> 32) < log.share else 0


# The text of bytes that outlive the record's making; None is none.
cdef AccessText access_text(bytes value) noexcept
