# What the connections of the gRPC listener share besides net.shared: limits, deadlines, resolved models, the encoder's
# buffers; and what it asks of a connection.
from cpython.ref cimport PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t

from triton_fast._native.core.native cimport tf_buf
from triton_fast._native.core.regions cimport Registry
from triton_fast._native.core.request cimport Response
from triton_fast._native.grpc.call cimport Call, Item
from triton_fast._native.grpc.outgoing cimport Outgoing
from triton_fast._native.net.shared cimport Peer, Shared
from triton_fast._native.sched.model cimport NativeModel
from triton_fast._native.wire.pb_infer cimport PbHead

cdef enum:
    MODEL_SLOTS = 64
    MAX_KEY = 512           # bytes of name and version that are remembered together
    MAX_NAME = 4096         # bytes of either that are looked at; no model's are longer


cdef class GrpcPeer(Peer):
    cdef bint touched       # has something to send, and will be flushed at the end of this round
    cdef int on_response(self, Item* item, Response* p) except -1
    cdef int on_deadline(self, Call* call) except -1
    cdef int flush(self) except -1


cdef struct ModelSlot:
    char* key               # name and version text, one behind the other; owned
    uint32_t name_len
    uint32_t version_len
    PyObject* model         # NativeModel; owned


cdef class GrpcShared(Shared):
    cdef Outgoing outgoing  # of the connection being flushed
    cdef bint keeps         # a connection reads, and takes what comes within its submits at the end of that
    cdef bint flushing      # there is one: no other may use outgoing
    cdef tf_buf head        # the message being encoded
    cdef size_t* cut        # where its tensors belong
    cdef int32_t cut_room
    cdef public size_t max_message
    cdef public size_t max_inflated
    cdef public size_t max_metadata
    cdef public uint32_t max_streams
    cdef public int32_t max_responses       # unsent responses of one decoupled request; 0 = no limit
    cdef public int32_t compression_level   # of infer responses, as zlib counts it: 0 none, 1 least, 9 most
    cdef public int64_t stall_ns            # a call whose peer neither sends what it began nor takes what is there
    cdef public int64_t keepalive_ns        # 0 = no pings
    cdef public int64_t keepalive_timeout_ns
    cdef public bint keepalive_idle         # ping without calls, too
    cdef public int32_t max_pings           # sent without data between them; 0 = no limit
    cdef public int64_t min_ping_interval_ns
    cdef public int32_t max_ping_strikes    # 0 = no limit
    cdef public int64_t max_age_ns          # of a connection; 0 = no limit
    cdef public int64_t age_grace_ns        # for its calls after that; 0 = no limit
    cdef Call* due          # calls with a deadline, latest first
    cdef int64_t due_at     # ns: when they are looked at; 0 = not planned
    cdef int64_t due_rest   # ns: not before; looking costs as much as there are calls
    cdef object due_timer
    cdef ModelSlot[64] models
    cdef int64_t models_epoch
    cdef object shared_memory   # SharedRegions that clients register; None: they may not
    cdef Registry* regions      # the same

    cdef int watch(self, Call* call) except -1
    cdef int unwatch(self, Call* call) noexcept
    cdef int plan_due(self, int64_t at) except -1
    # The model a request is for; a ServerError when there is none.
    cdef NativeModel find_model(self, PbHead* head)
    cdef int forget_models(self) except -1
    # Keep the API key of a metadata field; False: the field is no place for one.
    cdef bint take_key(self, Call* call, const char* name, size_t n, const char* value, size_t m) except -1
    # What inference of this call lacks, for app.denied; None: nothing. counts: a request of it has come.
    cdef object lacks(self, Call* call, bint counts)
    cdef int grow_cut(self, int32_t n) except -1
