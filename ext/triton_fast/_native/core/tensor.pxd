# What a request carries: tensors, the outputs its client asked for, memory that its client lent, parameters.
# Declarations only. Nothing here knows a protocol, a scheduler or a backend.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t

from triton_fast._native.core.memory cimport Block

cdef enum:
    MAX_TENSORS = 65536     # inputs, and outputs, one request may name

# name/dims/ptr are borrowed from the request's arena, its body block, or `block`, which the tensor owns one ref of.
# STRING data is the wire form: uint32 LE length + bytes, per element.
cdef struct Tensor:
    const char* name
    uint32_t name_len
    int32_t index           # position in Model.inputs / Model.outputs; -1 until resolved
    int32_t dtype
    int32_t ndim
    int64_t* dims           # full shape, the batch dimension included
    uint8_t* ptr
    size_t nbytes
    int32_t kind
    int32_t device
    Block* block

cdef struct Wanted:         # an output the client asked for
    const char* name
    uint32_t name_len
    int32_t index           # -1 until resolved
    int32_t binary          # 1 binary, 0 JSON, -1 not said (the request's binary_default holds)
    uint32_t classes        # classification k; 0 = plain tensor

# Memory of the client's own that a request uses, an input or the place for an output (core/regions.pxd).
cdef struct Lent:
    Lent* next
    Block* block            # the region's; one ref
    uint8_t* ptr
    size_t nbytes
    int32_t wanted          # of an output: its place in Request.wanted; -1: an input

cdef enum:
    PARAM_STRING = 0
    PARAM_INT = 1
    PARAM_BOOL = 2
    PARAM_DOUBLE = 3
    PARAM_UINT = 4

cdef struct Param:
    Param* next
    const char* key
    const char* text        # PARAM_STRING
    uint32_t key_len
    uint32_t text_len
    int32_t kind
    int64_t integer         # PARAM_INT, PARAM_BOOL; PARAM_UINT by cast
    double number           # PARAM_DOUBLE
