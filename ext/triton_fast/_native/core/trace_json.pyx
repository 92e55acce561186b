# See trace_json.pxd. Source: spec/metrics.md section 6. Numbers of tensors are printed as C++ streams print them, six
# digits; texts are escaped, where Triton's are not, so that the file is JSON whatever a tensor holds.
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from triton_fast._native.core.marks cimport T_COMPUTED, T_INPUT, T_OUTPUT, T_QUEUED, T_RECEIVED, T_STARTED
from triton_fast._native.core.native cimport (
    DT_BF16, DT_BOOL, DT_FP16, DT_FP32, DT_FP64, DT_INT8, DT_INT16, DT_INT32, DT_INT64, DT_STRING, DT_UINT8, DT_UINT16,
    DT_UINT32, DT_UINT64, dtype_name, dtype_size, tf_buf, tf_buf_char, tf_buf_put, tf_text_clean,
)
from triton_fast._native.core.print cimport print_number, print_text
from triton_fast._native.core.trace_types cimport (
    EVENT_COMPLETE, EVENT_SEND_START, FROM_GRPC, FROM_HTTP, TENSOR_QUEUED, TRACE_TIMESTAMPS, Trace, TraceEvent,
    TraceRecord, TraceTensor,
)


cdef void put_signed(tf_buf* out, int64_t value) noexcept nogil:
    if value < 0:
        tf_buf_char(out, c"-")
        print_number(out, <uint64_t>0 - <uint64_t>value)
    else:
        print_number(out, <uint64_t>value)


# n bytes of UTF-8 within a JSON string.
cdef void put_escaped(tf_buf* out, const char* text, size_t n) noexcept nogil:
    cdef char[8] code
    cdef size_t k, begun = 0
    for k in range(n):
        if <uint8_t>text[k] >= 0x20 and text[k] != c"\"" and text[k] != c"\\":
            continue
        tf_buf_put(out, text + begun, k - begun)
        begun = k + 1
        if text[k] == c"\"" or text[k] == c"\\":
            tf_buf_char(out, c"\\")
            tf_buf_char(out, text[k])
        else:
            snprintf(code, 8, b"\\u%04x", <unsigned int><uint8_t>text[k])
            tf_buf_put(out, code, 6)
    tf_buf_put(out, text + begun, n - begun)


# The same of any bytes: what is no UTF-8 is replaced.
cdef void put_text(tf_buf* out, const char* text, size_t n) noexcept nogil:
    cdef size_t size = tf_text_clean(text, n, NULL)
    cdef char* clean = <char*>malloc(size + 1)
    if clean == NULL:
        return
    tf_text_clean(text, n, clean)
    put_escaped(out, clean, size)
    free(clean)


# --- tensors ----------------------------------------------------------------------------------------------------------

cdef double half(uint16_t bits) noexcept nogil:
    cdef uint32_t sign = <uint32_t>(bits & 0x8000) << 16, exponent = (bits >> 10) & 31, fraction = bits & 0x3ff
    cdef uint32_t whole
    cdef float value
    if exponent == 31:
        whole = sign | 0x7f800000 | fraction << 13
    elif exponent:
        whole = sign | (exponent + 112) << 23 | fraction << 13
    else:
        return (-1.0 if sign else 1.0) * fraction / 16777216.0
    memcpy(&value, &whole, 4)
    return value


cdef double brain(uint16_t bits) noexcept nogil:
    cdef uint32_t whole = <uint32_t>bits << 16
    cdef float value
    memcpy(&value, &whole, 4)
    return value


cdef void put_real(tf_buf* out, double value) noexcept nogil:
    cdef char[32] text
    cdef int n = snprintf(text, 32, b"%g", value)
    tf_buf_put(out, text, <size_t>n)


cdef void put_element(tf_buf* out, int32_t dtype, const uint8_t* p) noexcept nogil:
    cdef uint16_t two = 0
    cdef uint32_t four = 0
    cdef uint64_t eight = 0
    cdef float single
    cdef double real
    if dtype == DT_BOOL:
        tf_buf_char(out, c"1" if p[0] else c"0")
    elif dtype == DT_UINT8:
        print_number(out, p[0])
    elif dtype == DT_INT8:
        put_signed(out, <int8_t>p[0])
    elif dtype == DT_UINT16 or dtype == DT_INT16 or dtype == DT_FP16 or dtype == DT_BF16:
        memcpy(&two, p, 2)
        if dtype == DT_UINT16:
            print_number(out, two)
        elif dtype == DT_INT16:
            put_signed(out, <int16_t>two)
        else:
            put_real(out, half(two) if dtype == DT_FP16 else brain(two))
    elif dtype == DT_UINT32 or dtype == DT_INT32:
        memcpy(&four, p, 4)
        if dtype == DT_UINT32:
            print_number(out, four)
        else:
            put_signed(out, <int32_t>four)
    elif dtype == DT_UINT64 or dtype == DT_INT64:
        memcpy(&eight, p, 8)
        if dtype == DT_UINT64:
            print_number(out, eight)
        else:
            put_signed(out, <int64_t>eight)
    elif dtype == DT_FP32:
        memcpy(&single, p, 4)
        put_real(out, single)
    elif dtype == DT_FP64:
        memcpy(&real, p, 8)
        put_real(out, real)


# Triton puts texts between quotes that the JSON escapes.
cdef void put_strings(tf_buf* out, TraceTensor* x) noexcept nogil:
    cdef size_t at = 0
    cdef uint32_t n
    while x.copied - at >= 4:
        memcpy(&n, x.data + at, 4)
        at += 4
        if n > x.copied - at:
            return
        if at > 4:
            tf_buf_char(out, c",")
        print_text(out, b"\\\"")
        put_text(out, <const char*>x.data + at, n)
        print_text(out, b"\\\"")
        at += n


cdef void put_tensor(TraceRecord* t, TraceTensor* x, tf_buf* out) noexcept nogil:
    cdef size_t at = 0, size = <size_t>dtype_size(x.dtype) if x.dtype != DT_STRING else 0
    cdef int32_t i
    begin_object(t, out)
    print_text(out, b",\"activity\":\"TENSOR_QUEUE_INPUT\"" if x.kind == TENSOR_QUEUED else
               b",\"activity\":\"TENSOR_BACKEND_OUTPUT\"")
    print_text(out, b",\"tensor\":{\"name\":\"")
    put_text(out, x.name, x.name_len)
    print_text(out, b"\",\"data\":\"")
    if x.dtype == DT_STRING:
        put_strings(out, x)
    while size and x.copied - at >= size:
        if at:
            tf_buf_char(out, c",")
        put_element(out, x.dtype, x.data + at)
        at += size
    if x.copied < x.nbytes:
        print_text(out, b",..." if x.copied else b"...")
    print_text(out, b"\",\"shape\":\"")
    for i in range(x.ndim):
        if i:
            tf_buf_char(out, c",")
        put_signed(out, x.dims[i])
    print_text(out, b"\",\"dtype\":\"")
    print_text(out, dtype_name(x.dtype))
    print_text(out, b"\"}}")


# --- records ----------------------------------------------------------------------------------------------------------

cdef inline void begin_object(TraceRecord* t, tf_buf* out) noexcept nogil:
    if out.len:
        tf_buf_char(out, c",")
    print_text(out, b"{\"id\":")
    print_number(out, t.id)


cdef void put_stamp(TraceRecord* t, const char* name, int64_t ns, tf_buf* out) noexcept nogil:
    if ns == 0:
        return
    begin_object(t, out)
    print_text(out, b",\"timestamps\":[{\"name\":\"")
    print_text(out, name)
    print_text(out, b"\",\"ns\":")
    print_number(out, <uint64_t>ns)
    print_text(out, b"}]}")


cdef bint executed(TraceRecord* t) noexcept nogil:
    # The cache answers within one reading of the clock.
    return not t.composed and t.stamps[T_STARTED] != 0 and t.stamps[T_OUTPUT] > t.stamps[T_STARTED]


cdef const char* event_name(TraceRecord* t, int32_t kind) noexcept nogil:
    if kind == EVENT_COMPLETE:
        return b"INFER_RESPONSE_COMPLETE"
    if t.origin == FROM_HTTP:
        return b"HTTP_SEND_START" if kind == EVENT_SEND_START else b"HTTP_SEND_END"
    return b"GRPC_SEND_START" if kind == EVENT_SEND_START else b"GRPC_SEND_END"


cdef void put_events(TraceRecord* t, bint complete, tf_buf* out) noexcept nogil:
    cdef TraceEvent* e = t.events
    while e != NULL:
        if (e.kind == EVENT_COMPLETE) == complete:
            put_stamp(t, event_name(t, e.kind), e.ns, out)
        e = e.next


cdef void put_record(Trace* trace, TraceRecord* t, tf_buf* out) noexcept nogil:
    cdef TraceTensor* x = t.tensors
    cdef bint stamps = trace.level & TRACE_TIMESTAMPS != 0
    begin_object(t, out)
    print_text(out, b",\"model_name\":\"")
    put_text(out, t.name, t.name_len)
    print_text(out, b"\",\"model_version\":")
    put_signed(out, t.version)
    if t.request_id_len:
        print_text(out, b",\"request_id\":\"")
        put_text(out, t.request_id, t.request_id_len)
        tf_buf_char(out, c"\"")
    if t.parent_id:
        print_text(out, b",\"parent_id\":")
        print_number(out, t.parent_id)
    tf_buf_char(out, c"}")
    if stamps:
        if t.origin == FROM_HTTP:
            put_stamp(t, b"HTTP_RECV_START", t.stamps[T_RECEIVED], out)
            put_stamp(t, b"HTTP_RECV_END", t.received_end, out)
        elif t.origin == FROM_GRPC:
            put_stamp(t, b"GRPC_WAITREAD_START", t.stamps[T_RECEIVED], out)
            put_stamp(t, b"GRPC_WAITREAD_END", t.received_end, out)
        put_stamp(t, b"REQUEST_START", t.began, out)
        put_stamp(t, b"QUEUE_START", t.stamps[T_QUEUED], out)
    while x != NULL:
        put_tensor(t, x, out)
        x = x.next
    if not stamps:
        return
    put_events(t, True, out)
    if executed(t):
        put_stamp(t, b"COMPUTE_START", t.stamps[T_STARTED], out)
        put_stamp(t, b"COMPUTE_INPUT_END", t.stamps[T_INPUT], out)
        put_stamp(t, b"COMPUTE_OUTPUT_START", t.stamps[T_COMPUTED], out)
        put_stamp(t, b"COMPUTE_END", t.stamps[T_OUTPUT], out)
    put_stamp(t, b"REQUEST_END", t.ended, out)
    put_events(t, False, out)


cdef void trace_json(Trace* t, tf_buf* out) noexcept nogil:
    cdef TraceRecord* one = t.first
    while one != NULL:
        put_record(t, one, out)
        one = one.next
