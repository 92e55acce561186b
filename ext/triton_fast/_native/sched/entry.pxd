# One cached response: a block whose data is a head, which belongs to the cache, and the response in packed form. The
# packed form is also what Redis holds. Hits hand its tensors out by reference to the block.
#
#   "TFC" version | u32 n | n x { u32 output, u32 datatype, u32 rank, u32 0, u64 bytes, i64 dims[rank] } | zeros up to a
#   multiple of 64 from the block's start | each tensor's bytes, filled up with zeros to 64
#
# All little-endian; `output` is the position in the model's outputs.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Response

cdef enum:
    HEAD = 128              # room for the head; a multiple of 64

cdef struct EntryHead:
    uint64_t[2] key
    uint64_t owner
    Block* chain            # same slot of the table
    Block* newer            # order of use
    Block* older
    size_t packed           # bytes after the head


# Pack a successful response: a block with one reference. NULL, and *unfit says whether the response can not be cached
# (outputs elsewhere than in memory, parameters, not of the model); else memory ran out.
cdef Block* entry_pack(Response* p, bint* unfit) noexcept nogil
# The same from packed bytes that came from elsewhere, each length checked. NULL: not a response of this model.
cdef Block* entry_read(const uint8_t* data, size_t n, Model* m) noexcept nogil
# Make p, which is empty, the response that the entry holds: its tensors take references. -1: memory ran out.
cdef int entry_answer(Block* entry, Response* p) noexcept nogil


cdef inline EntryHead* head_of(Block* entry) noexcept nogil:
    return <EntryHead*>entry.data
