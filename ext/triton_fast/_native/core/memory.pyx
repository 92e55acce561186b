# Block pool. Size classes of 2^k and 1.5 * 2^k bytes from 512 B to 64 MiB; larger blocks go straight to the allocator.
# Freed blocks are kept up to a byte budget, so that a large tensor does not fault in its pages at each request;
# trim() gives them back. Knows nothing of requests or tensors.
from libc.stdint cimport int32_t, int64_t, uint8_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy
from posix.stdlib cimport posix_memalign

from triton_fast._native.core.native cimport (
    MEM_CPU, MEM_GPU, MEM_PINNED, tf_add64, tf_load64, tf_lock, tf_store64, tf_unlock,
)
from triton_fast._native.core.poison cimport tf_poison, tf_unpoison

cdef extern from "<malloc.h>" nogil:
    int mallopt(int what, int value)
    int M_MMAP_THRESHOLD
    int M_TRIM_THRESHOLD
    int M_ARENA_MAX

cdef enum:
    MIN_SHIFT = 9
    MAX_SHIFT = 26
    N_CLASSES = 2 * (MAX_SHIFT - MIN_SHIFT) + 1
    ALIGN = 64
    PIN_CLASS = 10              # class_of(PIN_FROM)
    GROWTH = 4                  # of a body's block; each growth copies what came: a third of the body in all

# A length past this is refused before any arithmetic on it: 2^46 bytes is beyond the address space of a process.
cdef size_t MAX_BLOCK = <size_t>1 << 46

cdef struct FreeList:
    int32_t lock
    int32_t count
    Block* head

cdef FreeList lists[N_CLASSES]
cdef FreeList headers            # Block structs of wrapped and freed memory
cdef int64_t cached_bytes = 0
cdef int64_t live_blocks = 0
cdef int64_t live_bytes = 0
cdef int64_t keep_bytes = <int64_t>256 << 20
cdef int64_t body_limit = 0     # 0 = none
# The budget of cached blocks as block_free compares it: keep_bytes and all pinned memory, which is always kept.
cdef int64_t kept_bytes = keep_bytes
cdef int64_t pinned_idle = 0    # of cached_bytes, what is pinned
cdef pin_fn pin_take = NULL
cdef unpin_fn pin_give = NULL       # set before pin_take, never taken back: blocks may outlive the GPU's use


cdef inline size_t class_size(int c) noexcept nogil:
    cdef size_t base = <size_t>1 << (MIN_SHIFT + (c >> 1))
    return base + (base >> 1) if c & 1 else base


# The smallest class that holds n, or -1.
cdef inline int class_of(size_t n) noexcept nogil:
    cdef int c = 0
    if n <= (<size_t>1 << MIN_SHIFT):
        return 0
    if n > (<size_t>1 << MAX_SHIFT):
        return -1
    c = 2 * (63 - __builtin_clzl(n - 1) - MIN_SHIFT)
    # n - 1 has its top bit at 2^(MIN_SHIFT + c/2): n fits 1.5 times that, or needs the next power.
    if n <= class_size(c + 1):
        return c + 1
    return c + 2


cdef extern from * nogil:
    int __builtin_clzl(unsigned long x)


cdef inline Block* header_new() noexcept nogil:
    cdef Block* block
    tf_lock(&headers.lock)
    block = headers.head
    if block != NULL:
        headers.head = block.next
        headers.count -= 1
    tf_unlock(&headers.lock)
    if block == NULL:
        block = <Block*>malloc(sizeof(Block))
    return block


cdef inline void header_free(Block* block) noexcept nogil:
    tf_lock(&headers.lock)
    if headers.count < 4096:
        block.next = headers.head
        headers.head = block
        headers.count += 1
        block = NULL
    tf_unlock(&headers.lock)
    free(block)


cdef void* pinned_new(size_t cap) noexcept nogil:
    cdef pin_fn take = pin_take
    cdef void* data = take(cap) if take != NULL else NULL
    if data != NULL:
        tf_add64(&kept_bytes, <int64_t>cap)
    return data


# Memory of a size class back to where it came from.
cdef void data_free(Block* block) noexcept nogil:
    if block.kind == MEM_PINNED:
        tf_add64(&kept_bytes, -<int64_t>block.cap)
        pin_give(block.data, block.cap)
    else:
        free(block.data)


cdef Block* block_new(size_t n) noexcept nogil:
    cdef int c
    cdef Block* block = NULL
    cdef void* data = NULL
    cdef size_t cap
    if n > MAX_BLOCK:
        return NULL
    c = class_of(n)
    if c >= 0:
        tf_lock(&lists[c].lock)
        block = lists[c].head
        if block != NULL:
            lists[c].head = block.next
            lists[c].count -= 1
        tf_unlock(&lists[c].lock)
    if block != NULL:
        tf_unpoison(block.data, block.cap)
        tf_add64(&cached_bytes, -<int64_t>block.cap)
        if block.kind == MEM_PINNED:
            tf_add64(&pinned_idle, -<int64_t>block.cap)
    else:
        cap = class_size(c) if c >= 0 else n
        block = header_new()
        if block == NULL:
            return NULL
        if pin_take != NULL and c >= PIN_CLASS:
            data = pinned_new(cap)
        block.kind = MEM_CPU if data == NULL else MEM_PINNED
        if data == NULL and posix_memalign(&data, ALIGN, cap) != 0:
            header_free(block)
            return NULL
        block.data = <uint8_t*>data
        block.cap = cap
        block.size_class = c
        block.device = 0
        block.free_fn = NULL
        block.owner = NULL
    block.refs = 1
    block.next = NULL
    tf_add64(&live_blocks, 1)
    tf_add64(&live_bytes, <int64_t>block.cap)
    return block


cdef Block* block_wrap(void* data, size_t n, void (*free_fn)(Block*) noexcept nogil, void* owner) noexcept nogil:
    cdef Block* block = header_new()
    if block == NULL:
        return NULL
    block.data = <uint8_t*>data
    block.cap = n
    block.refs = 1
    block.size_class = -2
    block.kind = MEM_CPU
    block.device = 0
    block.next = NULL
    block.free_fn = free_fn
    block.owner = owner
    tf_add64(&live_blocks, 1)
    tf_add64(&live_bytes, <int64_t>n)
    return block


cdef Block* block_wrap_device(void* data, size_t n, int32_t device, void (*free_fn)(Block*) noexcept nogil,
                              void* owner) noexcept nogil:
    cdef Block* block = block_wrap(data, n, free_fn, owner)
    if block != NULL:
        block.kind = MEM_GPU
        block.device = device
        tf_add64(&live_bytes, -<int64_t>n)
    return block


cdef void block_free(Block* block) noexcept nogil:
    cdef int c = block.size_class
    tf_add64(&live_blocks, -1)
    tf_add64(&live_bytes, -<int64_t>block.cap)
    if c == -2:
        if block.kind == MEM_GPU:
            tf_add64(&live_bytes, <int64_t>block.cap)
        if block.free_fn != NULL:
            block.free_fn(block)
        header_free(block)
        return
    if c >= 0 and (tf_add64(&cached_bytes, <int64_t>block.cap) <= kept_bytes or block.kind == MEM_PINNED):
        if block.kind == MEM_PINNED:
            tf_add64(&pinned_idle, <int64_t>block.cap)
        tf_poison(block.data, block.cap)
        tf_lock(&lists[c].lock)
        block.next = lists[c].head
        lists[c].head = block
        lists[c].count += 1
        tf_unlock(&lists[c].lock)
        return
    if c >= 0:
        tf_add64(&cached_bytes, -<int64_t>block.cap)
    data_free(block)
    header_free(block)


cdef Block* body_whole(size_t whole) noexcept nogil:
    cdef int64_t limit = tf_load64(&body_limit)
    if limit and (whole > <size_t>limit or tf_load64(&live_bytes) > limit - <int64_t>whole):
        return NULL
    return block_new(whole)


cdef Block* body_new(size_t whole) noexcept nogil:
    return body_whole(whole if whole < FIRST_BODY else FIRST_BODY)


cdef int body_grow(Block** block, size_t at, size_t received, size_t whole) noexcept nogil:
    cdef size_t wanted = block[0].cap * GROWTH
    cdef Block* grown = body_whole(wanted if wanted < whole else whole)
    if grown == NULL:
        return -1
    memcpy(grown.data + at, block[0].data + at, received)
    if block[0].kind == MEM_PINNED:
        block_free(block[0])
        block[0] = grown
        return 0
    # Its memory goes back at once: kept, the steps of one large body would be as much again.
    tf_add64(&live_blocks, -1)
    tf_add64(&live_bytes, -<int64_t>block[0].cap)
    free(block[0].data)
    header_free(block[0])
    block[0] = grown
    return 0


def set_body_limit(int64_t n):
    """Refuse bytes from networks while blocks hold ``n`` bytes, theirs included; 0 = no limit. Process-wide."""
    if n < 0:
        raise ValueError(f"the limit of request memory must be >= 0, got {n}")
    tf_store64(&body_limit, n)


cdef void memory_pin(pin_fn take, unpin_fn give) noexcept nogil:
    global pin_take, pin_give
    pin_give = give
    # What lies here unpinned would be handed out again and again.
    drop(0, MEM_CPU, PIN_CLASS)
    pin_take = take


cdef void memory_unpin() noexcept nogil:
    global pin_take
    pin_take = NULL


cdef int64_t memory_pinned_free() noexcept nogil:
    return tf_load64(&pinned_idle)


cdef void memory_pinned_trim(int64_t keep) noexcept nogil:
    cdef int64_t idle = memory_pinned_free()
    if idle > keep:
        drop(tf_load64(&cached_bytes) - (idle - keep), MEM_PINNED, PIN_CLASS)


# Give cached blocks of one kind back, largest first, down to class `least`, until at most `keep` bytes are cached.
cdef void drop(int64_t keep, int32_t kind, int least) noexcept nogil:
    cdef int c
    cdef Block* block
    cdef Block* gone
    cdef Block** at
    for c in range(N_CLASSES - 1, least - 1, -1):
        gone = NULL
        tf_lock(&lists[c].lock)
        at = &lists[c].head
        while at[0] != NULL and tf_load64(&cached_bytes) > keep:
            block = at[0]
            if block.kind != kind:
                at = &block.next
                continue
            at[0] = block.next
            lists[c].count -= 1
            tf_add64(&cached_bytes, -<int64_t>block.cap)
            if kind == MEM_PINNED:
                tf_add64(&pinned_idle, -<int64_t>block.cap)
            block.next = gone
            gone = block
        tf_unlock(&lists[c].lock)
        while gone != NULL:
            block = gone
            gone = block.next
            tf_unpoison(block.data, block.cap)
            data_free(block)
            header_free(block)


def trim(int64_t keep=0):
    """Give cached blocks back to the allocator, largest first, until at most `keep` bytes are cached.

    Pinned ones stay, since making them is dear: cuda.pinned.trim is for them.
    """
    with nogil:
        drop(keep + (memory_pinned_free() if pin_give != NULL else 0), MEM_CPU, 0)


def return_large_memory():
    """Have the C allocator give memory of 1 MiB and more back to the system when it is freed.

    By itself glibc raises that bound with each large block it sees, up to 32 MiB, and keeps what lies below in one heap
    per thread. Large blocks that come again and again are kept by the pool. Process-wide; harmless to call again.
    """
    mallopt(M_MMAP_THRESHOLD, 1 << 20)
    mallopt(M_TRIM_THRESHOLD, 1 << 20)
    mallopt(M_ARENA_MAX, 4)


def set_keep_bytes(int64_t n):
    """Set the byte budget of cached blocks (default 256 MiB)."""
    global keep_bytes
    if n < 0:
        raise ValueError(f"the budget of cached blocks must be >= 0, got {n}")
    tf_add64(&kept_bytes, n - keep_bytes)
    keep_bytes = n


def stats():
    """Return the pool's counters: live_blocks, live_bytes, cached_bytes."""
    return {
        "live_blocks": tf_load64(&live_blocks),
        "live_bytes": tf_load64(&live_bytes),
        "cached_bytes": tf_load64(&cached_bytes),
    }


def _self_test(sizes):
    """Take a block of each size, fill it, release all; return their capacities (tests only)."""
    cdef size_t n
    cdef Block* block
    cdef Block* chain = NULL
    caps = []
    for n in sizes:
        block = block_new(n)
        if block == NULL:
            caps.append(None)
            continue
        if <size_t>block.data % ALIGN:
            raise AssertionError("a block is not aligned")
        if n:
            block.data[0] = 1
            block.data[n - 1] = 1
        caps.append(block.cap)
        block.next = chain
        chain = block
    while chain != NULL:
        block = chain
        chain = block.next
        block_unref(block)
    return caps
