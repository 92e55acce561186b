# What the connections of an HTTP listener share besides net.shared, and what it asks of a connection.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.native cimport tf_buf
from triton_fast._native.core.request cimport Response
from triton_fast._native.http.head cimport Limits
from triton_fast._native.net.gate cimport KeyHold
from triton_fast._native.net.shared cimport Peer, Shared
from triton_fast._native.wire.http1 cimport Head


cdef class HttpPeer(Peer):
    cdef bint touched       # has responses of a generate request to send, and will be flushed at the end of this round
    cdef int on_response(self, Response* p) except -1
    cdef int flush(self) except -1
    # Go on with bytes that had to wait, if the connection is between requests.
    cdef int use_pending(self) except -1


cdef class HttpShared(Shared):
    cdef Head head          # of the head being parsed right now
    cdef tf_buf json
    cdef int32_t* binary_index
    cdef int32_t binary_room
    cdef public bint allow_infer            # the v2 routes of inference are matched natively
    # Of a cloud's front end: the content type of JSON with binary tensors, up to the JSON's length, in requests and in
    # answers; its POSTs are matched by app.native. None: as v2 has it.
    cdef public bytes binary_type
    cdef public bytes route_header          # lower case; app.native is given its value
    cdef public int32_t max_responses       # unsent responses of one decoupled request; 0 = no limit
    cdef Limits limits
    cdef object shared_memory   # what limits.regions is of
    cdef public int64_t head_timeout_ns
    cdef public int64_t body_timeout_ns
    cdef public int64_t idle_timeout_ns

    cdef int flush_one(self, HttpPeer connection, bint reading) except -1
    # What an infer request with the head in hand lacks, for app.denied; None: nothing.
    cdef object lacks(self, KeyHold* hold)
    # Room for n outputs in binary_index.
    cdef int grow_binary(self, int32_t n) except -1
    # Bytes of the n_binary outputs that binary_index names.
    cdef size_t binary_bytes(self, Response* p, int32_t n_binary) noexcept
