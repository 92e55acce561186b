# The generate request: one flat JSON object into a native Request. No Python object is made; knows nothing of HTTP.
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.request cimport Request


# Decode a generate body into r, whose model says which members are inputs; the others become parameters. Members of
# "parameters" count like those beside it. json must outlive r: strings without escapes are borrowed from it. max_input
# caps the text, and what its data decode to over all inputs together. 0, or -1 with e filled; then r holds no input and
# no parameter, but its id when it was read.
cdef int json_decode_generate(Request* r, const char* json, size_t json_len, size_t max_input,
                              tf_error* e) noexcept nogil
