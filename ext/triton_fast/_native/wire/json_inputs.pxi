# Part of json_infer.pyx: the "inputs" member: names, shapes, datatypes, data as JSON or as binary bytes.
# Knows nothing of the other members of the document.


# ---- parameters of an input or output ----

cdef int read_extras(Decoder* d, Extras* x) noexcept nogil:
    cdef tf_json_str key
    cdef int first = 1, rc
    if d.c.p[0] != c'{':
        return tf_json_skip(&d.c, MAX_DEPTH)    # the real server takes no notice of parameters that are no object
    while True:
        rc = tf_json_member(&d.c, &first, &key)
        if rc <= 0:
            return rc
        if settle(d, &key):
            return -1
        # Of members with the same name the first counts.
        if is_key(&key, b"binary_data_size", 16) and not x.binary_size:
            rc = read_uint(d, &x.binary_size_value, &x.binary_size)
        elif is_key(&key, b"binary_data", 11) and not x.binary:
            rc = read_bool(d, &x.binary_value, &x.binary)
        elif is_key(&key, b"classification", 14) and not x.classes:
            rc = read_uint(d, &x.classes_value, &x.classes)
        elif is_key(&key, b"shared_memory_region", 20) and not x.region:
            rc = read_text(d, &x.region_text, &x.region)
        elif is_key(&key, b"shared_memory_offset", 20) and not x.offset:
            rc = read_uint(d, &x.offset_value, &x.offset)
        elif is_key(&key, b"shared_memory_byte_size", 23) and not x.byte_size:
            rc = read_uint(d, &x.byte_size_value, &x.byte_size)
        else:
            rc = tf_json_skip(&d.c, MAX_DEPTH)
        if rc:
            return -1


# What an input or output says of shared memory. Of an output, wanted is its place; *lent stays NULL without a region.
cdef int take_region(Decoder* d, Extras* x, int32_t wanted, Lent** lent) noexcept nogil:
    if x.region == WRONG:
        return tf_fail(d.e, TF_INTERNAL, NON_STRING, <char*>b"shared_memory_region")
    if x.offset == WRONG:
        return tf_fail(d.e, TF_INTERNAL, NON_UINT, <char*>b"shared_memory_offset")
    if x.byte_size == WRONG:
        return tf_fail(d.e, TF_INTERNAL, NON_UINT, <char*>b"shared_memory_byte_size")
    if x.region == GOOD:
        lent[0] = region_lend(d.regions, d.r, x.region_text.ptr, x.region_text.len, x.offset_value if x.offset else 0,
                              x.byte_size_value if x.byte_size else 0, wanted, d.e)
        if lent[0] == NULL:
            return -1
    return 0


# ---- inputs ----

cdef int read_shape(Decoder* d, Input* t) noexcept nogil:
    cdef int first = 1, rc, found
    cdef uint64_t v
    cdef const char* start = d.c.p
    if start[0] != c'[':
        t.has_shape = WRONG
        return tf_json_skip(&d.c, MAX_DEPTH)
    t.has_shape = GOOD
    t.ndim = 0
    while True:
        rc = tf_json_element(&d.c, &first)
        if rc <= 0:
            return rc
        if read_uint(d, &v, &found):
            return -1
        if found == WRONG:
            t.has_shape = WRONG
            t.ndim = -1                         # tells a wrong element from a shape that is no array
        elif t.has_shape == GOOD:
            if t.ndim == MAX_RANK:
                t.has_shape = TOO_MANY
            else:
                t.dims[t.ndim] = <int64_t>v     # past 2^63 - 1 it turns negative and is refused below
                t.ndim += 1


# The product of the dims: -2 a negative one, -3 past int64. No dims make 1 element; the real server says 0, and takes
# any data for it.
cdef int64_t count_elements(const Input* t) noexcept nogil:
    cdef int64_t n = 1
    cdef int32_t i
    for i in range(t.ndim):
        if t.dims[i] < 0:
            return -2
        if t.dims[i] == 0:
            return 0
        if n > INT64_MAX // t.dims[i]:
            return -3
        n *= t.dims[i]
    return n if t.ndim else 0


cdef inline const char* pick(bint wanted, const char* text) noexcept nogil:
    return text if wanted else <const char*>b""


cdef int bad_shape(Decoder* d, Input* t, int64_t why) noexcept nogil:
    cdef char dims[1024]
    cdef size_t n = 0
    cdef int32_t i
    dims[0] = 0
    for i in range(t.ndim):
        n += <size_t>snprintf(dims + n, sizeof(dims) - n, b"%s%lld", pick(i > 0, b","), <long long>t.dims[i])
        if n >= sizeof(dims) - 32:
            break
    if why == -2:
        return tf_fail(d.e, TF_INVALID_ARG,
                       b"invalid shape for input '%.*s': shape [%s] contains one or more invalid dimensions",
                       cut(t.name.len), t.name.ptr, dims)
    return tf_fail(d.e, TF_INVALID_ARG,
                   b"invalid shape for input '%.*s': shape [%s] causes total element count to exceed "
                   b"maximum size of 9223372036854775807", cut(t.name.len), t.name.ptr, dims)


# Memory for n bytes of JSON data: the arena when small, else a block that the input then owns.
cdef int room(Decoder* d, Input* t, size_t n) noexcept nogil:
    if n <= INLINE_BYTES:
        t.ptr = <uint8_t*>request_alloc(d.r, n)
    else:
        t.block = block_new(n)
        t.ptr = t.block.data if t.block != NULL else NULL
    return 0 if t.ptr != NULL else out_of_memory(d)


cdef int too_large(Decoder* d, Input* t, uint64_t n) noexcept nogil:
    if d.flat:
        return tf_fail(d.e, TF_INVALID_ARG,
                       b"request size of %llu bytes with input '%.*s' of size %llu bytes exceeds the maximum allowed "
                       b"input size of %llu. Use --http-max-input-size to increase the limit.", <unsigned long long>n,
                       cut(t.name.len), t.name.ptr, <unsigned long long>(n - d.decoded),
                       <unsigned long long>d.max_input)
    return tf_fail(d.e, TF_INVALID_ARG,
                   b"JSON input '%.*s' has a byte_size (%llu bytes) that exceeds the maximum allowed "
                   b"value of %llu bytes. Use --http-max-input-size to increase the limit.",
                   cut(t.name.len), t.name.ptr, <unsigned long long>n, <unsigned long long>d.max_input)


cdef int bad_data(Decoder* d, int32_t dtype, int why) noexcept nogil:
    cdef const char* what = b"attempt to access JSON non-unsigned-integer as unsigned-integer"
    cdef char kind = dtype_kind(dtype)
    if why == TFJ_A_DEEP:
        d.c.reason = TFJ_DEEP                   # final: nothing after it is looked at
        d.deep_said = True
        return tf_fail(d.e, TF_INVALID_ARG, b"%sJSON nesting depth exceeds maximum allowed limit (%d)",
                       pick(dtype != DT_STRING, b"Unable to parse 'data': "), <int>TFJ_MAX_NESTING)
    if dtype == DT_STRING:
        return tf_fail(d.e, TF_INTERNAL,
                       b"Unable to parse JSON bytes array: attempt to access JSON non-string as string")
    if why == TFJ_A_MORE:
        return tf_fail(d.e, TF_INTERNAL, b"Unable to parse 'data': Shape does not match true shape of 'data' field")
    if kind == c'f':
        what = b"attempt to access JSON non-number as double"
    elif kind == c'i':
        what = b"attempt to access JSON non-signed-integer as signed-integer"
    elif kind == c'b':
        what = b"attempt to access JSON non-boolean as boolean"
    return tf_fail(d.e, TF_INTERNAL, b"Unable to parse 'data': %s", what)


cdef int read_strings(Decoder* d, Input* t, int64_t n) noexcept nogil:
    cdef tf_json_bytes b
    cdef int why
    cdef size_t left = <size_t>(d.c.lim - d.c.p), total
    cdef Block* block
    memset(&b, 0, sizeof(b))
    # A guess; an element takes at least 3 characters, so that 4/3 of the text left is always enough.
    # Not more at first: a request may promise this for each of many inputs.
    b.cap = <size_t>n * 32 if n < 1 << 11 else <size_t>1 << 16
    if b.cap > left + left // 2 + 8:
        b.cap = left + left // 2 + 8
    if room(d, t, b.cap):
        return -1
    if t.block != NULL:
        b.cap = t.block.cap
    b.out = t.ptr
    while tf_json_strings(&d.c, &b, &why):
        if d.c.reason:
            return -1
        if why != TFJ_A_ROOM:
            return bad_data(d, DT_STRING, why)
        b.need += b.len
        block = block_new(b.need if b.need > 2 * b.cap else 2 * b.cap)
        if block == NULL:
            return out_of_memory(d)
        memcpy(block.data, b.out, b.len)
        block_unref(t.block)
        t.block = block
        t.ptr = block.data
        b.out = block.data
        b.cap = block.cap
    t.nbytes = b.len
    total = d.decoded + b.len
    if total > d.max_input:
        return too_large(d, t, total)
    d.decoded = total
    if <uint64_t>b.count != <uint64_t>n and d.odd_input < 0:
        d.odd_input = d.r.n_inputs
        d.odd_expected = n
        d.odd_got = <int64_t>b.count
    return 0


# The value of "data" at d.c.p. -1 without a reason is an error of meaning.
cdef int read_data(Decoder* d, Input* t) noexcept nogil:
    cdef int64_t n = count_elements(t)
    cdef int why = 0
    cdef int32_t size = dtype_size(t.dtype)
    cdef size_t count, fits, total
    t.filled = True
    if n == 0:
        if tf_json_skip(&d.c, TFJ_MAX_NESTING):         # the real server does not look at it
            return -1 if d.c.reason != TFJ_DEEP else bad_data(d, t.dtype, TFJ_A_DEEP)
        return 0
    if n < 0:
        return bad_shape(d, t, n)
    if d.c.p[0] != c'[':
        return tf_fail(d.e, TF_INTERNAL, NON_ARRAY, <char*>b"data")
    if t.dtype == DT_STRING:
        return read_strings(d, t, n)
    if size > 1 and n > INT64_MAX // size:
        return tf_fail(d.e, TF_INVALID_ARG,
                       b"byte size overflow for input '%.*s': element count (%lld) * data type size "
                       b"(%d) exceeds maximum allowed size (9223372036854775807)", cut(t.name.len), t.name.ptr,
                       <long long>n, <int>size)
    total = <size_t>n * <size_t>size
    if total > d.max_input - d.decoded:
        # decoded <= max_input < 2^63 and total < 2^63: the sum does not wrap.
        return too_large(d, t, <uint64_t>total + <uint64_t>d.decoded)
    if t.dtype == DT_FP16 or t.dtype == DT_BF16:
        return tf_fail(d.e, TF_INVALID_ARG, b"receiving %s data via JSON is not supported. Please use the binary data "
                       b"format for input %.*s", dtype_name(t.dtype), cut(t.name.len), t.name.ptr)
    if t.dtype == DT_INVALID:
        return tf_fail(d.e, TF_INVALID_ARG, b"invalid datatype for input %.*s", cut(t.name.len), t.name.ptr)
    # An element takes two characters at least: a shape that promises more than the text can hold gets no memory for it.
    fits = <size_t>(d.c.lim - d.c.p) // 2 + 1
    if <size_t>n < fits:
        fits = <size_t>n
    if room(d, t, fits * <size_t>size):
        return -1
    if tf_json_numbers(&d.c, dtype_kind(t.dtype), size, t.ptr, fits, &count, &why):
        return -1 if d.c.reason else bad_data(d, t.dtype, why)
    if count != <size_t>n:
        return tf_fail(d.e, TF_INTERNAL, b"Failed to parse 'data' field: shape does not match true shape")
    t.nbytes = total
    d.decoded += total
    return 0


# "data" met in order: decode it at once when all that it needs is known and nothing wrong yet.
cdef inline bint ready_for_data(const Input* t) noexcept nogil:
    return t.has_name == GOOD and t.has_datatype == GOOD and t.has_shape == GOOD and \
        not t.extras.binary_size and not t.extras.region


# Read the members of the input at d.c.p. early: decode data where it stands, if possible.
cdef int read_input(Decoder* d, Input* t, bint early) noexcept nogil:
    cdef tf_json_str key
    cdef int first = 1, rc
    if d.c.p[0] != c'{':
        return tf_json_skip(&d.c, MAX_DEPTH)    # an input that is no object has no member
    while True:
        rc = tf_json_member(&d.c, &first, &key)
        if rc <= 0:
            return rc
        if settle(d, &key):
            return -1
        if is_key(&key, b"name", 4) and not t.has_name:
            rc = read_text(d, &t.name, &t.has_name)
        elif is_key(&key, b"data", 4) and t.data == NULL:
            t.data = d.c.p
            if early and ready_for_data(t):
                rc = read_data(d, t)
            else:
                rc = tf_json_skip(&d.c, TFJ_MAX_NESTING)
                if d.c.reason == TFJ_DEEP:
                    return bad_data(d, t.dtype, TFJ_A_DEEP)
        elif is_key(&key, b"shape", 5) and not t.has_shape:
            rc = read_shape(d, t)
        elif is_key(&key, b"datatype", 8) and not t.has_datatype:
            rc = read_text(d, &t.datatype, &t.has_datatype)
            if rc == 0 and t.has_datatype == GOOD:
                t.dtype = dtype_of(&t.datatype)
        elif is_key(&key, b"parameters", 10) and not t.has_params:
            t.has_params = True
            rc = read_extras(d, &t.extras)
        else:
            rc = tf_json_skip(&d.c, MAX_DEPTH)
        if rc:
            return -1


# Check what read_input found, in the real server's order, and fetch what is still outside: late data, binary bytes.
cdef int finish_input(Decoder* d, Input* t) noexcept nogil:
    cdef Extras* x = &t.extras
    cdef bint has_data = t.data != NULL
    cdef uint64_t size
    cdef size_t left
    cdef const char* resume
    cdef Lent* lent = NULL
    cdef int rc
    if has_data + (x.binary_size != 0) + (x.region != 0) != 1:
        if not has_data and not x.binary_size and not x.region:
            return tf_fail(d.e, TF_INVALID_ARG, b"Input must set only one of the following fields: 'data', "
                           b"'binary_data_size' in 'parameters', 'shared_memory_region' in 'parameters'. "
                           b"But no field is set")
        return tf_fail(d.e, TF_INVALID_ARG,
                       b"Input must set only one of the following fields: 'data', 'binary_data_size' "
                       b"in 'parameters', 'shared_memory_region' in 'parameters'. But set%s%s%s",
                       pick(has_data, b" 'data'"), pick(x.binary_size != 0, b" 'binary_data_size'"),
                       pick(x.region != 0, b" 'shared_memory_region'"))
    if t.has_name != GOOD:
        return missing(d, b"name", NON_STRING, t.has_name)
    if t.has_datatype != GOOD:
        return missing(d, b"datatype", NON_STRING, t.has_datatype)
    if t.has_shape == TOO_MANY:
        return tf_fail(d.e, TF_INVALID_ARG, b"invalid shape for input '%.*s': it has more than %d dimensions",
                       cut(t.name.len), t.name.ptr, <int>MAX_RANK)
    if t.has_shape != GOOD:
        return missing(d, b"shape", NON_UINT if t.ndim < 0 else NON_ARRAY, t.has_shape)
    rc = tf_json_names_add(&d.names, t.name.ptr, t.name.len)
    if rc < 0:
        return out_of_memory(d)
    if rc == 0:
        return tf_fail(d.e, TF_INVALID_ARG, b"input '%.*s' already exists in request", cut(t.name.len), t.name.ptr)
    if x.binary_size:
        if x.binary_size == WRONG:
            return tf_fail(d.e, TF_INTERNAL, NON_UINT, <char*>b"binary_data_size")
        if count_elements(t) == -2:
            return bad_shape(d, t, -2)
        size = x.binary_size_value
        left = d.bin_len - d.bin_used
        if size and not d.has_header_len:
            return tf_fail(d.e, TF_INVALID_ARG,
                           b"must specify valid 'Infer-Header-Content-Length' in request header and "
                           b"'binary_data_size' when passing inputs in binary data format")
        if size > left:
            return tf_fail(d.e, TF_INVALID_ARG,
                           b"unexpected size for input '%.*s', expecting %llu additional bytes for "
                           b"model '%.*s'", cut(t.name.len), t.name.ptr, <unsigned long long>(size - left),
                           model_len(d), model_name(d))
        if size:
            t.ptr = <uint8_t*>d.bin + d.bin_used
            t.nbytes = <size_t>size
            d.bin_used += <size_t>size
        return 0
    if x.region or x.offset or x.byte_size:
        if take_region(d, x, FOR_INPUT, &lent):
            return -1
        if lent != NULL:
            t.ptr = lent.ptr
            t.nbytes = lent.nbytes
            t.block = lent.block
            t.kind = lent_kind(lent)
            t.device = lent.block.device
            block_ref(t.block)
            return 0
    if t.filled:
        return 0
    resume = d.c.p
    d.c.p = t.data
    rc = read_data(d, t)
    d.c.p = resume
    return rc


cdef int missing(Decoder* d, const char* field, const char* wrong, int found) noexcept nogil:
    if found == ABSENT:
        return tf_fail(d.e, TF_INTERNAL, MISSING, field, field)
    return tf_fail(d.e, TF_INTERNAL, wrong, field)


cdef inline int model_len(Decoder* d) noexcept nogil:
    return cut(d.r.model.name_len) if d.r.model != NULL else 0


cdef inline const char* model_name(Decoder* d) noexcept nogil:
    if d.r.model == NULL:
        return b""
    return d.r.model.name


# Twice the room for an array of items in the request's arena, the old items kept; NULL when memory ran out.
cdef void* grow(Decoder* d, void* items, int32_t count, size_t size) noexcept nogil:
    cdef int32_t cap = 4 if count == 0 else count * 2
    cdef void* more = request_alloc(d.r, <size_t>cap * size)
    if more != NULL:
        if count:
            memcpy(more, items, <size_t>count * size)
        d.cap = cap
    return more


cdef int add_input(Decoder* d, Input* t) noexcept nogil:
    cdef Request* r = d.r
    cdef Tensor* o
    cdef void* more
    cdef int64_t* dims
    if r.n_inputs == d.cap:
        more = grow(d, r.inputs, r.n_inputs, sizeof(Tensor))
        if more == NULL:
            return out_of_memory(d)
        r.inputs = <Tensor*>more
    dims = <int64_t*>request_alloc(r, <size_t>t.ndim * sizeof(int64_t))
    if dims == NULL:
        return out_of_memory(d)
    memcpy(dims, t.dims, <size_t>t.ndim * sizeof(int64_t))
    o = &r.inputs[r.n_inputs]
    o.name = t.name.ptr
    o.name_len = t.name.len
    o.index = -1
    o.dtype = t.dtype
    o.ndim = t.ndim
    o.dims = dims
    o.ptr = t.ptr
    o.nbytes = t.nbytes
    o.kind = t.kind
    o.device = t.device
    o.block = t.block
    t.block = NULL
    r.n_inputs += 1
    return 0


cdef inline void input_clear(Input* t) noexcept nogil:
    memset(t, 0, <size_t>(<char*>&t.extras.binary_size_value - <char*>t))


cdef int read_inputs(Decoder* d) noexcept nogil:
    cdef Input t
    cdef int first = 1, rc
    cdef const char* start
    d.cap = 0
    if d.c.p[0] != c'[':
        return tf_fail(d.e, TF_INTERNAL, NON_ARRAY, <char*>b"inputs")
    while True:
        rc = tf_json_element(&d.c, &first)
        if rc < 0:
            return -1
        if rc == 0:
            break
        if d.r.n_inputs == MAX_TENSORS:
            return tf_fail(d.e, TF_INVALID_ARG, b"the request has more than %d inputs", <int>MAX_TENSORS)
        start = d.c.p
        input_clear(&t)
        rc = read_input(d, &t, True)
        if rc < 0 and not d.c.reason and t.filled:
            # The data is wrong, but a check that comes earlier may fail too: gather all members, then check in order.
            block_unref(t.block)
            input_clear(&t)
            d.c.p = start
            rc = read_input(d, &t, False)
        if rc == 0:
            rc = finish_input(d, &t)
        if rc == 0:
            rc = add_input(d, &t)
        if rc < 0:
            block_unref(t.block)
            return -1
    if d.bin_used != d.bin_len:
        return tf_fail(d.e, TF_INVALID_ARG, b"unexpected additional input data for model '%.*s'",
                       model_len(d), model_name(d))
    return 0
