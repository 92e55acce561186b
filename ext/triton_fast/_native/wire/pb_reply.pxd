# The v2 infer response as protobuf wire bytes, but for the tensors' own. Knows nothing of gRPC framing or sockets.
from libc.stdint cimport int64_t

from triton_fast._native.core.native cimport tf_buf, tf_error
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Response


# Append a ModelInferResponse to out, except the bytes of raw_output_contents: cut[i] (room for p.n_outputs) is the
# offset in out.data where the bytes of p.outputs[i] belong, right behind their tag and length. Returns the size of the
# whole message, tensors included, or -1 with e filled and out as it was. The outputs have been through
# reply_classify. final: 0 or 1 adds the parameter triton_final_response with that value; -1 leaves it out.
cdef int64_t pb_encode_reply(Response* p, int final, tf_buf* out, size_t* cut, tf_error* e) noexcept nogil
# The same as ModelStreamInferResponse.infer_response.
cdef int64_t pb_encode_stream_reply(Response* p, int final, tf_buf* out, size_t* cut, tf_error* e) noexcept nogil
# A whole ModelStreamInferResponse: error_message, and infer_response with the id and, if model is not NULL, its name
# and version. Bytes of the text that are not UTF-8 become U+FFFD: a client refuses a message with such a string.
# out.failed tells when memory ran out, here and below; out is then as it was.
cdef void pb_encode_stream_error(tf_buf* out, const char* text, size_t text_len, const char* id, size_t id_len,
                                 Model* model, int final) noexcept nogil
# A whole ModelStreamInferResponse without outputs that only says that the request is at its end. version: as the
# request gave it.
cdef void pb_encode_stream_final(tf_buf* out, const char* id, size_t id_len, const char* name, size_t name_len,
                                 const char* version, size_t version_len) noexcept nogil
