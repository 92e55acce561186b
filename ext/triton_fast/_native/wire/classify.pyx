# distutils: language = c++
# Top-k of one output row by a heap of k indices: O(n log k) time and 4 * k bytes, whatever k the client asks for.
# C++ for std::to_chars, whose six decimals do not depend on the locale.
from libc.stdint cimport int8_t, int16_t, int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset

from triton_fast._native.core.memory cimport Block, block_new, block_unref
from triton_fast._native.core.native cimport (
    DT_FP32, DT_FP64, DT_INT8, DT_INT16, DT_INT32, DT_INT64, DT_STRING, DT_UINT8, DT_UINT16, DT_UINT32, DT_UINT64,
    MEM_CPU, MEM_GPU, TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE, dtype_name, dtype_size, tf_buf, tf_buf_free,
    tf_buf_put, tf_buf_reserve, tf_error, tf_fail,
)
from triton_fast._native.core.request cimport Request, Response, request_alloc
from triton_fast._native.core.shape cimport mul_overflow
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.wire.numbers cimport number_t

cdef extern from "<charconv>" nogil:
    struct to_chars_result "std::to_chars_result":
        char* ptr
    ctypedef int chars_format "std::chars_format"
    chars_format FIXED "std::chars_format::fixed"
    to_chars_result fixed_to_chars "std::to_chars"(char* first, char* last, double v, chars_format format, int digits)
    to_chars_result int_to_chars "std::to_chars"(char* first, char* last, int64_t v)
    to_chars_result uint_to_chars "std::to_chars"(char* first, char* last, uint64_t v)

cdef enum:
    MAX_ROW = 1000000       # elements of one row, Triton's limit
    VALUE_ROOM = 384        # "%.6f" of the greatest double has 317 characters; an index has at most 7


cdef inline number_t load(const uint8_t* row, uint32_t i, number_t* unused) noexcept nogil:
    cdef number_t v
    memcpy(&v, row + <size_t>i * sizeof(number_t), sizeof(number_t))
    return v


# Whether element a comes before b: greater first, NaN last, ties by index.
cdef inline bint before(const uint8_t* row, uint32_t a, uint32_t b, number_t* unused) noexcept nogil:
    cdef number_t x = load(row, a, unused)
    cdef number_t y = load(row, b, unused)
    if x > y:
        return True
    if x < y:
        return False
    if number_t is float or number_t is double:
        if (x != x) != (y != y):
            return y != y
    return a < b


# Restore the heap (its root is the element that comes last) below `at`.
cdef inline void sift(const uint8_t* row, uint32_t* heap, uint32_t n, uint32_t at, number_t* unused) noexcept nogil:
    cdef uint32_t moving = heap[at]
    cdef uint32_t child
    while True:
        child = 2 * at + 1
        if child >= n:
            break
        if child + 1 < n and before(row, heap[child], heap[child + 1], unused):
            child += 1
        if not before(row, moving, heap[child], unused):
            break
        heap[at] = heap[child]
        at = child
    heap[at] = moving


# The indices of the k first elements of a row of n, in order, to heap. 1 <= k <= n.
cdef void top(const uint8_t* row, uint32_t n, uint32_t k, uint32_t* heap, number_t* unused) noexcept nogil:
    cdef uint32_t i, last
    for i in range(k):
        heap[i] = i
    i = k // 2
    while i > 0:
        i -= 1
        sift(row, heap, k, i, unused)
    for i in range(k, n):
        if before(row, i, heap[0], unused):
            heap[0] = i
            sift(row, heap, k, 0, unused)
    i = k
    while i > 1:
        i -= 1
        last = heap[0]
        heap[0] = heap[i]
        heap[i] = last
        sift(row, heap, i, 0, unused)


cdef char* write_value(char* p, char* end, const uint8_t* row, uint32_t i, number_t* unused) noexcept nogil:
    cdef number_t v = load(row, i, unused)
    if number_t is float or number_t is double:
        return fixed_to_chars(p, end, v, FIXED, 6).ptr
    elif number_t is uint64_t:
        return uint_to_chars(p, end, v).ptr
    else:
        return int_to_chars(p, end, v).ptr


cdef int classify_row(const uint8_t* row, uint32_t n, uint32_t k, uint32_t* heap, LabelTable* table, tf_buf* out,
                      number_t* unused) noexcept nogil:
    cdef char text[VALUE_ROOM + 32]
    cdef char* end = &text[0] + VALUE_ROOM
    cdef char* p
    cdef uint32_t j, i, n_label, length
    top(row, n, k, heap, unused)
    for j in range(k):
        i = heap[j]
        p = write_value(&text[0] + 4, end, row, i, unused)
        p[0] = 58
        p = uint_to_chars(p + 1, end + 16, i).ptr
        n_label = table.text_len[i] if table != NULL and i < table.n else 0
        if n_label:
            p[0] = 58
            p += 1
        length = <uint32_t>(p - &text[0]) - 4 + n_label
        memcpy(text, &length, 4)
        if tf_buf_reserve(out, <size_t>(p - &text[0]) + n_label):
            return -1
        tf_buf_put(out, text, <size_t>(p - &text[0]))
        if n_label:
            tf_buf_put(out, table.text[i], n_label)
    return 0


cdef int classify_typed(int32_t dtype, const uint8_t* row, uint32_t n, uint32_t k, uint32_t* heap, LabelTable* table,
                        tf_buf* out) noexcept nogil:
    if dtype == DT_FP32:
        return classify_row(row, n, k, heap, table, out, <float*>NULL)
    if dtype == DT_FP64:
        return classify_row(row, n, k, heap, table, out, <double*>NULL)
    if dtype == DT_INT64:
        return classify_row(row, n, k, heap, table, out, <int64_t*>NULL)
    if dtype == DT_INT32:
        return classify_row(row, n, k, heap, table, out, <int32_t*>NULL)
    if dtype == DT_INT16:
        return classify_row(row, n, k, heap, table, out, <int16_t*>NULL)
    if dtype == DT_INT8:
        return classify_row(row, n, k, heap, table, out, <int8_t*>NULL)
    if dtype == DT_UINT64:
        return classify_row(row, n, k, heap, table, out, <uint64_t*>NULL)
    if dtype == DT_UINT32:
        return classify_row(row, n, k, heap, table, out, <uint32_t*>NULL)
    if dtype == DT_UINT16:
        return classify_row(row, n, k, heap, table, out, <uint16_t*>NULL)
    return classify_row(row, n, k, heap, table, out, <uint8_t*>NULL)


cdef inline bint has_order(int32_t dtype) noexcept nogil:
    return (dtype == DT_FP32 or dtype == DT_FP64 or dtype == DT_INT8 or dtype == DT_INT16 or dtype == DT_INT32
            or dtype == DT_INT64 or dtype == DT_UINT8 or dtype == DT_UINT16 or dtype == DT_UINT32 or dtype == DT_UINT64)


cdef int no_memory(tf_error* e) noexcept nogil:
    return tf_fail(e, TF_UNAVAILABLE, b"out of memory while classifying an output")


cdef int fail_size(tf_error* e) noexcept nogil:
    return tf_fail(e, TF_INTERNAL, b"classification output tensor shape does not match its size")


cdef int classify(Request* r, Tensor* t, uint32_t classes, LabelTable* table, tf_error* e) noexcept nogil:
    cdef int32_t first = 1 if r.model.max_batch > 0 and t.ndim > 0 else 0
    cdef int32_t size = dtype_size(t.dtype)
    cdef int32_t i
    cdef int64_t row
    cdef int64_t rows = t.dims[0] if first else 1
    cdef int64_t n = 1
    cdef int64_t nbytes = 0
    cdef uint32_t k
    cdef int64_t* dims
    cdef uint32_t* heap
    cdef Block* block
    cdef tf_buf out
    cdef int status = 0
    if not has_order(t.dtype):
        return tf_fail(e, TF_INVALID_ARG, b"class result not available for output due to unsupported type '%s'",
                       dtype_name(t.dtype))
    if t.kind == MEM_GPU:
        return tf_fail(e, TF_INTERNAL, b"a classification output lies in GPU memory and cannot be read")
    for i in range(first, t.ndim):
        if t.dims[i] < 0 or mul_overflow(n, t.dims[i], &n):
            return fail_size(e)
    if rows < 0 or mul_overflow(n, rows, &nbytes) or mul_overflow(nbytes, size, &nbytes) or t.nbytes != <size_t>nbytes:
        return fail_size(e)
    if n > MAX_ROW:
        return tf_fail(e, TF_INVALID_ARG, b"classification output tensor too large")
    k = <uint32_t>n if classes > <uint32_t>n else classes
    dims = <int64_t*>request_alloc(r, 2 * sizeof(int64_t))
    heap = <uint32_t*>malloc((<size_t>k + 1) * sizeof(uint32_t))
    if dims == NULL or heap == NULL:
        free(heap)
        return no_memory(e)
    memset(&out, 0, sizeof(out))
    if k:
        for row in range(rows):
            status = classify_typed(t.dtype, t.ptr + row * n * size, <uint32_t>n, k, heap, table, &out)
            if status:
                break
    free(heap)
    block = NULL
    if status == 0:
        block = block_new(out.len)
    if block == NULL:
        tf_buf_free(&out)
        return no_memory(e)
    if out.len:
        memcpy(block.data, out.data, out.len)
    block_unref(t.block)
    t.block = block
    t.ptr = block.data
    t.nbytes = out.len
    t.kind = MEM_CPU
    t.device = 0
    t.dtype = DT_STRING
    t.dims = dims
    dims[0] = rows
    dims[first] = k
    t.ndim = first + 1
    tf_buf_free(&out)
    return 0


cdef int reply_classify(Response* p, LabelTable** labels, tf_error* e) noexcept nogil:
    cdef Request* r = p.request
    cdef int32_t i, j, index
    for i in range(r.n_wanted):
        if r.wanted[i].classes == 0:
            continue
        index = r.wanted[i].index
        for j in range(p.n_outputs):
            if p.outputs[j].index == index:
                if classify(r, &p.outputs[j], r.wanted[i].classes,
                            labels[index] if labels != NULL and 0 <= index < r.model.n_outputs else NULL, e):
                    return -1
                break
        if r.parent == NULL:
            r.wanted[i].classes = 0
    return 0
