# The memory that server and worker share: one sparse, sealed memfd, mapped once. The server's heap in it (inbound) is
# managed here, with all bookkeeping in private memory; of the worker's heap only bounds are known.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from triton_fast._native.core.memory cimport Block


# A stretch of the inbound heap. In use while the worker's word says so or the server has references.
cdef struct Chunk:
    Chunk* next             # of its class's free list, or of the list of those in use
    uint8_t* header
    size_t cap              # bytes of data
    int32_t refs            # atomic; references of the server
    int32_t size_class
    bint given              # out of the free lists; the word in the region proves nothing, the worker can write it

cdef struct Region:
    int32_t refs            # atomic
    int fd
    uint8_t* base
    size_t size
    uint64_t in_off
    uint64_t in_bytes
    uint64_t out_off
    uint64_t out_bytes
    int32_t lock            # of what follows
    uint64_t bump           # inbound bytes ever given out
    Chunk** pages           # by page of the inbound heap: the chunk that covers it
    Chunk* used
    uint32_t n_used
    uint32_t sweep_at       # n_used at which to look for what is free again
    Chunk* free_list[160]


cdef Region* region_new(size_t in_bytes, size_t out_bytes) except NULL
cdef void region_ref(Region* g) noexcept nogil
cdef void region_unref(Region* g) noexcept nogil
# n bytes of inbound data, in use by the worker from now on, with a reference for who fills them; NULL when the heap is
# full.
cdef Chunk* inbound_new(Region* g, size_t n) noexcept nogil
# Whether n bytes of inbound data can ever be had.
cdef bint inbound_fits(Region* g, size_t n) noexcept nogil
# The worker has been told: its word alone keeps them now.
cdef void inbound_told(Chunk* chunk) noexcept nogil
# Give back what was never told to the worker.
cdef void inbound_drop(Chunk* chunk) noexcept nogil
# Give the memory of free inbound chunks back to the system, but for `keep` bytes.
cdef void inbound_trim(Region* g, size_t keep) noexcept nogil
# Whether [off, off + n) lies in the outbound heap, behind a header.
cdef bint is_outbound(Region* g, uint64_t off, uint64_t n) noexcept nogil
# A block over outbound data at off, in use until the block's last reference goes. NULL when memory ran out.
cdef Block* outbound_block(Region* g, uint64_t off, size_t n) noexcept nogil
cdef void outbound_release(Region* g, uint64_t off) noexcept nogil
# A block over inbound data [off, off + n), which the worker still holds; NULL when it does not, or memory ran out.
cdef Block* inbound_block(Region* g, uint64_t off, size_t n) noexcept nogil
