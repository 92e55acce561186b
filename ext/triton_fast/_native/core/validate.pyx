# A decoded request against its model, for every protocol: names, counts, datatypes, shapes, byte sizes, strings.
# Knows no protocol. Everything runs without the GIL; only the test entries at the end touch Python objects.
import os

from libc.stdint cimport INT64_MAX, UINT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport bsearch, free, malloc, qsort
from libc.string cimport memcmp, memcpy, memset, strlen

from triton_fast._native.core.memory cimport block_new
from triton_fast._native.core.native cimport (
    DT_STRING, MEM_GPU, TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE, dtype_name, dtype_size, tf_error, tf_fail,
)
from triton_fast._native.core.model cimport MAX_RANK, IoSpec, Model, ModelHandle
from triton_fast._native.core.regions cimport lent_settle
from triton_fast._native.core.request cimport Request, request_alloc, request_free, request_new
from triton_fast._native.core.shape cimport mul_overflow
from triton_fast._native.core.tensor cimport MAX_TENSORS, Tensor, Wanted

from triton_fast.errors import make

cdef extern from "tf_error.h" nogil:
    enum: TF_ERROR_TEXT

# Names are matched by scanning up to this many, by sorting above it: a client picks the count.
cdef enum:
    SMALL = 32

# What Tensor and Wanted both begin with, so that one resolver serves both.
cdef struct Named:
    const char* name
    uint32_t name_len
    int32_t index

# The shape key is seeded: nobody outside can make two shapes share one.
cdef uint64_t key_seed = int.from_bytes(os.urandom(8), "little")


# --- error texts; cold ------------------------------------------------------------------------------------------------

cdef void put(tf_error* e, const char* text, size_t n) noexcept nogil:
    cdef size_t room = TF_ERROR_TEXT - 1 - e.len
    if n > room:
        n = room
    if n:
        memcpy(e.text + e.len, text, n)
    e.len += <uint32_t>n
    e.text[e.len] = 0


cdef inline bint full(tf_error* e) noexcept nogil:
    return e.len >= TF_ERROR_TEXT - 1


cdef void lit(tf_error* e, const char* text) noexcept nogil:
    put(e, text, strlen(text))


cdef void number(tf_error* e, int64_t v) noexcept nogil:
    cdef char digits[24]
    put(e, digits, <size_t>snprintf(digits, sizeof(digits), "%lld", <long long>v))


cdef void shape(tf_error* e, int64_t* dims, int32_t n, bint batched) noexcept nogil:
    cdef int32_t i
    lit(e, b"[-1" if batched else b"[")
    for i in range(n):
        if full(e):
            break
        if i or batched:
            lit(e, b",")
        number(e, dims[i])
    lit(e, b"]")


cdef void begin(tf_error* e) noexcept nogil:
    e.code = TF_INVALID_ARG
    e.len = 0


cdef void begin_with_id(Request* r, tf_error* e) noexcept nogil:
    begin(e)
    lit(e, b"[request id: ")
    if r.id_len:
        put(e, r.id, r.id_len)
    else:
        lit(e, b"<id_unknown>")
    lit(e, b"] ")


# "<what>'<name>'<and_then>"
cdef void about(tf_error* e, const char* what, const char* name, size_t n, const char* and_then) noexcept nogil:
    lit(e, what)
    lit(e, b"'")
    put(e, name, n)
    lit(e, b"'")
    lit(e, and_then)


# "<what>'<model>'<and_then>"; always the last part of a text.
cdef int for_model(Request* r, tf_error* e, const char* what, const char* and_then) noexcept nogil:
    about(e, what, r.model.name, r.model.name_len, and_then)
    return -1


cdef int no_memory(tf_error* e) noexcept nogil:
    return tf_fail(e, TF_UNAVAILABLE, b"out of memory while validating the request")


cdef int fail_count(Request* r, tf_error* e) noexcept nogil:
    cdef Model* m = r.model
    cdef int32_t i
    cdef bint first = True
    begin_with_id(r, e)
    if m.n_required == m.n_inputs:
        lit(e, b"expected ")
        number(e, m.n_inputs)
        lit(e, b" inputs but got ")
    else:
        lit(e, b"expected number of inputs between ")
        number(e, m.n_required)
        lit(e, b" and ")
        number(e, m.n_inputs)
        lit(e, b" but got ")
    number(e, r.n_inputs)
    for_model(r, e, b" inputs for model ", b". Got input(s) [")
    for i in range(r.n_inputs):
        if full(e):
            break
        about(e, b"," if i else b"", r.inputs[i].name, r.inputs[i].name_len, b"")
    lit(e, b"], but missing required input(s) [")
    for i in range(m.n_inputs):
        if not m.inputs[i].optional and r.by_index[i] == NULL:
            about(e, b"" if first else b",", m.inputs[i].name, m.inputs[i].name_len, b"")
            first = False
    lit(e, b"]. Please provide all required input(s).")
    return -1


cdef int fail_dtype(Request* r, Tensor* t, int32_t wanted, tf_error* e) noexcept nogil:
    begin_with_id(r, e)
    about(e, b"inference input ", t.name, t.name_len, b" data-type is '")
    lit(e, dtype_name(t.dtype))
    for_model(r, e, b"', but model ", b" expects '")
    lit(e, dtype_name(wanted))
    lit(e, b"'")
    return -1


cdef int fail_shape(Request* r, Tensor* t, tf_error* e) noexcept nogil:
    cdef IoSpec* s = &r.model.inputs[t.index]
    begin_with_id(r, e)
    about(e, b"unexpected shape for input ", t.name, t.name_len, b"")
    for_model(r, e, b" for model ", b". Expected ")
    shape(e, s.dims, s.ndim, r.model.max_batch > 0)
    lit(e, b", got ")
    shape(e, t.dims, t.ndim, False)
    lit(e, b". ")
    if r.model.max_batch > 0:
        lit(e, b"NOTE: Setting a non-zero max_batch_size in the model config requires a batch dimension to be "
               b"prepended to each input shape. If you want to specify the full shape including the batch dim in your "
               b"input dims config, try setting max_batch_size to zero. See the model configuration docs for more "
               b"info on max_batch_size.")
    return -1


cdef int fail_negative(Request* r, Tensor* t, int64_t dim, tf_error* e) noexcept nogil:
    if dim != -1:
        begin(e)
        about(e, b"invalid shape for input ", t.name, t.name_len, b": shape ")
        shape(e, t.dims, t.ndim, False)
        lit(e, b" contains one or more invalid dimensions")
        return -1
    begin_with_id(r, e)
    about(e, b"All input dimensions should be specified for input ", t.name, t.name_len, b"")
    for_model(r, e, b" for model ", b", got ")
    shape(e, t.dims, t.ndim, False)
    return -1


cdef int fail_elements(Tensor* t, tf_error* e) noexcept nogil:
    begin(e)
    about(e, b"invalid shape for input ", t.name, t.name_len, b": shape ")
    shape(e, t.dims, t.ndim, False)
    lit(e, b" causes total element count to exceed maximum size of ")
    number(e, INT64_MAX)
    return -1


cdef int fail_byte_overflow(Tensor* t, int64_t count, tf_error* e) noexcept nogil:
    begin(e)
    about(e, b"byte size overflow for input ", t.name, t.name_len, b": element count (")
    number(e, count)
    lit(e, b") * data type size (")
    number(e, dtype_size(t.dtype))
    lit(e, b") exceeds maximum allowed size (")
    number(e, INT64_MAX)
    lit(e, b")")
    return -1


cdef int fail_bytes(Request* r, Tensor* t, int64_t expected, tf_error* e) noexcept nogil:
    begin_with_id(r, e)
    about(e, b"input byte size mismatch for input ", t.name, t.name_len, b"")
    for_model(r, e, b" for model ", b". Expected ")
    number(e, expected)
    lit(e, b", got ")
    number(e, <int64_t>t.nbytes)
    return -1


# --- names ------------------------------------------------------------------------------------------------------------

cdef inline bint same(const char* a, uint32_t na, const char* b, uint32_t nb) noexcept nogil:
    return na == nb and memcmp(a, b, na) == 0


cdef int compare(const char* a, uint32_t na, const char* b, uint32_t nb) noexcept nogil:
    if na != nb:
        return -1 if na < nb else 1
    return memcmp(a, b, na)


# Order of Named*: by name, then by place in the request.
cdef int compare_named(const void* a, const void* b) noexcept nogil:
    cdef Named* x = (<Named**>a)[0]
    cdef Named* y = (<Named**>b)[0]
    cdef int c = compare(x.name, x.name_len, y.name, y.name_len)
    if c == 0 and x != y:
        return -1 if x < y else 1
    return c


cdef int compare_spec(const void* key, const void* item) noexcept nogil:
    cdef IoSpec* s = <IoSpec*>key
    cdef Named* y = (<Named**>item)[0]
    return compare(s.name, s.name_len, y.name, y.name_len)


# Set the index of n Named at base, stride bytes apart; -1 for names the model does not have. Returns 0; 1 with *again
# set to a name that came twice; -1 when memory ran out. O(n log n) names compared, whatever the client sends.
cdef int resolve(char* base, size_t stride, int32_t n, IoSpec* specs, int32_t n_specs, Named** again) noexcept nogil:
    cdef int32_t i, j
    cdef Named* a
    cdef Named* b
    cdef Named** order
    cdef Named** hit
    cdef int status = 0
    for i in range(n):
        a = <Named*>(base + <size_t>i * stride)
        if i >= n_specs or not same(a.name, a.name_len, specs[i].name, specs[i].name_len):
            break
        a.index = i
    else:
        return 0
    for i in range(n):
        (<Named*>(base + <size_t>i * stride)).index = -1
    if n <= SMALL and n_specs <= SMALL:
        for i in range(n):
            a = <Named*>(base + <size_t>i * stride)
            for j in range(n_specs):
                if same(a.name, a.name_len, specs[j].name, specs[j].name_len):
                    a.index = j
                    break
            for j in range(i):
                b = <Named*>(base + <size_t>j * stride)
                if a.index == b.index and same(a.name, a.name_len, b.name, b.name_len):
                    again[0] = a
                    return 1
        return 0
    order = <Named**>malloc(<size_t>n * sizeof(Named*))
    if order == NULL:
        return -1
    for i in range(n):
        order[i] = <Named*>(base + <size_t>i * stride)
    qsort(order, <size_t>n, sizeof(Named*), compare_named)
    for i in range(1, n):
        if same(order[i].name, order[i].name_len, order[i - 1].name, order[i - 1].name_len):
            again[0] = order[i]
            status = 1
            break
    else:
        for j in range(n_specs):
            hit = <Named**>bsearch(&specs[j], order, <size_t>n, sizeof(Named*), compare_spec)
            if hit != NULL:
                hit[0].index = j
    free(order)
    return status


cdef int resolve_names(Request* r, tf_error* e) noexcept nogil:
    cdef Model* m = r.model
    cdef Named* again = NULL
    cdef int32_t i
    cdef int status
    if r.n_inputs < 0 or r.n_inputs > MAX_TENSORS or r.n_wanted < 0 or r.n_wanted > MAX_TENSORS:
        return tf_fail(e, TF_INVALID_ARG, b"a request may name at most %d inputs and as many outputs", <int>MAX_TENSORS)
    status = resolve(<char*>r.inputs, sizeof(Tensor), r.n_inputs, m.inputs, m.n_inputs, &again)
    if status == 0:
        status = resolve(<char*>r.wanted, sizeof(Wanted), r.n_wanted, m.outputs, m.n_outputs, &again)
        if status == 1:
            begin_with_id(r, e)
            about(e, b"output ", again.name, again.name_len, b" already exists in request")
            return -1
    elif status == 1:
        begin_with_id(r, e)
        about(e, b"input ", again.name, again.name_len, b" already exists in request")
        return -1
    if status < 0:
        return no_memory(e)
    for i in range(r.n_wanted):
        if r.wanted[i].index < 0:
            begin(e)
            about(e, b"unexpected inference output ", r.wanted[i].name, r.wanted[i].name_len, b"")
            return for_model(r, e, b" for model ", b"")
    r.by_index = <Tensor**>request_alloc(r, <size_t>(m.n_inputs + 1) * sizeof(Tensor*))
    if r.by_index == NULL:
        return no_memory(e)
    memset(r.by_index, 0, <size_t>(m.n_inputs + 1) * sizeof(Tensor*))
    for i in range(r.n_inputs):
        if r.inputs[i].index >= 0:
            r.by_index[r.inputs[i].index] = &r.inputs[i]
    return 0


# Every required input present, no unknown one.
cdef int check_presence(Request* r, tf_error* e) noexcept nogil:
    cdef Model* m = r.model
    cdef int32_t i
    if r.n_inputs > m.n_inputs or r.n_inputs < m.n_required:
        return fail_count(r, e)
    for i in range(r.n_inputs):
        if r.inputs[i].index < 0:
            begin(e)
            about(e, b"unexpected inference input ", r.inputs[i].name, r.inputs[i].name_len, b"")
            return for_model(r, e, b" for model ", b"")
    if r.n_inputs < m.n_inputs:
        for i in range(m.n_inputs):
            if r.by_index[i] == NULL and not m.inputs[i].optional:
                return fail_count(r, e)
    return 0


# --- shapes and sizes -------------------------------------------------------------------------------------------------

cdef int check_batch(Request* r, tf_error* e) noexcept nogil:
    cdef Tensor* t
    cdef int32_t i
    cdef int64_t most = max(r.model.max_batch, r.model.split_rows)
    r.batch = 1
    if r.model.max_batch <= 0:
        return 0
    for i in range(r.n_inputs):
        t = &r.inputs[i]
        if t.ndim <= 0:
            begin_with_id(r, e)
            about(e, b"input ", t.name, t.name_len, b" has no shape but model requires batch dimension")
            return for_model(r, e, b" for ", b"")
        if t.dims[0] < 0:
            return fail_negative(r, t, t.dims[0], e)
        if i == 0:
            r.batch = t.dims[0]
        elif t.dims[0] != r.batch:
            begin_with_id(r, e)
            about(e, b"input ", t.name, t.name_len, b" batch size does not match other inputs")
            return for_model(r, e, b" for ", b"")
    if r.batch > most:
        begin_with_id(r, e)
        lit(e, b"inference request batch-size must be <= ")
        number(e, most)
        return for_model(r, e, b" for ", b"")
    return 0


cdef int fail_strings(Request* r, Tensor* t, int64_t count, const char* got, int64_t seen, tf_error* e) noexcept nogil:
    begin_with_id(r, e)
    lit(e, b"expected ")
    number(e, count)
    about(e, b" string elements for inference input ", t.name, t.name_len, b"")
    for_model(r, e, b" for model ", got)
    number(e, seen)
    return -1


# The wire form of STRING: uint32 little-endian length and bytes, count times, and nothing after.
cdef int check_strings(Request* r, Tensor* t, int64_t count, tf_error* e) noexcept nogil:
    cdef const uint8_t* p = t.ptr
    cdef size_t left = t.nbytes
    cdef int64_t seen = 0
    cdef uint32_t n = 0
    cdef size_t short_by = 0
    while left:
        if left < 4:
            begin_with_id(r, e)
            about(e, b"incomplete string length indicator for inference input ", t.name, t.name_len, b"")
            for_model(r, e, b" for model ", b", expecting 4 bytes but only ")
            number(e, <int64_t>left)
            lit(e, b" bytes available. Please make sure the string length indicator is in one buffer.")
            return -1
        memcpy(&n, p, 4)
        seen += 1
        if seen > count:
            begin_with_id(r, e)
            lit(e, b"unexpected number of string elements ")
            number(e, seen)
            about(e, b" for inference input ", t.name, t.name_len, b"")
            for_model(r, e, b" for model ", b", expecting ")
            number(e, count)
            return -1
        p += 4
        left -= 4
        if n > left:
            short_by = n - left
            break
        p += n
        left -= n
    if seen != count:
        return fail_strings(r, t, count, b", got ", seen, e)
    if short_by:
        begin(e)
        about(e, b"incomplete string data for inference input ", t.name, t.name_len, b", expecting string of length ")
        number(e, n)
        lit(e, b" but only ")
        number(e, <int64_t>left)
        lit(e, b" bytes available")
        return -1
    return 0


cdef int check_input(Request* r, Tensor* t, tf_error* e) noexcept nogil:
    cdef IoSpec* s = &r.model.inputs[t.index]
    cdef int32_t skip = 1 if r.model.max_batch > 0 else 0
    cdef int32_t i
    cdef int64_t dim
    # A batch of 0 rows is checked as one row, as Triton does, and refused at the end.
    cdef int64_t count = r.batch if r.batch > 0 else 1
    cdef int64_t nbytes = 0
    cdef bint empty = False
    if t.dtype != s.dtype:
        return fail_dtype(r, t, s.dtype, e)
    if t.ndim > MAX_RANK or t.ndim - skip != s.ndim:
        return fail_shape(r, t, e)
    for i in range(s.ndim):
        dim = t.dims[i + skip]
        if dim < 0:
            return fail_negative(r, t, dim, e)
        if s.dims[i] != dim and s.dims[i] >= 0:
            return fail_shape(r, t, e)
        if dim == 0:
            empty = True
        # The product of the other dims must fit even when one is 0: batch assembly multiplies them in its own order.
        elif mul_overflow(count, dim, &count):
            return fail_elements(t, e)
    if t.dtype == DT_STRING:
        if t.kind == MEM_GPU:       # cannot be walked from here; but there must be room for as many
            nbytes = <int64_t>(t.nbytes // 4)
            return 0 if empty or count <= nbytes else fail_strings(r, t, count, b", got at most ", nbytes, e)
        # Where its client may still write, lengths that were checked may be others by the time they are used.
        if t.block != NULL and lent_settle(r, t, e) != 0:
            return -1
        return check_strings(r, t, 0 if empty else count, e)
    if mul_overflow(count, dtype_size(t.dtype), &nbytes):
        return fail_byte_overflow(t, count, e)
    if empty:
        nbytes = 0
    if t.nbytes != <size_t>nbytes:
        return fail_bytes(r, t, nbytes, e)
    return 0


cdef inline uint64_t mix(uint64_t h, uint64_t v) noexcept nogil:
    h ^= v
    h ^= h >> 31
    h *= <uint64_t>0x9FB21C651E98DF25
    h ^= h >> 29
    h *= <uint64_t>0xD6E8FEB86659FD93
    return h ^ (h >> 32)


# Requests whose keys are equal may share a batch: same optional inputs present, same variable dims outside ragged ones.
cdef uint64_t make_shape_key(Request* r) noexcept nogil:
    cdef Model* m = r.model
    cdef int32_t skip = 1 if m.max_batch > 0 else 0
    cdef int32_t i, j
    cdef IoSpec* s
    cdef Tensor* t
    cdef uint64_t h = key_seed
    for i in range(m.n_inputs):
        s = &m.inputs[i]
        t = r.by_index[i]
        if s.optional:
            h = mix(h, t != NULL)
        if t == NULL or s.ragged:
            continue
        for j in range(s.ndim):
            if s.dims[j] < 0:
                h = mix(h, <uint64_t>t.dims[j + skip])
    return h if h else 1


cdef int request_validate(Request* r, tf_error* e) noexcept nogil:
    cdef int32_t i
    if resolve_names(r, e) or check_presence(r, e) or check_batch(r, e):
        return -1
    for i in range(r.n_inputs):
        if check_input(r, &r.inputs[i], e):
            return -1
    if r.batch == 0:
        begin_with_id(r, e)
        lit(e, b"inference request batch-size must be >= 1")
        return for_model(r, e, b" for ", b"")
    r.shape_key = make_shape_key(r) if r.model.has_shape_key else 0
    return 0


# --- raw binary mode --------------------------------------------------------------------------------------------------

cdef int request_from_raw(Request* r, const char* data, size_t n, tf_error* e) noexcept nogil:
    cdef Model* m = r.model
    cdef IoSpec* s
    cdef Tensor* t
    cdef int32_t i, skip = 1 if m.max_batch > 0 else 0
    cdef int32_t variable = -1
    cdef int64_t count = 1
    cdef int64_t row = 0
    cdef uint32_t prefix
    if m.n_inputs != 1:
        begin_with_id(r, e)
        lit(e, b"Raw request must only have 1 input (found 1) to be deduced but got ")
        number(e, m.n_inputs)
        return for_model(r, e, b" inputs in ", b" model configuration")
    s = &m.inputs[0]
    t = <Tensor*>request_alloc(r, sizeof(Tensor))
    if t == NULL:
        return no_memory(e)
    memset(t, 0, sizeof(Tensor))
    t.dims = <int64_t*>request_alloc(r, <size_t>(s.ndim + skip + 1) * sizeof(int64_t))
    if t.dims == NULL:
        return no_memory(e)
    t.dims[0] = 1
    for i in range(s.ndim):
        t.dims[i + skip] = s.dims[i]
        if s.dims[i] < 0:
            if variable >= 0:
                begin_with_id(r, e)
                about(e, b"The shape of the raw input ", s.name, s.name_len,
                      b" can not be deduced because there are more than one variable-sized dimension")
                return -1
            variable = i + skip
        elif mul_overflow(count, s.dims[i], &count):
            return tf_fail(e, TF_INTERNAL, b"the configured dims of the model's input are too large")
    t.name = s.name
    t.name_len = s.name_len
    t.index = 0
    t.dtype = s.dtype
    t.ndim = s.ndim + skip
    if s.dtype == DT_STRING:
        if variable >= 0 or count != 1:
            begin_with_id(r, e)
            about(e, b"For BYTE datatype raw input ", s.name, s.name_len, b", the model must have input shape [1]")
            return -1
        if n > UINT32_MAX:
            begin_with_id(r, e)
            about(e, b"raw input ", s.name, s.name_len, b" must not be longer than 4294967295 bytes")
            return -1
        # The length prefix has to stand before the bytes, so this one datatype is copied.
        t.block = block_new(n + 4)
        if t.block == NULL:
            return no_memory(e)
        prefix = <uint32_t>n
        memcpy(t.block.data, &prefix, 4)
        if n:
            memcpy(t.block.data + 4, data, n)
        t.ptr = t.block.data
        t.nbytes = n + 4
    else:
        t.ptr = <uint8_t*>data
        t.nbytes = n
        if variable >= 0:
            if not mul_overflow(count, dtype_size(s.dtype), &row) and row > 0:
                t.dims[variable] = <int64_t>(n / <size_t>row)
            else:
                t.dims[variable] = 0
    r.inputs = t
    r.n_inputs = 1
    r.binary_default = 1
    return 0


# --- tests ------------------------------------------------------------------------------------------------------------

include "validate_entry.pxi"
