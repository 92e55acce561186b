# The instance thread's part: hand a batch to the worker, wait, take its answers.
from libc.stdint cimport int32_t

from triton_fast._native.sched.instance cimport Batch


cdef int execute_batch(void* worker, Batch* batch) noexcept nogil
# Wait for a worker before more is pulled, as long as one may come.
cdef int before_pull(void* worker, int32_t* stopping) noexcept nogil
