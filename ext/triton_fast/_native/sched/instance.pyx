# Base class of what backends hand out, and the end of requests that they keep; see instance.pxd for the contract.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.marks cimport (
    FLAG_PADDING, FLAG_PART, REQ_DONE, T_COMPUTED, T_INPUT, T_OUTPUT, T_QUEUED, T_SENT, T_STARTED,
)
from triton_fast._native.core.native cimport (
    TF_CANCELLED, TF_INTERNAL, TF_OK, now_ns, tf_lock, tf_store32, tf_unlock,
)
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.stats cimport (
    FAIL_BACKEND, FAIL_CANCELED, PHASE_INFER, PHASE_INPUT, PHASE_OUTPUT, PHASE_QUEUE, PHASE_REQUEST, N_PHASES, Stats,
    stats_first, stats_response, stats_success,
)
from triton_fast._native.sched.scheduler cimport stats_of

from triton_fast.errors import ServerError


cdef void request_count(Stats* s, Request* r, int64_t* phase) noexcept nogil:
    if r.flags & (FLAG_PART | FLAG_PADDING) or r.again:
        return
    if r.response.code == TF_OK:
        stats_success(s, phase)
    else:
        s.failures[FAIL_CANCELED if r.response.code == TF_CANCELLED else FAIL_BACKEND] += 1
        s.fail_ns += phase[PHASE_REQUEST]
    stats_first(s, r.stamps[T_QUEUED], r.stamps[T_SENT], r.stamps[T_QUEUED] + phase[PHASE_REQUEST])


cdef void request_finish(Request* r) noexcept nogil:
    cdef Stats* s = stats_of(r.model)
    cdef int64_t[N_PHASES] phase
    cdef int64_t done = now_ns()
    if r.stamps[T_INPUT] == 0:
        r.stamps[T_INPUT] = r.stamps[T_STARTED]
    if r.stamps[T_COMPUTED] < r.stamps[T_INPUT]:
        r.stamps[T_COMPUTED] = done
    r.stamps[T_OUTPUT] = done
    tf_store32(&r.state, REQ_DONE)
    phase[PHASE_REQUEST] = done - r.stamps[T_QUEUED]
    phase[PHASE_QUEUE] = r.stamps[T_STARTED] - r.stamps[T_QUEUED]
    phase[PHASE_INPUT] = r.stamps[T_INPUT] - r.stamps[T_STARTED]
    phase[PHASE_INFER] = r.stamps[T_COMPUTED] - r.stamps[T_INPUT]
    phase[PHASE_OUTPUT] = done - r.stamps[T_COMPUTED]
    tf_lock(&s.lock)
    request_count(s, r, phase)
    tf_unlock(&s.lock)
    r.response.next = NULL
    r.sink.deliver(r.sink, &r.response, &r.response)


cdef void response_report(Request* r, int64_t index, int kind, int64_t infer_ns, int64_t output_ns) noexcept nogil:
    stats_response(stats_of(r.model), index, kind, infer_ns, output_ns)


cdef bytes raised_text(object error, int32_t* code):
    cdef bytes text
    code[0] = int(error.code) if isinstance(error, ServerError) else TF_INTERNAL
    try:
        text = str(error).encode("utf-8", "replace")
    except Exception:       # of the error's own __str__; the requests must fail all the same
        text = b""
    return text or type(error).__name__.encode()


cdef class NativeInstance:
    """One model instance: a C function that executes a batch, and its state.

    Backends subclass it in Cython and set ``execute`` and ``state``; Python code only passes it on.
    """

    def __cinit__(self, *args, **kwargs):
        self.execute = NULL
        self.before = NULL
        self.state = NULL
        self.name = ""
