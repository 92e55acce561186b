# Header fields (HTTP headers, gRPC metadata) that mean the same whatever the protocol: the secret of a restricted API,
# and fields that are forwarded to the model as parameters.
from triton_fast._native.core.request cimport Request


# Whether a field has this name (which is lower case) and exactly this value. Takes the same time for every value of the
# right length.
cdef bint is_secret(const char* name, size_t name_len, const char* value, size_t value_len, bytes wanted_name,
                    bytes wanted_value) noexcept
# The text that refuses the first of these [(name, value)] of bytes whose name is reserved, or None.
cdef bytes reserved_field(list forwarded)
# Add string parameters [(key, value)] of bytes to a request.
cdef int add_parameters(Request* r, list pairs) except -1
