# The v2 infer request and response as JSON with optional binary sections. Fills and reads native structs; no Python
# object is made. Knows nothing of HTTP or sockets. C++ (std::from_chars, std::to_chars).
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from triton_fast._native.core.native cimport tf_buf, tf_error
from triton_fast._native.core.regions cimport Registry
from triton_fast._native.core.request cimport Request, Response


# Decode one infer body into r: id, parameters, inputs, wanted outputs. json[0:json_len] is the JSON part,
# bin[0:bin_len] the binary part that follows it. json and bin must outlive r (they lie in r.body or were copied to
# r's arena by the caller): strings without escapes and binary tensors are borrowed from them. max_input caps the JSON
# text, and what JSON data may decode to over all inputs together. regions: where the names of shared memory are; NULL:
# there are none. has_header_len: the
# Inference-Header-Content-Length header was given. Returns 0, or -1 with e filled; then r holds no input, output or
# parameter, but its id when it was read. Nothing is validated against the model except what the wire form needs.
cdef int json_decode_infer(Request* r, const char* json, size_t json_len, const uint8_t* bin, size_t bin_len,
                           bint has_header_len, size_t max_input, Registry* regions, tf_error* e) noexcept nogil
