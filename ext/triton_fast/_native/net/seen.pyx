# See seen.pxd.
from libc.stdint cimport int64_t, uint32_t
from libc.stdio cimport snprintf
from libc.string cimport memcpy, memset

from triton_fast._native.core.marks cimport T_COMPUTED, T_COUNT, T_INPUT, T_OUTPUT, T_QUEUED, T_STARTED, WATCH_TRACE
from triton_fast._native.core.native cimport dtype_name, now_ns, tf_buf, tf_buf_put
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.core.tracing cimport trace_label

cdef enum:
    N_PARTS = 8

cdef const char** NAMES = [
    b"recv", b"decode", b"queue", b"compute_input", b"compute_infer", b"compute_output", b"deliver", b"encode",
]


cdef void seen_begin(Seen* s, int64_t began) noexcept nogil:
    memset(s, 0, <size_t>(<char*>s.id - <char*>s))
    s.began = began
    s.version = -1


cdef inline uint32_t keep(char* to, const char* text, size_t n, size_t room) noexcept nogil:
    n = min(n, room)
    if n:
        memcpy(to, text, n)
    return <uint32_t>n


cdef void seen_take(Seen* s, Request* r, bint tensors) noexcept nogil:
    cdef bint early = r.parent != NULL
    s.taken = now_ns()
    if early:
        r = r.parent
    memcpy(s.stamps, r.stamps, sizeof(s.stamps))
    if early:
        # The model is still at work: what comes after is not written yet, or is being written.
        s.stamps[T_INPUT] = s.stamps[T_STARTED]
        s.stamps[T_COMPUTED] = s.taken
        s.stamps[T_OUTPUT] = s.taken
    seen_request(s, r)
    if tensors:
        keep_tensors(s, r)


cdef void seen_name(Seen* s, const char* model, size_t model_len, const char* id, size_t id_len) noexcept nogil:
    s.model_len = keep(s.model, model, model_len, SEEN_MODEL)
    s.id_len = keep(s.id, id, id_len, SEEN_ID)


cdef void seen_request(Seen* s, Request* r) noexcept nogil:
    seen_name(s, r.model.name, r.model.name_len, r.id, r.id_len)
    s.version = r.model.version
    s.trace_len = <uint32_t>trace_label(r, s.trace) if r.watch & WATCH_TRACE else 0


cdef void keep_tensors(Seen* s, Request* r) noexcept nogil:
    cdef Tensor* t
    cdef int i, d, n
    cdef size_t at = 0
    for i in range(r.n_inputs):
        t = &r.inputs[i]
        n = snprintf(s.tensors + at, SEEN_TENSORS - at, b"%s%.*s %s[", b", " if i else b"",
                     <int>min(t.name_len, <uint32_t>SEEN_TENSORS), t.name, dtype_name(t.dtype))
        for d in range(t.ndim):
            if n < 0 or <size_t>n >= SEEN_TENSORS - at:
                break
            at += <size_t>n
            n = snprintf(s.tensors + at, SEEN_TENSORS - at, b"%s%lld", b"," if d else b"", <long long>t.dims[d])
        if n < 0 or <size_t>n >= SEEN_TENSORS - at - 1:
            break               # only whole tensors are told
        at += <size_t>n
        s.tensors[at] = c"]"
        at += 1
        s.tensors_len = <uint32_t>at


cdef inline int64_t between(int64_t least, int64_t value, int64_t most) noexcept nogil:
    return least if value < least else most if value > most else value


cdef int64_t seen_queue_ns(Seen* s) noexcept nogil:
    if s.taken == 0 or s.stamps[T_QUEUED] == 0:
        return -1
    return max(0, (s.stamps[T_STARTED] if s.stamps[T_STARTED] else s.taken) - s.stamps[T_QUEUED])


cdef int64_t seen_compute_ns(Seen* s) noexcept nogil:
    if s.taken == 0 or s.stamps[T_STARTED] == 0:
        return -1
    return max(0, (s.stamps[T_OUTPUT] if s.stamps[T_OUTPUT] else s.taken) - s.stamps[T_STARTED])


cdef size_t timing_text(Seen* s, int64_t now, char* text) noexcept nogil:
    cdef int64_t[N_PARTS] ends
    cdef int64_t part, sofar = 0, until
    cdef size_t at = 0
    cdef int i
    # What was not reached is left out, and the time until the end belongs to the last part that was.
    ends[0] = s.whole if s.whole else now
    ends[1] = s.stamps[T_QUEUED] if s.stamps[T_QUEUED] else now
    ends[2] = s.stamps[T_STARTED] if s.stamps[T_STARTED] else s.taken if s.taken else now
    ends[3] = s.stamps[T_INPUT]
    ends[4] = s.stamps[T_COMPUTED] if s.stamps[T_STARTED] and s.stamps[T_COMPUTED] else s.taken
    ends[5] = s.stamps[T_OUTPUT] if s.stamps[T_STARTED] and s.stamps[T_OUTPUT] else s.taken
    ends[6] = s.taken
    ends[7] = now
    for i in range(N_PARTS):
        # Microseconds since the beginning are cut, not rounded, and the parts are their differences.
        until = between(sofar, (ends[i] - s.began) // 1000, (now - s.began) // 1000)
        part = until - sofar
        sofar = until
        at += <size_t>snprintf(text + at, TIMING_TEXT - at, b"%s;dur=%lld.%03d, ", NAMES[i],
                               <long long>(part // 1000), <int>(part % 1000))
    at += <size_t>snprintf(text + at, TIMING_TEXT - at, b"total;dur=%lld.%03d", <long long>(sofar // 1000),
                           <int>(sofar % 1000))
    return at


cdef void timing_line(tf_buf* head, Seen* s) noexcept nogil:
    cdef char[TIMING_TEXT] text
    cdef size_t n = timing_text(s, now_ns(), text)
    if head.failed or head.len < 2:
        return
    head.len -= 2               # the empty line
    tf_buf_put(head, b"Server-Timing: ", 15)
    tf_buf_put(head, text, n)
    tf_buf_put(head, b"\r\n\r\n", 4)


def timing(int64_t began, int64_t whole, stamps, int64_t taken, int64_t now):
    """Return the text for these times, ns; ``stamps``: eight, as ``T_*`` counts them (tests only)."""
    cdef Seen s
    cdef char[TIMING_TEXT] text
    cdef int i
    seen_begin(&s, began)
    s.whole = whole
    s.taken = taken
    for i in range(T_COUNT):
        s.stamps[i] = stamps[i]
    return text[:timing_text(&s, now, text)].decode()
