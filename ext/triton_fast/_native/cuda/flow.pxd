# The copies of one go, on whatever thread and devices: they run side by side and are waited for once. Streams are kept
# for the next go. A flow belongs to one thread.
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.cuda.driver cimport MAX_DEVICES, tf_cu_handle


cdef struct Flow:
    int highest                         # device that takes part; -1: none does
    tf_cu_handle[MAX_DEVICES] streams   # up to it; NULL: it does not


cdef inline void flow_begin(Flow* flow) noexcept nogil:
    flow.highest = -1


# From or to device memory; both sides belong to the copy until flow_end, also when this fails. 0, or -1 with e.
cdef int flow_out(Flow* flow, int device, void* dst, const void* src, size_t n, tf_error* e) noexcept nogil
cdef int flow_in(Flow* flow, int device, void* dst, const void* src, size_t n, tf_error* e) noexcept nogil
# From memory of one device to that of another or its own.
cdef int flow_between(Flow* flow, int to, void* dst, int origin, const void* src, size_t n, tf_error* e) noexcept nogil
# Wait for all, whatever fails. 0, or -1 with e: then nobody knows which of the copies are whole.
cdef int flow_end(Flow* flow, tf_error* e) noexcept nogil
