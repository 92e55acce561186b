# A trace as the objects that Triton's trace file holds.
from triton_fast._native.core.native cimport tf_buf
from triton_fast._native.core.trace_types cimport Trace


# Append the objects of one trace to out, commas between them. out.failed tells that memory ran out.
cdef void trace_json(Trace* t, tf_buf* out) noexcept nogil
