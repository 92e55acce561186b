# The C helpers of include/: atomics, errors with text, growable buffers, the monotonic clock.
# Declarations and inlines only; no extension of its own.
from libc.stdint cimport int32_t, int64_t, uint32_t
from posix.time cimport CLOCK_MONOTONIC, clock_gettime, timespec


cdef extern from "tf_atomics.h" nogil:
    int32_t tf_load32(const int32_t* p)
    void tf_store32(int32_t* p, int32_t v)
    int32_t tf_add32(int32_t* p, int32_t v)
    int32_t tf_swap32(int32_t* p, int32_t v)
    bint tf_cas32(int32_t* p, int32_t expected, int32_t wanted)
    int64_t tf_load64(const int64_t* p)
    void tf_store64(int64_t* p, int64_t v)
    int64_t tf_add64(int64_t* p, int64_t v)
    void* tf_load_ptr(void** p)
    void tf_store_ptr(void** p, void* v)
    void* tf_swap_ptr(void** p, void* v)
    bint tf_cas_ptr(void** p, void* expected, void* wanted)
    void tf_fence()
    void tf_pause()
    void tf_lock(int32_t* p)
    void tf_unlock(int32_t* p)


cdef extern from "tf_error.h" nogil:
    ctypedef struct tf_error:
        int32_t code
        uint32_t len
        char* text
    int tf_fail(tf_error* e, int32_t code, const char* format, ...)


# Text of other processes made UTF-8: its size, written to out unless that is NULL. Cuts between characters.
cdef extern from "tf_text.h" nogil:
    size_t tf_text_clean(const char* text, size_t n, char* out)
    size_t tf_text_cut(const char* text, size_t n)


cdef extern from "tf_buf.h" nogil:
    ctypedef struct tf_buf:
        char* data
        size_t len
        size_t cap
        int failed
    int tf_buf_reserve(tf_buf* b, size_t more)
    void tf_buf_put(tf_buf* b, const void* src, size_t n)
    void tf_buf_char(tf_buf* b, char c)
    void tf_buf_free(tf_buf* b)


cdef extern from "tf_types.h" nogil:
    int32_t dtype_size(int32_t dtype)
    const char* dtype_name(int32_t dtype)
    int32_t dtype_from_name(const void* p, size_t n)


# The eight Triton error codes and ours (triton_fast/errors.py), and success.
cdef enum:
    TF_OK = -1
    TF_UNKNOWN = 0
    TF_INTERNAL = 1
    TF_NOT_FOUND = 2
    TF_INVALID_ARG = 3
    TF_UNAVAILABLE = 4
    TF_UNSUPPORTED = 5
    TF_ALREADY_EXISTS = 6
    TF_CANCELLED = 7
    TF_EXHAUSTED = 8        # no place now, by choice of the operator told apart from TF_UNAVAILABLE

# Datatypes; numbers of inference.DataType (triton_fast/types.py).
cdef enum:
    DT_INVALID = 0
    DT_BOOL = 1
    DT_UINT8 = 2
    DT_UINT16 = 3
    DT_UINT32 = 4
    DT_UINT64 = 5
    DT_INT8 = 6
    DT_INT16 = 7
    DT_INT32 = 8
    DT_INT64 = 9
    DT_FP16 = 10
    DT_FP32 = 11
    DT_FP64 = 12
    DT_STRING = 13
    DT_BF16 = 14
    DT_COUNT = 15

cdef enum:
    MEM_CPU = 0
    MEM_PINNED = 1
    MEM_GPU = 2
    MEM_CLIENT = 3          # of a block: a region of core/regions.pxd; of an output: it went there


cdef inline int64_t now_ns() noexcept nogil:
    cdef timespec ts
    clock_gettime(CLOCK_MONOTONIC, &ts)
    return <int64_t>ts.tv_sec * 1000000000 + ts.tv_nsec
