# The v2 infer request as a protobuf message: bytes to native structs. Knows nothing of gRPC framing or sockets.
from libc.stdint cimport uint8_t, uint32_t

from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.regions cimport Registry
from triton_fast._native.core.request cimport Request


cdef struct PbHead:         # borrowed from the message; never NULL
    const char* model_name
    uint32_t model_name_len
    const char* version
    uint32_t version_len
    const char* id
    uint32_t id_len


# Which model a ModelInferRequest is for: one walk over its top-level fields. 0, or -1 with e filled (broken message).
cdef int pb_infer_head(const uint8_t* msg, size_t n, PbHead* head, tf_error* e) noexcept nogil
# Decode a ModelInferRequest, whose model_name and model_version pb_infer_head has checked, into r: id, parameters,
# inputs, wanted outputs. msg must outlive r (it lies in r.body): names, texts and raw contents are borrowed from it,
# and so are fp32 and fp64 contents that came in one packed piece. Other typed contents go to r's arena or to a block
# that the tensor owns. max_input caps what typed contents decode to over all inputs. regions: where
# the names of shared memory are; NULL: there are none. Returns 0, or -1 with e filled;
# then r holds no input, output or parameter, but its id when it was read. Nothing is validated against the model
# except what the wire form needs.
cdef int pb_decode_infer(Request* r, const uint8_t* msg, size_t n, size_t max_input, Registry* regions,
                         tf_error* e) noexcept nogil
