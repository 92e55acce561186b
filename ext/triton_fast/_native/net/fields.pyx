# See fields.pxd. Knows no protocol's spelling of a head.
from libc.stdint cimport uint32_t
from libc.string cimport memcpy, memset

from triton_fast._native.core.request cimport Request, request_alloc
from triton_fast._native.core.tensor cimport PARAM_STRING, Param

cdef frozenset RESERVED = frozenset((
    b"sequence_id", b"sequence_start", b"sequence_end", b"priority", b"timeout", b"headers", b"binary_data_output"))


cdef bint is_secret(const char* name, size_t name_len, const char* value, size_t value_len, bytes wanted_name,
                    bytes wanted_value) noexcept:
    cdef const char* right_name = wanted_name
    cdef const char* right_value = wanted_value
    cdef size_t k
    cdef unsigned char differs = 0
    cdef char c
    if name_len != <size_t>len(wanted_name) or value_len != <size_t>len(wanted_value):
        return False
    for k in range(name_len):
        c = name[k]
        differs |= <unsigned char>((c + 32 if c"A" <= c <= c"Z" else c) ^ right_name[k])
    for k in range(value_len):
        differs |= <unsigned char>(value[k] ^ right_value[k])
    return differs == 0


cdef bytes reserved_field(list forwarded):
    for name, _ in forwarded:
        lower = name.lower()
        if lower in RESERVED or lower.startswith(b"triton_"):
            return b"Header '" + name + b"' is reserved for Triton usage and cannot be forwarded."
    return None


cdef const char* copied(Request* r, bytes text) except NULL:
    cdef char* p = <char*>request_alloc(r, len(text) + 1)
    if p == NULL:
        raise MemoryError
    memcpy(p, <const char*>text, len(text) + 1)
    return p


cdef int add_parameters(Request* r, list pairs) except -1:
    cdef Param* param
    for key, value in pairs:
        param = <Param*>request_alloc(r, sizeof(Param))
        if param == NULL:
            raise MemoryError
        memset(param, 0, sizeof(Param))
        param.kind = PARAM_STRING
        param.key = copied(r, key)
        param.key_len = <uint32_t>len(key)
        param.text = copied(r, value)
        param.text_len = <uint32_t>len(value)
        param.next = r.params
        r.params = param
    return 0
