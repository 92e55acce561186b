# Base class of what backends hand out, and the end of requests that they keep; see instance.pxd for the contract.
from libc.stdint cimport int32_t, int64_t, uint32_t

from triton_fast._native.core.marks cimport (
    FLAG_ORDERED, FLAG_PADDING, FLAG_PART, REQ_DONE, T_COMPUTED, T_INPUT, T_OUTPUT, T_QUEUED, T_SENT, T_STARTED,
)
from triton_fast._native.core.native cimport (
    TF_CANCELLED, TF_INTERNAL, TF_OK, now_ns, tf_lock, tf_store32, tf_unlock,
)
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.stats cimport (
    FAIL_BACKEND, FAIL_CANCELED, FAIL_REJECTED, PHASE_INFER, PHASE_INPUT, PHASE_OUTPUT, PHASE_QUEUE, PHASE_REQUEST,
    N_PHASES, Stats, stats_first, stats_response, stats_success,
)
from triton_fast._native.sched.scheduler cimport stats_of

from triton_fast.errors import ServerError


cdef inline void phases_of(Request* r, int64_t* phase) noexcept nogil:
    cdef int64_t* at = r.stamps
    phase[PHASE_REQUEST] = at[T_OUTPUT] - at[T_QUEUED]
    phase[PHASE_QUEUE] = at[T_STARTED] - at[T_QUEUED]
    phase[PHASE_INPUT] = at[T_INPUT] - at[T_STARTED]
    phase[PHASE_INFER] = at[T_COMPUTED] - at[T_INPUT]
    phase[PHASE_OUTPUT] = at[T_OUTPUT] - at[T_COMPUTED]


cdef inline void count_failed(Stats* s, int reason, int64_t* phase) noexcept nogil:
    s.failures[reason] += 1
    s.fail_ns += phase[PHASE_REQUEST]


cdef void request_count(Stats* s, Request* r, int64_t* phase) noexcept nogil:
    if r.flags & (FLAG_PART | FLAG_PADDING) or r.again:
        return
    if r.flags & FLAG_ORDERED:
        r.flags &= ~<uint32_t>FLAG_ORDERED
        return
    if r.response.code == TF_OK:
        stats_success(s, phase)
    else:
        count_failed(s, FAIL_CANCELED if r.response.code == TF_CANCELLED else FAIL_BACKEND, phase)
    stats_first(s, r.stamps[T_QUEUED], r.stamps[T_SENT], r.stamps[T_QUEUED] + phase[PHASE_REQUEST])


cdef void request_count_late(Request* r, bint refused) noexcept nogil:
    cdef Stats* s
    cdef int64_t[N_PHASES] phase
    if r.flags & FLAG_ORDERED:
        return
    s = stats_of(r.model)
    phases_of(r, phase)
    tf_lock(&s.lock)
    if refused:
        count_failed(s, FAIL_REJECTED, phase)
        stats_first(s, r.stamps[T_QUEUED], r.stamps[T_SENT], r.stamps[T_OUTPUT])
    else:
        request_count(s, r, phase)
    tf_unlock(&s.lock)


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
    phases_of(r, phase)
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
