# The response cache's key of a request. Triton hashes names and bytes of the inputs alone; two requests that differ in
# what this adds may have different answers. See key.pxd.
from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t
from libc.string cimport memcpy, memset

from triton_fast._native.core.marks cimport FLAG_SEQUENCE_END, FLAG_SEQUENCE_START
from triton_fast._native.core.native cimport MEM_GPU
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Request, request_alloc
from triton_fast._native.core.tensor cimport PARAM_DOUBLE, PARAM_STRING, Param, Tensor


cdef enum:
    BITS = 48               # outputs of a model that go into one word with the rest of what is wanted


# What else a request says besides its inputs. Mostly that is but the outputs it wants, as a set: the order of names,
# and naming all or none, makes no difference.
cdef int put_rest(tf_digest* d, Request* r) noexcept nogil:
    cdef uint64_t bits = 0
    cdef int32_t i
    cdef uint32_t flags = r.flags & (FLAG_SEQUENCE_START | FLAG_SEQUENCE_END)
    if r.model.n_outputs <= BITS and r.params == NULL and not flags and not (r.correlation | r.correlation_len):
        for i in range(r.n_wanted):
            bits |= <uint64_t>1 << r.wanted[i].index
        if r.n_wanted == 0:
            bits = (<uint64_t>1 << r.model.n_outputs) - 1
        tf_digest_word(d, bits << 1)
        return 0
    tf_digest_word(d, 1)
    if put_wanted(d, r) != 0:
        return -1
    tf_digest_word(d, r.correlation)
    tf_digest_bytes(d, r.correlation_text, r.correlation_len)
    tf_digest_word(d, flags)
    put_params(d, r.params)
    return 0


cdef int put_wanted(tf_digest* d, Request* r) noexcept nogil:
    cdef size_t n = (<size_t>r.model.n_outputs + 7) // 8
    cdef uint8_t* bits = <uint8_t*>request_alloc(r, n + 1)
    cdef int32_t i, k
    if bits == NULL:
        return -1
    memset(bits, 0, n)
    for i in range(r.n_wanted if r.n_wanted else r.model.n_outputs):
        k = r.wanted[i].index if r.n_wanted else i
        bits[k >> 3] |= <uint8_t>(1 << (k & 7))
    tf_digest_bytes(d, bits, n)
    return 0


cdef void put_params(tf_digest* d, const Param* p) noexcept nogil:
    cdef uint64_t bits
    while p != NULL:
        tf_digest_bytes(d, p.key, p.key_len)
        tf_digest_word(d, <uint64_t>p.kind)
        if p.kind == PARAM_STRING:
            tf_digest_bytes(d, p.text, p.text_len)
        elif p.kind == PARAM_DOUBLE:
            memcpy(&bits, &p.number, 8)
            tf_digest_word(d, bits)
        else:
            tf_digest_word(d, <uint64_t>p.integer)
        p = p.next


cdef int request_key(Request* r, const tf_digest_key* secret, uint64_t owner, uint64_t* key) noexcept nogil:
    cdef tf_digest d
    cdef Tensor* t
    cdef int32_t i, k
    tf_digest_begin(&d, secret)
    tf_digest_word(&d, owner)
    for i in range(r.model.n_inputs):
        t = r.by_index[i]
        if t == NULL:
            tf_digest_word(&d, 0)
            continue
        if t.kind == MEM_GPU:
            return -1
        tf_digest_word(&d, <uint64_t>t.dtype << 32 | <uint64_t>(t.ndim + 1))
        for k in range(t.ndim):
            tf_digest_word(&d, <uint64_t>t.dims[k])
        tf_digest_bytes(&d, t.ptr, t.nbytes)
    if put_rest(&d, r) != 0:
        return -1
    tf_digest_end(&d, key)
    return 0


cdef object view_of(const void* p, size_t n):
    return PyMemoryView_FromMemory(<char*>p, <Py_ssize_t>n, PyBUF_READ) if n else b""


cdef list request_fields(Request* r):
    cdef Model* m = r.model
    cdef const Param* p = r.params
    cdef Tensor* t
    cdef int32_t i
    fields = []
    for i in range(m.n_inputs):
        t = r.by_index[i]
        if t == NULL:
            continue
        fields += [m.inputs[i].name[:m.inputs[i].name_len], t.dtype, t.ndim, view_of(t.dims, <size_t>t.ndim * 8),
                   view_of(t.ptr, t.nbytes)]
    wanted = [r.wanted[i].index for i in range(r.n_wanted)] if r.n_wanted else range(m.n_outputs)
    names = sorted([m.outputs[i].name[:m.outputs[i].name_len] for i in wanted])
    fields += [len(names), *names, r.correlation, view_of(r.correlation_text, r.correlation_len),
               r.flags & (FLAG_SEQUENCE_START | FLAG_SEQUENCE_END)]
    while p != NULL:
        fields += [view_of(p.key, p.key_len), p.kind]
        if p.kind == PARAM_STRING:
            fields.append(view_of(p.text, p.text_len))
        elif p.kind == PARAM_DOUBLE:
            fields.append(view_of(&p.number, 8))
        else:
            fields.append(p.integer)
        p = p.next
    return fields


def digest(bytes secret, fields):
    """Return the 16 bytes that a key of 1056 bytes (two words, then 130) gives for fields: int is a word (tests)."""
    cdef tf_digest_key key
    cdef tf_digest d
    cdef uint64_t out[2]
    if len(secret) != sizeof(tf_digest_key):
        raise ValueError(f"the key must have {sizeof(tf_digest_key)} bytes")
    memcpy(&key, <const char*>secret, sizeof(tf_digest_key))
    tf_digest_begin(&d, &key)
    for field in fields:
        if isinstance(field, int):
            tf_digest_word(&d, field)
        else:
            tf_digest_bytes(&d, <const char*>(<bytes>field), len(field))
    tf_digest_end(&d, out)
    return (<char*>out)[:16]


def rate(size_t n, int repeat):
    """Digest n bytes ``repeat`` times (bench only); returns the last word."""
    cdef tf_digest_key key
    cdef tf_digest d
    cdef uint64_t out[2]
    cdef int _i
    data = bytes(n)
    cdef const char* p = data
    memset(&key, 7, sizeof(key))
    with nogil:
        for _i in range(repeat):
            tf_digest_begin(&d, &key)
            tf_digest_bytes(&d, p, n)
            tf_digest_end(&d, out)
    return out[0]
