# The service thread of one worker process: what the model says besides the end of an execution.
from triton_fast._native.pyworker.channel cimport Channel
from triton_fast._native.pyworker.worker cimport Worker


# Give w a worker process, with a thread that serves it. 0; 1: it has one; -1: no thread could be made.
cdef int service_start(Worker* w, Channel* c) noexcept nogil
# The worker has gone, because of w.reason: end the thread and everything that is in flight. Waits for the instance
# thread to notice.
cdef void service_stop(Worker* w) noexcept nogil
