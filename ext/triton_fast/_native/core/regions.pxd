# Regions: stretches of shared memory that clients registered by name, and their loan to requests. Any thread may look
# one up; nothing here needs the GIL but registering. Those of GPUs are opened elsewhere (cuda/regions.pyx) and listed
# here. Knows no protocol and no scheduler.
from libc.stdint cimport int32_t, uint32_t, uint64_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport MEM_CPU, MEM_GPU, tf_error, tf_load32
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.tensor cimport Lent, Tensor

cdef enum:
    BUCKETS = 256
    FOR_INPUT = -1          # for region_lend: not for an output


# One name. Its block (kind MEM_CLIENT, or MEM_GPU with the device; cap 0: it is not memory of the pool's) is what
# requests hold references of, the registry one until the name is unregistered. Until the last is gone the name is
# taken, as in Triton. Then the memory is given back, and it is listed until that is done: a client that sees it no
# longer may free the memory.
cdef struct Region:
    Region* next            # in its bucket
    Region* later           # whatever closes it: the next to be closed
    Registry* home          # one ref
    Block* block            # NULL: its last reference is gone
    void* data
    int32_t refs            # under the registry's lock: the list's, and whoever looks at it
    int32_t device          # -1: a file
    int32_t broken          # atomic; its file was made smaller: what is read from it is not what its client wrote
    int32_t slot            # of the fault handler; -1: no file
    # Gives the memory back, now or on another thread, and then calls region_closed and region_drop.
    void (*close)(Region* region) noexcept nogil
    bint leaving            # unregistered while requests used it
    bint closed             # its memory is given back; for whatever closes it
    uint32_t name_len
    uint32_t key_len
    char* name
    char* key
    uint64_t offset
    size_t nbytes


# The names of one server.
cdef struct Registry:
    int32_t lock            # of all below, for a few instructions
    int32_t refs            # the SharedRegions, and each region
    int32_t count
    Region* buckets[BUCKETS]


# Lend r nbytes at `offset` of a region, for an input or for the output r.wanted[wanted]; r holds it until it is freed.
# NULL with e filled: no such region, not within it, or memory ran out. home may be NULL: there are none.
cdef Lent* region_lend(Registry* home, Request* r, const char* name, uint32_t n, uint64_t offset, uint64_t nbytes,
                       int32_t wanted, tf_error* e) noexcept nogil
# 0; or -1 with e filled: one of the regions that r uses broke, so nothing that came of it counts.
cdef int lent_check(Request* r, tf_error* e) noexcept nogil
# Copy an input out of its region, so that nobody else can change it any more. 0, or -1 with e filled.
cdef int lent_settle(Request* r, Tensor* t, tf_error* e) noexcept nogil
# The same for all inputs of r. Neither touches memory of a GPU.
cdef int lent_settle_all(Request* r, tf_error* e) noexcept nogil


cdef inline Region* region_of(Block* block) noexcept nogil:
    return <Region*>block.owner


# The kind of memory, as tensors name it.
cdef inline int32_t lent_kind(Lent* lent) noexcept nogil:
    return MEM_GPU if lent.block.kind == MEM_GPU else MEM_CPU


cdef class SharedRegions:
    cdef Registry* ptr
    cdef bint knows(self, bytes name) noexcept


# Take over a stretch of a GPU's memory under a name; close gives it back, once, on whatever thread. Raises what the
# client gets, and has taken nothing then.
cdef int region_take(SharedRegions regions, str name, void* data, size_t nbytes, int32_t device,
                     void (*close)(Region*) noexcept nogil) except -1
# A region of a GPU that nothing uses any more and that is not closed yet, with a reference; NULL: there is none. Of
# that name, or of any where there is no name.
cdef Region* region_closing(SharedRegions regions, const char* name, uint32_t n) noexcept nogil
# Its memory was given back: it is listed no longer.
cdef void region_closed(Region* region) noexcept nogil
cdef void region_drop(Region* region) noexcept nogil
