# BLS: requests that a worker's model makes of other models. They enter the engine like any other; their responses are
# written to the worker by its service thread.
from libc.stdint cimport int32_t, uint32_t

from triton_fast._native.core.request cimport Request
from triton_fast._native.pyworker.channel cimport Channel
from triton_fast._native.pyworker.layout cimport Message
from triton_fast._native.pyworker.worker cimport Worker


# If r is such a request: w executes it now.
cdef void call_runner(Request* r, Worker* w) noexcept nogil
# Service thread: start a call, end one by the worker's wish. -1: no worker writes that.
cdef int call_start(Worker* w, Channel* c, Message* m) noexcept nogil
cdef void call_end(Worker* w, uint32_t id, bint cancel) noexcept nogil
# Service thread: write to the worker what has arrived for it. True: there is more than it has room for.
cdef bint calls_answer(Worker* w, Channel* c) noexcept nogil
# The worker has gone, the service thread too: nobody wants what is still to come, and the models called are told.
cdef void calls_abandon(Worker* w) noexcept nogil
# Take a call back that no instance has yet, and answer it with this error. Whether it was still queued.
cdef bint call_refuse(Worker* w, uint32_t id, int32_t code, const char* text, size_t n) noexcept nogil
# With the GIL: let go of models that no call uses.
cdef int targets_drop(Worker* w) noexcept
