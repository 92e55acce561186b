# See json_event.pxd. Members stand in the order of their names; of several with one name, first what the server says of
# the response (id, model_name, model_version), then its parameters, then outputs.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport qsort
from libc.string cimport memcmp, memcpy, memmove, memset

from triton_fast._native.core.native cimport (
    TF_UNAVAILABLE, tf_buf, tf_buf_char, tf_buf_free, tf_buf_put, tf_buf_reserve, tf_error, tf_fail,
)
from triton_fast._native.core.model cimport ModelHandle
from triton_fast._native.core.request cimport (
    Request, Response, request_alloc, request_free, request_new, response_outputs,
)
from triton_fast._native.core.shape cimport elements_of
from triton_fast._native.core.tensor cimport (
    PARAM_BOOL, PARAM_DOUBLE, PARAM_INT, PARAM_STRING, PARAM_UINT, Param, Tensor,
)
from triton_fast._native.wire.json_reply cimport json_put_param, json_put_tensor, output_name
from triton_fast._native.wire.json_text cimport json_quote

from triton_fast.errors import make

cdef enum:
    SOME = 16               # members that are sorted on the stack, by insertion
    SIZE_ROOM = 18          # of a chunk: 16 hex digits, CR LF

cdef enum:
    OF_SERVER = 0
    OF_PARAM = 1
    OF_OUTPUT = 2

cdef struct Member:
    const char* name
    uint32_t name_len
    int32_t origin
    const char* text        # OF_SERVER
    uint32_t text_len
    void* what              # Param or Tensor


cdef int compare(const void* a, const void* b) noexcept nogil:
    cdef Member* x = <Member*>a
    cdef Member* y = <Member*>b
    cdef int c = memcmp(x.name, y.name, x.name_len if x.name_len < y.name_len else y.name_len)
    if c == 0 and x.name_len != y.name_len:
        return -1 if x.name_len < y.name_len else 1
    return c if c else x.origin - y.origin


cdef void sort(Member* members, int32_t n) noexcept nogil:
    cdef int32_t i, k
    cdef Member one
    if n > SOME:
        qsort(members, <size_t>n, sizeof(Member), compare)
        return
    for i in range(1, n):
        one = members[i]
        k = i
        while k > 0 and compare(&one, &members[k - 1]) < 0:
            members[k] = members[k - 1]
            k -= 1
        members[k] = one


cdef inline Member* said(Member* m, const char* name, uint32_t n, const char* text, uint32_t text_len) noexcept nogil:
    m.name = name
    m.name_len = n
    m.origin = OF_SERVER
    m.text = text
    m.text_len = text_len
    return m + 1


cdef int32_t gather(Response* p, Member* m) noexcept nogil:
    cdef Request* r = p.request
    cdef Member* start = m
    cdef Param* param = p.params
    cdef int32_t i
    if r.id_len:
        m = said(m, b"id", 2, r.id, r.id_len)
    m = said(m, b"model_name", 10, r.model.name, r.model.name_len)
    m = said(m, b"model_version", 13, r.model.version_text, r.model.version_len)
    while param != NULL:
        m.name = param.key
        m.name_len = param.key_len
        m.origin = OF_PARAM
        m.what = param
        m += 1
        param = param.next
    for i in range(p.n_outputs):
        output_name(r, &p.outputs[i], &m.name, &m.name_len)
        m.origin = OF_OUTPUT
        m.what = &p.outputs[i]
        m += 1
    return <int32_t>(m - start)


cdef int put_output(Request* r, Tensor* t, tf_buf* out, tf_error* e) noexcept nogil:
    cdef bint one = elements_of(t.dims, t.ndim) == 1
    if not one:
        tf_buf_char(out, c'[')
    if json_put_tensor(r, t, out, e):
        return -1
    if not one:
        tf_buf_char(out, c']')
    return 0


cdef int no_memory(tf_error* e) noexcept nogil:
    return tf_fail(e, TF_UNAVAILABLE, b"out of memory while writing the response")


cdef int put_object(Response* p, tf_buf* out, tf_error* e) noexcept nogil:
    cdef Member few[SOME]
    cdef Member* members = few
    cdef Member* m
    cdef Param* param = p.params
    cdef int32_t i, n = 3 + p.n_outputs
    cdef bint first = True
    while param != NULL:
        n += 1
        param = param.next
    if n > SOME:
        members = <Member*>request_alloc(p.request, <size_t>n * sizeof(Member))
        if members == NULL:
            return no_memory(e)
    n = gather(p, members)
    sort(members, n)
    tf_buf_char(out, c'{')
    for i in range(n):
        m = &members[i]
        if i and m.name_len == members[i - 1].name_len and memcmp(m.name, members[i - 1].name, m.name_len) == 0:
            continue
        if not first:
            tf_buf_char(out, c',')
        first = False
        json_quote(out, m.name, m.name_len)
        tf_buf_char(out, c':')
        if m.origin == OF_SERVER:
            json_quote(out, m.text, m.text_len)
        elif m.origin == OF_PARAM:
            json_put_param(out, <Param*>m.what)
        elif put_output(p.request, <Tensor*>m.what, out, e):
            return -1
    tf_buf_char(out, c'}')
    return no_memory(e) if out.failed else 0


# Room for the size of a chunk, whose digits are not known yet, and what comes before the object.
cdef inline size_t begin(tf_buf* out, int32_t form) noexcept nogil:
    cdef size_t start = out.len
    if form & EVENT_CHUNK and tf_buf_reserve(out, SIZE_ROOM) == 0:
        out.len += SIZE_ROOM
    if form & EVENT_SSE:
        tf_buf_put(out, b"data: ", 6)
    return start


cdef inline void end(tf_buf* out, size_t start, int32_t form) noexcept nogil:
    cdef char size[SIZE_ROOM]
    cdef int at = SIZE_ROOM - 2
    cdef size_t n, left
    if form & EVENT_SSE:
        tf_buf_put(out, b"\n\n", 2)
    if not form & EVENT_CHUNK or out.failed:
        return
    left = n = out.len - start - SIZE_ROOM
    size[SIZE_ROOM - 2] = 13
    size[SIZE_ROOM - 1] = 10
    while True:
        at -= 1
        size[at] = b"0123456789abcdef"[left & 15]
        left >>= 4
        if left == 0:
            break
    # Close up to the digits that there are.
    memcpy(out.data + start, &size[at], <size_t>(SIZE_ROOM - at))
    if at:
        memmove(out.data + start + SIZE_ROOM - at, out.data + start + SIZE_ROOM, n)
        out.len -= <size_t>at
    tf_buf_put(out, b"\r\n", 2)


cdef int event_put(tf_buf* out, Response* p, int32_t form, tf_error* e) noexcept nogil:
    cdef size_t before = out.len, start = begin(out, form)
    if put_object(p, out, e):
        out.len = before
        return -1
    end(out, start, form)
    return 0


cdef void event_put_error(tf_buf* out, const char* text, size_t n, int32_t form) noexcept nogil:
    cdef size_t start = begin(out, form)
    tf_buf_put(out, b'{"error":', 9)
    json_quote(out, text, n)
    tf_buf_char(out, c'}')
    end(out, start, form)


cdef void event_put_text(tf_buf* out, const char* json, size_t n, int32_t form) noexcept nogil:
    cdef size_t start = begin(out, form)
    tf_buf_put(out, json, n)
    end(out, start, form)


cdef size_t event_weight(Response* p) noexcept nogil:
    cdef size_t total = 0
    cdef int32_t i
    for i in range(p.n_outputs):
        total += p.outputs[i].nbytes
    return total


# --- tests ------------------------------------------------------------------------------------------------------------

include "reply_entry.pxi"


def encode(ModelHandle model, outputs, str id="", parameters=None, int form=0, int repeat=1):
    cdef tf_error e
    cdef tf_buf out
    cdef int rc = 0, _turn
    cdef Request* r = request_new(model.ptr)
    if r == NULL:
        raise MemoryError
    memset(&out, 0, sizeof(out))
    try:
        outputs = list(outputs)
        fill_response(r, id, outputs, parameters)
        with nogil:
            for _turn in range(repeat):
                rc = event_put(&out, &r.response, form, &e)
                if rc:
                    break
        if rc:
            raise make(e.code, e.text[:e.len].decode(errors="replace"))
        return out.data[:out.len]
    finally:
        tf_buf_free(&out)
        request_free(r)


def encode_error(bytes text not None, int form=0):
    cdef tf_buf out
    memset(&out, 0, sizeof(out))
    try:
        event_put_error(&out, text, <size_t>len(text), form)
        if out.failed:
            raise MemoryError
        return out.data[:out.len]
    finally:
        tf_buf_free(&out)
