# The v2 infer request: protobuf wire bytes into a native Request, without a message object. One walk over the message,
# then the checks in the real server's order: a message that is broken anywhere is refused before its meaning is looked
# at, then parameters, inputs and outputs follow, wherever they stand. Checks nothing against the model.
from libc.stdint cimport UINT32_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc, qsort
from libc.string cimport memcmp, memcpy, memset

from triton_fast._native.core.marks cimport FLAG_EMPTY_FINAL, FLAG_SEQUENCE_END, FLAG_SEQUENCE_START
from triton_fast._native.core.memory cimport block_new, block_ref, block_unref
from triton_fast._native.core.native cimport (
    DT_BOOL, DT_FP32, DT_FP64, DT_INT8, DT_INT16, DT_INT32, DT_INT64, DT_STRING, DT_UINT8, DT_UINT16, DT_UINT32,
    DT_UINT64, MEM_CPU, TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE, TF_UNSUPPORTED, dtype_from_name, dtype_name,
    dtype_size, tf_error, tf_fail,
)
from triton_fast._native.core.model cimport MAX_RANK, ModelHandle
from triton_fast._native.core.regions cimport FOR_INPUT, Registry, SharedRegions, lent_kind, region_lend
from triton_fast._native.core.request cimport Request, request_alloc, request_free, request_new
from triton_fast._native.core.tensor cimport (
    Lent, MAX_TENSORS, PARAM_BOOL, PARAM_DOUBLE, PARAM_INT, PARAM_STRING, PARAM_UINT, Param, Tensor, Wanted,
)
from triton_fast._native.wire.pb_scan cimport (
    TF_PB_MAX_LENGTH, TF_PB_PACKED, TF_PB_UTF8, tf_pb, tf_pb_count, tf_pb_fixed, tf_pb_reason, tf_pb_skip, tf_pb_span,
    tf_pb_tag, tf_pb_unpack, tf_pb_varint, tf_utf8,
)

cdef enum:
    MAX_PARAMS = 65536
    MAX_SEQUENCE_TEXT = 128
    NAME_CUT = 256          # bytes of a client's text that an error repeats
    INLINE_BYTES = 512      # smaller typed contents live in the request's arena
    FEW = 4                 # room for raw contents without an allocation, and the first room for tensors
    FEW_PARAMS = 12         # up to this many, pairs are compared to find a repeated key

# A Param's kind beside PARAM_*.
cdef enum:
    NO_CHOICE = -1          # a value without any of its fields
    REPEATED = -2           # its key comes again later

# A tensor's parameter as found: absent, of the wanted type, or of another.
cdef enum:
    ABSENT = 0
    GOOD = 1
    WRONG = 2

# Field numbers of InferTensorContents.
cdef enum:
    BOOLS = 1
    INTS = 2
    INT64S = 3
    UINTS = 4
    UINT64S = 5
    FP32S = 6
    FP64S = 7
    BYTES = 8
    N_CONTENTS = 9

cdef struct Span:
    const uint8_t* p
    uint32_t n

# InferParameter, a oneof: the last field of it counts.
cdef struct Value:
    int32_t kind            # PARAM_* or NO_CHOICE
    uint32_t text_len
    const char* text
    int64_t integer
    double number

# What the parameters of an input or output say.
cdef struct Extras:
    int32_t region
    int32_t offset
    int32_t byte_size
    int32_t classes
    uint32_t region_len
    const char* region_text
    int64_t classes_value
    int64_t offset_value
    int64_t byte_size_value

# What an input has beside name, datatype and shape; only inputs with contents or parameters have one.
cdef struct Side:
    Side* next
    const uint8_t* msg      # the input's own message
    uint32_t len
    int32_t index
    bint has_contents
    Extras extras
    uint32_t pieces         # of fp32 and fp64 contents
    const uint8_t* piece    # the last of them
    uint64_t text_bytes     # what bytes_contents takes with its lengths
    uint64_t count[N_CONTENTS]

# What an output says besides its name, when it says anything of shared memory or anything wrong.
cdef struct OutSide:
    OutSide* next
    int32_t index
    Extras extras

cdef struct Decoder:
    Request* r
    Registry* regions
    tf_error* e
    const uint8_t* base
    size_t max_input
    size_t decoded          # bytes that typed contents took so far
    int32_t input_cap
    int32_t wanted_cap
    int32_t raw_cap
    int32_t n_inputs
    int32_t n_raw
    uint32_t n_params
    Span* raw
    Param** tail
    Side* sides             # in the order of the inputs
    Side** last
    OutSide* out_sides      # in the order of the outputs
    OutSide** last_out
    Span few[FEW]

include "pb_inputs.pxi"


# ---- errors; cold ----

cdef int broken(Decoder* d, const uint8_t* at, int why) noexcept nogil:
    return tf_fail(d.e, TF_INTERNAL, b"the request message is not a valid ModelInferRequest: %s at byte %llu",
                   tf_pb_reason(why), <unsigned long long>(at - d.base))


cdef int out_of_memory(Decoder* d) noexcept nogil:
    return tf_fail(d.e, TF_UNAVAILABLE, b"out of memory while decoding the request")


cdef int too_many(Decoder* d, int most, const char* what) noexcept nogil:
    return tf_fail(d.e, TF_INVALID_ARG, b"the request has more than %d %s", most, what)


cdef int wrong_type(Decoder* d, const char* key, uint32_t n, const char* expected) noexcept nogil:
    return tf_fail(d.e, TF_INVALID_ARG, b"invalid value type for '%.*s' parameter, expected %s.", cut(n), key, expected)


# ---- parts that all levels share ----

# Twice the room for an array of items in the request's arena, the old items kept; NULL when memory ran out.
cdef void* grow(Decoder* d, void* items, int32_t* cap, int32_t first, size_t size) noexcept nogil:
    cdef int32_t more = cap[0] * 2 if cap[0] else first
    cdef void* room = request_alloc(d.r, <size_t>more * size)
    if room != NULL:
        if cap[0]:
            memcpy(room, items, <size_t>cap[0] * size)
        cap[0] = more
    return room


cdef int read_value(Decoder* d, const uint8_t* p, uint32_t n, Value* v) noexcept nogil:
    cdef tf_pb c
    cdef uint32_t tag, text_len
    cdef uint64_t number = 0
    cdef const uint8_t* text
    cdef int rc
    c.p = p
    c.end = p + n
    while c.p < c.end:
        rc = tf_pb_tag(&c, &tag)
        if rc == 0:
            if tag == 0x08 or tag == 0x10 or tag == 0x28:
                rc = tf_pb_varint(&c, &number)
                v.kind = PARAM_BOOL if tag == 0x08 else PARAM_INT if tag == 0x10 else PARAM_UINT
                v.integer = <int64_t>(<uint64_t>(number != 0) if tag == 0x08 else number)
            elif tag == 0x1a:
                rc = tf_pb_span(&c, &text, &text_len)
                if rc == 0:
                    if tf_utf8(text, text_len):
                        return broken(d, text, TF_PB_UTF8)
                    v.kind = PARAM_STRING
                    v.text = <const char*>text
                    v.text_len = text_len
            elif tag == 0x21:
                v.kind = PARAM_DOUBLE
                rc = tf_pb_fixed(&c, &v.number, 8)
            else:
                rc = tf_pb_skip(&c, tag)
        if rc:
            return broken(d, c.p, rc)
    return 0


# One entry of a map<string, InferParameter>.
cdef int read_entry(Decoder* d, const uint8_t* p, uint32_t n, Span* key, Value* v) noexcept nogil:
    cdef tf_pb c
    cdef uint32_t tag, data_len
    cdef const uint8_t* data
    cdef int rc
    c.p = p
    c.end = p + n
    key.p = <const uint8_t*>b""
    key.n = 0
    v.kind = NO_CHOICE
    while c.p < c.end:
        rc = tf_pb_tag(&c, &tag)
        if rc == 0:
            if tag == 0x0a or tag == 0x12:
                rc = tf_pb_span(&c, &data, &data_len)
                if rc == 0:
                    if tag == 0x12:
                        if read_value(d, data, data_len, v):
                            return -1
                    elif tf_utf8(data, data_len):
                        return broken(d, data, TF_PB_UTF8)
                    else:
                        key.p = data
                        key.n = data_len
            else:
                rc = tf_pb_skip(&c, tag)
        if rc:
            return broken(d, c.p, rc)
    return 0


# ---- parameters of the request ----

cdef int read_param(Decoder* d, const uint8_t* data, uint32_t n) noexcept nogil:
    cdef Span key
    cdef Value v
    cdef Param* p
    d.n_params += 1
    if d.n_params > MAX_PARAMS:
        return too_many(d, MAX_PARAMS, b"parameters")
    if read_entry(d, data, n, &key, &v):
        return -1
    p = <Param*>request_alloc(d.r, sizeof(Param))
    if p == NULL:
        return out_of_memory(d)
    p.next = NULL
    p.key = <const char*>key.p
    p.key_len = key.n
    p.kind = v.kind
    p.text = v.text if v.kind == PARAM_STRING else NULL
    p.text_len = v.text_len if v.kind == PARAM_STRING else 0
    p.integer = v.integer if v.kind == PARAM_INT or v.kind == PARAM_BOOL or v.kind == PARAM_UINT else 0
    p.number = v.number if v.kind == PARAM_DOUBLE else 0.0
    d.tail[0] = p
    d.tail = &p.next
    return 0


# By key; equal keys in the order they came.
cdef int compare_params(const void* a, const void* b) noexcept nogil:
    cdef const Param* x = (<Param**>a)[0]
    cdef const Param* y = (<Param**>b)[0]
    cdef int c
    if x.key_len != y.key_len:
        return -1 if x.key_len < y.key_len else 1
    c = memcmp(x.key, y.key, x.key_len)
    if c == 0:
        # integer is their place while they are sorted: see drop_repeated.
        return -1 if x.kind < y.kind else 1
    return c


# Of entries with the same key the last counts. O(n log n), whatever the client sends.
cdef int drop_repeated(Decoder* d) noexcept nogil:
    cdef Param* p = d.r.params
    cdef Param* q
    cdef Param** order
    cdef int32_t* kinds
    cdef int32_t i, n = <int32_t>d.n_params
    if n <= FEW_PARAMS:
        while p != NULL:
            q = p.next
            while q != NULL:
                if p.key_len == q.key_len and memcmp(p.key, q.key, p.key_len) == 0:
                    p.kind = REPEATED
                    break
                q = q.next
            p = p.next
        return 0
    order = <Param**>malloc(<size_t>n * (sizeof(Param*) + sizeof(int32_t)))
    if order == NULL:
        return out_of_memory(d)
    kinds = <int32_t*>(order + n)
    for i in range(n):
        order[i] = p
        kinds[i] = p.kind
        p.kind = i                      # lent to the sort as the place in the message
        p = p.next
    qsort(order, <size_t>n, sizeof(Param*), compare_params)
    for i in range(n):
        p = order[i]
        p.kind = kinds[p.kind]
        if i:
            q = order[i - 1]
            if p.key_len == q.key_len and memcmp(p.key, q.key, p.key_len) == 0:
                q.kind = REPEATED
    free(order)
    return 0


cdef inline bint is_key(const Param* p, const char* word, uint32_t n) noexcept nogil:
    return p.key_len == n and memcmp(p.key, word, n) == 0


cdef int set_flag(Decoder* d, const Param* p, uint32_t flag) noexcept nogil:
    if p.kind != PARAM_BOOL:
        return wrong_type(d, p.key, p.key_len, b"bool_param")
    if p.integer:
        d.r.flags |= flag
    return 0


# A parameter that the server itself understands: 1 done, 0 when it is the model's, -1 refused.
cdef int apply_param(Decoder* d, const Param* p) noexcept nogil:
    cdef Request* r = d.r
    if is_key(p, b"sequence_id", 11):
        if p.kind == PARAM_INT:
            r.correlation = <uint64_t>p.integer
        elif p.kind == PARAM_STRING:
            if p.text_len > MAX_SEQUENCE_TEXT:
                return tf_fail(d.e, TF_UNSUPPORTED, b"string correlation ID cannot be longer than 128 characters")
            r.correlation_text = p.text
            r.correlation_len = p.text_len
        else:
            return wrong_type(d, p.key, p.key_len, b"int64_param or string_param")
    elif is_key(p, b"sequence_start", 14):
        return -1 if set_flag(d, p, FLAG_SEQUENCE_START) else 1
    elif is_key(p, b"sequence_end", 12):
        return -1 if set_flag(d, p, FLAG_SEQUENCE_END) else 1
    elif is_key(p, b"priority", 8):
        if p.kind == PARAM_INT and p.integer < 0:
            return tf_fail(d.e, TF_INVALID_ARG, b"invalid value for 'priority', expected value >= 0.")
        if p.kind != PARAM_INT and p.kind != PARAM_UINT:
            return wrong_type(d, p.key, p.key_len, b"int64_param or uint64_param")
        r.priority = <uint64_t>p.integer
    elif is_key(p, b"timeout", 7):
        if p.kind != PARAM_INT:
            return wrong_type(d, p.key, p.key_len, b"int64_param")
        r.timeout_us = <uint64_t>p.integer
    elif p.key_len >= 7 and memcmp(p.key, b"triton_", 7) == 0:
        if not is_key(p, b"triton_enable_empty_final_response", 34):
            return tf_fail(d.e, TF_INVALID_ARG, b"parameter keys starting with 'triton_' are reserved for Triton usage."
                           b" Only the following keys starting with 'triton_' are allowed: "
                           b"triton_enable_empty_final_response")
        return -1 if set_flag(d, p, FLAG_EMPTY_FINAL) else 1
    else:
        # The answer is always binary here; the key is for HTTP.
        return is_key(p, b"binary_data_output", 18)
    return 1


# Give each parameter to the field that it has in the request, or leave it in r.params.
cdef int apply_params(Decoder* d) noexcept nogil:
    cdef Param* p = d.r.params
    cdef Param** tail = &d.r.params
    cdef int rc
    if d.n_params > 1 and drop_repeated(d):
        return -1
    while p != NULL:
        if p.kind != REPEATED:
            rc = apply_param(d, p)
            if rc < 0:
                return -1
            if rc == 0:
                if p.kind == NO_CHOICE or p.kind == PARAM_UINT:
                    return wrong_type(d, p.key, p.key_len, b"int64_param, bool_param, or string_param")
                tail[0] = p
                tail = &p.next
        p = p.next
    tail[0] = NULL
    return 0


# ---- outputs ----

cdef int finish_output(Decoder* d, int32_t index, Extras* x) noexcept nogil:
    cdef Wanted* w = &d.r.wanted[index]
    cdef Lent* lent
    if check_region(d, w.name, w.name_len, x):
        return -1
    if x.classes == WRONG:
        return tf_fail(d.e, TF_INVALID_ARG, b"invalid value type for 'classification' parameter, expected int64_param")
    if x.classes == GOOD and x.classes_value <= 0:
        return tf_fail(d.e, TF_INVALID_ARG, b"invalid value for 'classification' parameter, expected >= 0")
    if x.region == GOOD and x.classes == GOOD:
        return tf_fail(d.e, TF_INVALID_ARG, b"output can't set both 'shared_memory_region' and 'classification'")
    return take_region(d, x, index, &lent)


# Outputs come last, as in the real server.
cdef int finish_outputs(Decoder* d) noexcept nogil:
    cdef OutSide* s = d.out_sides
    while s != NULL:
        if finish_output(d, s.index, &s.extras):
            return -1
        s = s.next
    return 0


cdef int read_output(Decoder* d, const uint8_t* p, uint32_t n) noexcept nogil:
    cdef tf_pb c
    cdef uint32_t tag, data_len
    cdef const uint8_t* data
    cdef Extras x
    cdef bint has_extras = False
    cdef OutSide* side
    cdef Wanted* w
    cdef void* more
    cdef int rc
    if d.r.n_wanted == d.wanted_cap:
        if d.r.n_wanted == MAX_TENSORS:
            return too_many(d, MAX_TENSORS, b"outputs")
        more = grow(d, d.r.wanted, &d.wanted_cap, FEW, sizeof(Wanted))
        if more == NULL:
            return out_of_memory(d)
        d.r.wanted = <Wanted*>more
    w = &d.r.wanted[d.r.n_wanted]
    w.name = b""
    w.name_len = 0
    w.index = -1
    w.binary = 1
    w.classes = 0
    c.p = p
    c.end = p + n
    while c.p < c.end:
        rc = tf_pb_tag(&c, &tag)
        if rc == 0:
            if tag == 0x0a or tag == 0x12:
                rc = tf_pb_span(&c, &data, &data_len)
                if rc == 0:
                    if tag == 0x12:
                        if not has_extras:
                            has_extras = True
                            memset(&x, 0, sizeof(x))
                        if read_extra(d, data, data_len, &x):
                            return -1
                    elif tf_utf8(data, data_len):
                        return broken(d, data, TF_PB_UTF8)
                    else:
                        w.name = <const char*>data
                        w.name_len = data_len
            else:
                rc = tf_pb_skip(&c, tag)
        if rc:
            return broken(d, c.p, rc)
    if has_extras:
        if x.region or x.offset or x.byte_size or x.classes == WRONG or (x.classes and x.classes_value <= 0):
            # Kept until the parts that the real server looks at before are known to be right.
            side = <OutSide*>request_alloc(d.r, sizeof(OutSide))
            if side == NULL:
                return out_of_memory(d)
            side.next = NULL
            side.index = d.r.n_wanted
            side.extras = x
            d.last_out[0] = side
            d.last_out = &side.next
        elif x.classes:
            w.classes = <uint32_t>x.classes_value if x.classes_value < UINT32_MAX else UINT32_MAX
    d.r.n_wanted += 1
    return 0


# ---- the message ----

cdef int read_message(Decoder* d, size_t n) noexcept nogil:
    cdef tf_pb c
    cdef uint32_t tag, data_len
    cdef const uint8_t* data
    cdef int rc
    c.p = d.base
    c.end = d.base + n
    while c.p < c.end:
        rc = tf_pb_tag(&c, &tag)
        if rc == 0:
            if tag & 7 == 2 and tag <= 0x3a:
                rc = tf_pb_span(&c, &data, &data_len)
                if rc == 0:
                    if tag == 0x2a:
                        rc = read_input(d, data, data_len)
                    elif tag == 0x3a:
                        rc = add_raw(d, data, data_len)
                    elif tag == 0x32:
                        rc = read_output(d, data, data_len)
                    elif tag == 0x22:
                        rc = read_param(d, data, data_len)
                    elif tag == 0x1a:
                        if tf_utf8(data, data_len):
                            return broken(d, data, TF_PB_UTF8)
                        d.r.id = <const char*>data
                        d.r.id_len = data_len
                    if rc:
                        return -1
            else:
                rc = tf_pb_skip(&c, tag)
        if rc:
            return broken(d, c.p, rc)
    return 0


# Leave nothing half decoded behind.
cdef void drop(Decoder* d) noexcept nogil:
    cdef Request* r = d.r
    cdef int32_t i
    for i in range(d.n_inputs):
        block_unref(r.inputs[i].block)
    r.n_inputs = 0
    r.n_wanted = 0
    r.params = NULL
    r.correlation_text = NULL
    r.correlation_len = 0


cdef int pb_decode_infer(Request* r, const uint8_t* msg, size_t n, size_t max_input, Registry* regions,
                         tf_error* e) noexcept nogil:
    cdef Decoder d
    d.r = r
    d.e = e
    d.base = msg
    d.max_input = max_input
    d.decoded = 0
    d.input_cap = 0
    d.wanted_cap = 0
    d.raw_cap = FEW
    d.n_inputs = 0
    d.n_raw = 0
    d.n_params = 0
    d.raw = d.few
    d.tail = &r.params
    d.sides = NULL
    d.last = &d.sides
    d.out_sides = NULL
    d.last_out = &d.out_sides
    d.regions = regions
    r.binary_default = 1
    if n > TF_PB_MAX_LENGTH:
        return too_long(e)
    if read_message(&d, n) or (d.n_params and apply_params(&d)) or finish_inputs(&d) or \
            (d.out_sides != NULL and finish_outputs(&d)):
        drop(&d)
        return -1
    r.n_inputs = d.n_inputs
    return 0


cdef int too_long(tf_error* e) noexcept nogil:
    return tf_fail(e, TF_INTERNAL, b"the request message is not a valid ModelInferRequest: more than 2147483647 bytes")


cdef int pb_infer_head(const uint8_t* msg, size_t n, PbHead* head, tf_error* e) noexcept nogil:
    cdef Decoder d
    cdef tf_pb c
    cdef uint32_t tag, data_len
    cdef const uint8_t* data
    cdef int rc
    d.e = e
    d.base = msg
    head.model_name = head.version = head.id = b""
    head.model_name_len = head.version_len = head.id_len = 0
    if n > TF_PB_MAX_LENGTH:
        return too_long(e)
    c.p = msg
    c.end = msg + n
    while c.p < c.end:
        rc = tf_pb_tag(&c, &tag)
        if rc == 0:
            if tag & 7 == 2:
                rc = tf_pb_span(&c, &data, &data_len)
                if rc == 0 and tag <= 0x1a:
                    if tf_utf8(data, data_len):
                        return broken(&d, data, TF_PB_UTF8)
                    if tag == 0x0a:
                        head.model_name = <const char*>data
                        head.model_name_len = data_len
                    elif tag == 0x12:
                        head.version = <const char*>data
                        head.version_len = data_len
                    else:
                        head.id = <const char*>data
                        head.id_len = data_len
            else:
                rc = tf_pb_skip(&c, tag)
        if rc:
            return broken(&d, c.p, rc)
    return 0


include "pb_entry.pxi"
