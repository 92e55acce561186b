# Streams, events and copies between host and device. Streams and events are the driver's handles, so that those of
# PyTorch, ONNX Runtime and TensorRT can be given here too. All functions enter the device's context themselves and
# return 0, or -1 with e. Addresses in device memory are pointers that no CPU may follow.
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.cuda.driver cimport tf_cu_handle


# A stream that does not wait for the default one. Closing does not wait for what it still does.
cdef int stream_open(int device, tf_cu_handle* out, tf_error* e) noexcept nogil
# The same with a priority: -1 before others, 1 after them, as far as the device can.
cdef int stream_open_ranked(int device, int priority, tf_cu_handle* out, tf_error* e) noexcept nogil
cdef int stream_close(int device, tf_cu_handle stream, tf_error* e) noexcept nogil

# Copies are queued on the stream and return at once where the host memory is pinned; the memory of both sides belongs
# to the copy until somebody waited for it (cuda_wait, event_wait). From or to other host memory the driver goes through
# a buffer of its own, and the call takes as long as the copy. n == 0 does nothing.
cdef int cuda_copy_in(int device, void* dst, const void* src, size_t n, tf_cu_handle stream, tf_error* e) noexcept nogil
cdef int cuda_copy_out(int device, void* dst, const void* src, size_t n, tf_cu_handle stream,
                       tf_error* e) noexcept nogil
# Both on `device`.
cdef int cuda_copy_device(int device, void* dst, const void* src, size_t n, tf_cu_handle stream,
                          tf_error* e) noexcept nogil
# From memory of one device to that of another, on a stream of `device`, which is either of them.
cdef int cuda_copy_peer(int device, void* dst, int to, const void* src, int origin, size_t n, tf_cu_handle stream,
                        tf_error* e) noexcept nogil
cdef int cuda_fill(int device, void* dst, int value, size_t n, tf_cu_handle stream, tf_error* e) noexcept nogil

# Sleep, not spin, until the stream has done what was queued so far.
cdef int cuda_wait(int device, tf_cu_handle stream, tf_error* e) noexcept nogil

# Events are kept for reuse. One that is given back must not be waited for by anybody any more.
cdef int event_take(int device, tf_cu_handle* out, tf_error* e) noexcept nogil
cdef void event_give(int device, tf_cu_handle event) noexcept nogil
# Mark the end of what is queued on the stream.
cdef int event_record(int device, tf_cu_handle event, tf_cu_handle stream, tf_error* e) noexcept nogil
# Sleep until the mark is reached.
cdef int event_wait(int device, tf_cu_handle event, tf_error* e) noexcept nogil
# 1 when the mark is reached, 0 when not yet, -1 with e.
cdef int event_done(int device, tf_cu_handle event, tf_error* e) noexcept nogil
# What is queued on `stream` from now on begins after the mark; the calling thread does not wait. The event may be
# another device's.
cdef int stream_follow(int device, tf_cu_handle stream, tf_cu_handle event, tf_error* e) noexcept nogil
