# The C++ helpers of include/tf_json*.h: scanner, numbers, typed arrays, name sets. Declarations only, and apart from
# json_infer.pxd because only C++ modules can include these headers.
from libc.stdint cimport uint8_t, uint32_t, uint64_t


cdef extern from "tf_json_array.h" nogil:
    enum:
        TFJ_EMPTY
        TFJ_ROOT
        TFJ_DEEP
        TFJ_A_TYPE
        TFJ_A_MORE
        TFJ_A_DEEP
        TFJ_A_ROOM
        TFJ_MAX_NESTING
        TFJ_POW_MIN
        TFJ_POW_MAX
    ctypedef struct tf_json:
        const char* base
        const char* p
        const char* end
        const char* lim
        int reason
        size_t at
    ctypedef struct tf_json_str:
        const char* ptr
        uint32_t len
        uint32_t escaped
    ctypedef struct tf_json_num:
        int kind
        uint64_t u
        double d
    ctypedef struct tf_json_bytes:
        uint8_t* out
        size_t cap
        size_t len
        size_t need
        size_t count
        int depth
    ctypedef struct tf_json_names:
        uint32_t count
    const char* tf_json_reason(int reason)
    int tf_json_fail(tf_json* c, int reason, const char* at)
    const char* tf_json_ws(const char* p)
    char tf_json_after(tf_json* c)
    int tf_json_string(tf_json* c, tf_json_str* out)
    size_t tf_json_unescape(const tf_json_str* s, char* dst)
    int tf_json_literal(tf_json* c, const char* word)
    int tf_json_member(tf_json* c, int* first, tf_json_str* key)
    int tf_json_element(tf_json* c, int* first)
    int tf_json_number(tf_json* c, tf_json_num* n)
    bint tf_json_plain(tf_json* c, uint64_t* out)
    int tf_json_skip(tf_json* c, int max_depth)
    int tf_json_numbers(tf_json* c, char kind, int size, void* out, size_t n, size_t* count, int* why)
    int tf_json_strings(tf_json* c, tf_json_bytes* b, int* why)
    int tf_json_names_add(tf_json_names* s, const char* ptr, uint32_t len)
    void tf_json_names_free(tf_json_names* s)
    void tf_json_set_power(int q, uint64_t high, uint64_t low)
    uint64_t tf_json_seed[2]
