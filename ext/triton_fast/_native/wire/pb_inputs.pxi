# Part of pb_infer.pyx: inputs with their shapes, parameters, and data, raw or in typed contents.
# Knows nothing of the other fields of the message.


cdef inline int cut(uint32_t n) noexcept nogil:
    return <int>n if n < NAME_CUT else NAME_CUT


cdef inline int model_len(Decoder* d) noexcept nogil:
    return cut(d.r.model.name_len) if d.r.model != NULL else 0


cdef inline const char* model_name(Decoder* d) noexcept nogil:
    if d.r.model == NULL:
        return b""
    return d.r.model.name


# A refusal that ends in the names of the input and of the model.
cdef int refuse_input(Decoder* d, Tensor* t, const char* before, const char* after) noexcept nogil:
    return tf_fail(d.e, TF_INVALID_ARG, b"%s '%.*s' for model '%.*s'%s", before, cut(t.name_len), t.name, model_len(d),
                   model_name(d), after)


# ---- parameters of an input or output ----

cdef inline bint is_span(const Span* s, const char* word, uint32_t n) noexcept nogil:
    return s.n == n and memcmp(s.p, word, n) == 0


cdef int read_extra(Decoder* d, const uint8_t* data, uint32_t n, Extras* x) noexcept nogil:
    cdef Span key
    cdef Value v
    cdef int32_t number
    if read_entry(d, data, n, &key, &v):
        return -1
    number = GOOD if v.kind == PARAM_INT else WRONG
    if is_span(&key, b"classification", 14):
        x.classes = number
        x.classes_value = v.integer if number == GOOD else 0
    elif is_span(&key, b"shared_memory_region", 20):
        x.region = GOOD if v.kind == PARAM_STRING else WRONG
        if v.kind == PARAM_STRING:
            x.region_text = v.text
            x.region_len = v.text_len
    elif is_span(&key, b"shared_memory_offset", 20):
        x.offset = number
        x.offset_value = v.integer
    elif is_span(&key, b"shared_memory_byte_size", 23):
        x.byte_size = number
        x.byte_size_value = v.integer
    return 0


cdef int wrong_region(Decoder* d, const char* what, const char* name, uint32_t n, const char* expected) noexcept nogil:
    return tf_fail(d.e, TF_INVALID_ARG, b"invalid value type for '%s' parameter for tensor '%.*s', expected %s.", what,
                   cut(n), name, expected)


cdef int without_region(Decoder* d, const char* what, const char* name, uint32_t n) noexcept nogil:
    return tf_fail(d.e, TF_INVALID_ARG,
                   b"'%s' can not be specified without 'shared_memory_region' parameter for tensor '%.*s'", what,
                   cut(n), name)


cdef int check_region(Decoder* d, const char* name, uint32_t n, Extras* x) noexcept nogil:
    if x.region == WRONG:
        return wrong_region(d, b"shared_memory_region", name, n, b"string_param")
    if x.offset:
        if not x.region:
            return without_region(d, b"shared_memory_offset", name, n)
        if x.offset == WRONG:
            return wrong_region(d, b"shared_memory_offset", name, n, b"int64_param")
    if x.byte_size:
        if not x.region:
            return without_region(d, b"shared_memory_byte_size", name, n)
        if x.byte_size == WRONG:
            return wrong_region(d, b"shared_memory_byte_size", name, n, b"int64_param")
    elif x.region:
        return tf_fail(d.e, TF_INVALID_ARG, b"'shared_memory_byte_size' must be specified along with "
                       b"'shared_memory_region' parameter for tensor '%.*s'", cut(n), name)
    return 0


# The region that an input or output names, if it does; check_region has looked at x. Negative numbers are read as the
# real server reads them: larger than any region.
cdef int take_region(Decoder* d, Extras* x, int32_t wanted, Lent** lent) noexcept nogil:
    if not x.region:
        return 0
    lent[0] = region_lend(d.regions, d.r, x.region_text, x.region_len, <uint64_t>x.offset_value if x.offset else 0,
                          <uint64_t>x.byte_size_value, wanted, d.e)
    return 0 if lent[0] != NULL else -1


# ---- reading ----

# Data beyond the tensors that a request may have can belong to none.
cdef inline int add_raw(Decoder* d, const uint8_t* p, uint32_t n) noexcept nogil:
    cdef Span* more
    if d.n_raw == d.raw_cap:
        if d.n_raw == MAX_TENSORS:
            return 0
        more = <Span*>grow(d, d.raw, &d.raw_cap, FEW, sizeof(Span))
        if more == NULL:
            return out_of_memory(d)
        d.raw = more
    d.raw[d.n_raw].p = p
    d.raw[d.n_raw].n = n
    d.n_raw += 1
    return 0


# The side record of the input that is being read, made when it is first needed.
cdef Side* side_of(Decoder* d, Side* s, const uint8_t* msg, uint32_t n) noexcept nogil:
    if s != NULL:
        return s
    s = <Side*>request_alloc(d.r, sizeof(Side))
    if s == NULL:
        out_of_memory(d)
        return NULL
    memset(s, 0, sizeof(Side))
    s.msg = msg
    s.len = n
    s.index = d.n_inputs
    d.last[0] = s
    d.last = &s.next
    return s


# Check the form of one InferTensorContents and count what it holds.
cdef int read_contents(Decoder* d, Side* s, const uint8_t* p, uint32_t n) noexcept nogil:
    cdef tf_pb c
    cdef uint32_t tag, field, data_len
    cdef uint64_t number
    cdef int64_t count
    cdef const uint8_t* data
    cdef int rc
    s.has_contents = True
    c.p = p
    c.end = p + n
    while c.p < c.end:
        rc = tf_pb_tag(&c, &tag)
        if rc:
            return broken(d, c.p, rc)
        field = tag >> 3
        if tag & 7 == 2 and field <= BYTES:
            rc = tf_pb_span(&c, &data, &data_len)
            if rc == 0:
                if field == BYTES:
                    s.count[BYTES] += 1
                    s.text_bytes += <uint64_t>data_len + 4
                elif field == FP32S or field == FP64S:
                    if data_len & (3 if field == FP32S else 7):
                        return broken(d, data, TF_PB_PACKED)
                    if data_len:
                        s.count[field] += data_len >> 2 if field == FP32S else data_len >> 3
                        s.pieces += 1
                        s.piece = data
                else:
                    count = tf_pb_count(data, data_len, &data)
                    if count < 0:
                        return broken(d, data, <int>count)
                    s.count[field] += <uint64_t>count
        elif tag & 7 == 0 and field <= UINT64S:
            rc = tf_pb_varint(&c, &number)
            s.count[field] += 1
        elif tag == 0x35 or tag == 0x39:
            rc = tf_pb_fixed(&c, &number, 4 if tag == 0x35 else 8)
            s.count[field] += 1
            s.pieces += 2                   # one alone is not aligned and not worth a case of its own
        else:
            rc = tf_pb_skip(&c, tag)
        if rc:
            return broken(d, c.p, rc)
    return 0


cdef int too_many_dims(Decoder* d, Tensor* t) noexcept nogil:
    return tf_fail(d.e, TF_INVALID_ARG, b"invalid shape for input '%.*s': it has more than %d dimensions",
                   cut(t.name_len), t.name, <int>MAX_RANK)


cdef int read_input(Decoder* d, const uint8_t* p, uint32_t n) noexcept nogil:
    cdef tf_pb c
    cdef tf_pb s
    cdef uint32_t tag, data_len
    cdef uint64_t dim = 0
    cdef const uint8_t* data
    cdef Side* side = NULL
    cdef Tensor* t
    cdef void* more
    cdef int64_t dims[MAX_RANK]
    cdef int32_t ndim = 0
    cdef int32_t i
    cdef int rc
    if d.n_inputs == d.input_cap:
        if d.n_inputs == MAX_TENSORS:
            return too_many(d, MAX_TENSORS, b"inputs")
        more = grow(d, d.r.inputs, &d.input_cap, FEW, sizeof(Tensor))
        if more == NULL:
            return out_of_memory(d)
        d.r.inputs = <Tensor*>more
    t = &d.r.inputs[d.n_inputs]
    t.name = b""
    t.name_len = 0
    t.index = -1
    t.dtype = 0
    t.ptr = NULL
    t.nbytes = 0
    t.kind = MEM_CPU
    t.device = 0
    t.block = NULL
    c.p = p
    c.end = p + n
    while c.p < c.end:
        rc = tf_pb_tag(&c, &tag)
        if rc == 0:
            if tag & 7 == 2 and tag <= 0x2a:
                rc = tf_pb_span(&c, &data, &data_len)
                if rc == 0:
                    if tag == 0x1a:
                        s.p = data
                        s.end = data + data_len
                        while s.p < s.end:
                            rc = tf_pb_varint(&s, &dim)
                            if rc:
                                return broken(d, s.p, rc)
                            if ndim < MAX_RANK:
                                dims[ndim] = <int64_t>dim
                            ndim += 1
                    elif tag == 0x0a or tag == 0x12:
                        if tf_utf8(data, data_len):
                            return broken(d, data, TF_PB_UTF8)
                        if tag == 0x0a:
                            t.name = <const char*>data
                            t.name_len = data_len
                        else:
                            t.dtype = dtype_from_name(data, data_len)
                    else:
                        side = side_of(d, side, p, n)
                        if side == NULL:
                            return -1
                        if tag == 0x22:
                            rc = read_extra(d, data, data_len, &side.extras)
                        else:
                            rc = read_contents(d, side, data, data_len)
                        if rc:
                            return -1
            elif tag == 0x18:
                rc = tf_pb_varint(&c, &dim)
                if ndim < MAX_RANK:
                    dims[ndim] = <int64_t>dim
                ndim += 1
            else:
                rc = tf_pb_skip(&c, tag)
        if rc:
            return broken(d, c.p, rc)
    if ndim > MAX_RANK:
        return too_many_dims(d, t)
    t.ndim = ndim
    t.dims = <int64_t*>request_alloc(d.r, <size_t>ndim * sizeof(int64_t))
    if t.dims == NULL:
        return out_of_memory(d)
    for i in range(ndim):
        t.dims[i] = dims[i]
    d.n_inputs += 1
    return 0


# ---- typed contents ----

# The datatype that a field of the contents holds for an input of the given one.
cdef int32_t field_dtype(int field, int32_t dtype) noexcept nogil:
    if field == BOOLS:
        return DT_BOOL
    if field == INTS:
        return dtype if dtype == DT_INT8 or dtype == DT_INT16 else DT_INT32
    if field == UINTS:
        return dtype if dtype == DT_UINT8 or dtype == DT_UINT16 else DT_UINT32
    if field == INT64S:
        return DT_INT64
    if field == UINT64S:
        return DT_UINT64
    if field == FP32S:
        return DT_FP32
    return DT_FP64 if field == FP64S else DT_STRING


cdef int unexpected_data(Decoder* d, Tensor* t, int32_t dtype) noexcept nogil:
    return tf_fail(d.e, TF_INVALID_ARG, b"unexpected explicit tensor data for input tensor '%.*s' for model '%.*s' of "
                   b"type '%s', expected datatype '%s'", cut(t.name_len), t.name, model_len(d), model_name(d),
                   dtype_name(dtype), dtype_name(t.dtype))


# The values of one field of one InferTensorContents to dst; returns the end of what was written. read_contents has
# found no fault in it, and counted what it makes.
cdef uint8_t* copy_contents(const uint8_t* p, uint32_t n, uint32_t field, int size, uint8_t* dst) noexcept nogil:
    cdef tf_pb c
    cdef uint32_t tag, data_len
    cdef const uint8_t* data
    cdef const uint8_t* start
    cdef uint64_t ignored
    c.p = p
    c.end = p + n
    while c.p < c.end:
        if tf_pb_tag(&c, &tag):
            break
        start = c.p
        if tag == (field << 3 | 2):
            if tf_pb_span(&c, &data, &data_len):
                break
            if field == BYTES:
                memcpy(dst, &data_len, 4)
                memcpy(dst + 4, data, data_len)
                dst += 4 + data_len
            elif field == FP32S or field == FP64S:
                memcpy(dst, data, data_len)
                dst += data_len
            else:
                dst = tf_pb_unpack(data, data_len, dst, size)
        elif tag == field << 3 and field <= UINT64S:
            if tf_pb_varint(&c, &ignored):
                break
            dst = tf_pb_unpack(start, <uint32_t>(c.p - start), dst, size)
        elif tag == 0x35 and field == FP32S:
            if tf_pb_fixed(&c, dst, 4):
                break
            dst += 4
        elif tag == 0x39 and field == FP64S:
            if tf_pb_fixed(&c, dst, 8):
                break
            dst += 8
        elif tf_pb_skip(&c, tag):
            break
    return dst


# Contents may come in several pieces, which count as one.
cdef void copy_all_contents(Side* s, uint32_t field, int size, uint8_t* dst) noexcept nogil:
    cdef tf_pb c
    cdef uint32_t tag, data_len
    cdef const uint8_t* data
    c.p = s.msg
    c.end = s.msg + s.len
    while c.p < c.end:
        if tf_pb_tag(&c, &tag):
            break
        if tag == 0x2a:
            if tf_pb_span(&c, &data, &data_len):
                break
            dst = copy_contents(data, data_len, field, size, dst)
        elif tf_pb_skip(&c, tag):
            break


cdef int fill_contents(Decoder* d, Side* s, Tensor* t) noexcept nogil:
    cdef int field, found = 0
    cdef int32_t size = dtype_size(t.dtype)
    cdef uint64_t total
    for field in range(1, N_CONTENTS):
        if s.count[field] == 0:
            continue
        if found:
            return refuse_input(d, t, b"unexpected explicit tensor data for input tensor",
                                b", binary data was already supplied.")
        if field_dtype(field, t.dtype) != t.dtype:
            return unexpected_data(d, t, field_dtype(field, t.dtype))
        found = field
    if not found:
        return 0
    # The message has less than 2^31 bytes, so neither product nor sum wraps.
    total = s.text_bytes if found == BYTES else s.count[found] * <uint64_t>size
    if total > d.max_input - d.decoded:
        return tf_fail(d.e, TF_INVALID_ARG,
                       b"the contents of input '%.*s' have a byte_size (%llu bytes with the inputs before it) that "
                       b"exceeds the maximum allowed value of %llu bytes.", cut(t.name_len), t.name,
                       <unsigned long long>(total + d.decoded), <unsigned long long>d.max_input)
    d.decoded += <size_t>total
    t.nbytes = <size_t>total
    if s.pieces == 1 and (found == FP32S or found == FP64S):
        t.ptr = <uint8_t*>s.piece
        return 0
    if total <= INLINE_BYTES:
        t.ptr = <uint8_t*>request_alloc(d.r, <size_t>total)
    else:
        t.block = block_new(<size_t>total)
        t.ptr = t.block.data if t.block != NULL else NULL
    if t.ptr == NULL:
        return out_of_memory(d)
    copy_all_contents(s, <uint32_t>found, 0 if found == BOOLS else size, t.ptr)
    return 0


# ---- checking ----

cdef int finish_side(Decoder* d, Side* s, Tensor* t) noexcept nogil:
    cdef Extras* x = &s.extras
    cdef Lent* lent = NULL
    if check_region(d, t.name, t.name_len, x):
        return -1
    if x.region:
        if s.has_contents:
            return refuse_input(d, t, b"unexpected 'content' provided when using shared memory for input tensor", b"")
        if take_region(d, x, FOR_INPUT, &lent):
            return -1
        t.ptr = lent.ptr
        t.nbytes = lent.nbytes
        t.block = lent.block
        t.kind = lent_kind(lent)
        t.device = lent.block.device
        block_ref(t.block)
        return 0
    if not s.has_contents:
        return 0
    if d.n_raw:
        return refuse_input(d, t, b"contents field must not be specified when using raw_input_contents for", b"")
    return fill_contents(d, s, t)


# Each input gets its data. Those in shared memory take no raw contents; all others do, so that those with typed
# contents stand in the place of raw ones.
cdef int finish_inputs(Decoder* d) noexcept nogil:
    cdef Side* s = d.sides
    cdef Tensor* t
    cdef int32_t i, raw = 0
    cdef Side* mine
    for i in range(d.n_inputs):
        t = &d.r.inputs[i]
        if s != NULL and s.index == i:
            mine = s
            s = s.next
            if finish_side(d, mine, t):
                return -1
            if mine.extras.region or mine.has_contents:
                raw += not mine.extras.region
                continue
        if raw >= d.n_raw:
            return refuse_input(d, t, b"unable to find data for input tensor", b" in request.")
        t.ptr = <uint8_t*>d.raw[raw].p
        t.nbytes = d.raw[raw].n
        raw += 1
    return 0
