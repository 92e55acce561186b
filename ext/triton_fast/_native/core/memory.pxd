# Blocks: reference-counted stretches of memory from a pool of size classes, and the request arena built on malloc.
# A block knows nothing of requests. Any thread may take and release; counts are exact when all are released.
from libc.stdint cimport int32_t, int64_t, uint8_t

from triton_fast._native.core.native cimport tf_add32


cdef enum:
    FIRST_BODY = 1048576    # bytes taken on the word of a length; what is longer grows as it comes


# data: 64-byte aligned, cap bytes. refs: owners. free_fn: NULL for pool memory, else called once at the last release
# (memory lent by a backend, such as an OrtValue). It runs on whatever thread releases last, without the GIL.
cdef struct Block:
    uint8_t* data
    size_t cap
    int32_t refs
    int32_t size_class
    int32_t kind
    int32_t device
    Block* next
    void (*free_fn)(Block* block) noexcept nogil
    void* owner


# block_new(n): a block of at least n bytes, refs == 1; NULL when memory ran out or n is over the pool's limit.
cdef Block* block_new(size_t n) noexcept nogil
# block_wrap: a block over memory that somebody else owns; NULL when memory ran out (then the caller still owns it).
cdef Block* block_wrap(void* data, size_t n, void (*free_fn)(Block*) noexcept nogil, void* owner) noexcept nogil
# The same over memory of a GPU, which counts for no limit of the host's.
cdef Block* block_wrap_device(void* data, size_t n, int32_t device, void (*free_fn)(Block*) noexcept nogil,
                              void* owner) noexcept nogil
cdef void block_free(Block* block) noexcept nogil

# Bytes from a network, `whole` of them promised: a block for the first of them, at most FIRST_BODY. NULL when memory
# ran out, or when all that is held would pass the limit (set_body_limit).
cdef Block* body_new(size_t whole) noexcept nogil
# Room for `whole` at once, under the same limit: for bytes that are here already.
cdef Block* body_whole(size_t whole) noexcept nogil
# block[0] is full with received bytes from `at` on: replace it by a larger one that holds them, of at most `whole`
# bytes. 0, or -1 for the reasons of body_new; then nothing has changed.
cdef int body_grow(Block** block, size_t at, size_t received, size_t whole) noexcept nogil

# Where memory of size classes from PIN_FROM on is to come from while a GPU is in use: `take` gives n bytes that the
# GPU can reach by itself, or NULL when its budget is spent, then the allocator is asked as ever; `give` takes them back.
# Such blocks have kind MEM_PINNED and are kept when they are freed, beyond the budget of others. Called once.
ctypedef void* (*pin_fn)(size_t n) noexcept nogil
ctypedef void (*unpin_fn)(void* data, size_t n) noexcept nogil

cdef enum:
    PIN_FROM = 16384

cdef void memory_pin(pin_fn take, unpin_fn give) noexcept nogil
# No new ones; those in use come back by and by.
cdef void memory_unpin() noexcept nogil
# Bytes of pinned blocks that are free.
cdef int64_t memory_pinned_free() noexcept nogil
# Give free pinned blocks back, largest first, until at most `keep` bytes of them are left.
cdef void memory_pinned_trim(int64_t keep) noexcept nogil


cdef inline void block_ref(Block* block) noexcept nogil:
    tf_add32(&block.refs, 1)


cdef inline void block_unref(Block* block) noexcept nogil:
    if block != NULL and tf_add32(&block.refs, -1) == 0:
        block_free(block)
