# See region.pxd and docs/python_worker.md. The file is of full size from the start and sealed, so the worker can not
# truncate it under the server (SIGBUS) or make it larger; memory is taken page by page when written.
import os

from libc.errno cimport errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memset
from posix.unistd cimport close, ftruncate

from triton_fast._native.core.memory cimport Block, block_wrap
from triton_fast._native.core.native cimport (
    MEM_CLIENT, tf_add32, tf_add64, tf_load32, tf_load64, tf_lock, tf_store32, tf_unlock,
)
from triton_fast._native.pyworker.layout cimport CONTROL_BYTES, Control, HEADER, LAYOUT_MAGIC, LAYOUT_VERSION

cdef enum:
    PAGE = 4096
    N_CLASSES = 160
    SWEEP_MIN = 16

cdef int64_t live_regions = 0


cdef extern from "<sys/mman.h>" nogil:
    int memfd_create(const char* name, unsigned int flags)
    void* mmap(void* addr, size_t n, int prot, int flags, int fd, long offset)
    int munmap(void* addr, size_t n)
    int madvise(void* addr, size_t n, int advice)
    int MFD_CLOEXEC, MFD_ALLOW_SEALING, PROT_READ, PROT_WRITE, MAP_SHARED, MAP_NORESERVE, MADV_REMOVE, MADV_DONTDUMP
    void* MAP_FAILED

cdef extern from *:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <linux/fcntl.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    static int tf_seal(int fd) {
        return (int)syscall(SYS_fcntl, fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL);
    }
    """
    int tf_seal(int fd) nogil

cdef extern from * nogil:
    int __builtin_clzl(unsigned long x)

# What a block over shared memory stands for.
cdef struct Hold:
    Region* region
    Chunk* chunk            # inbound; NULL: outbound, at off
    uint64_t off


# Four classes per power of two of pages; a class's chunk is a whole number of pages. -1: too large.
cdef inline int class_of(size_t n, size_t* size) noexcept nogil:
    cdef size_t pages = (n + PAGE - 1) // PAGE
    cdef int shift
    cdef size_t step
    if pages <= 4:
        size[0] = (pages if pages else 1) * PAGE
        return <int>(pages if pages else 1)
    if pages > (<size_t>1 << 36):
        return -1
    shift = 63 - __builtin_clzl(pages - 1) - 2
    step = (pages - 1) >> shift             # 4..7
    size[0] = ((step + 1) << shift) * PAGE
    return 5 + shift * 4 + <int>step - 4


cdef Region* region_new(size_t in_bytes, size_t out_bytes) except NULL:
    cdef Region* g = <Region*>calloc(1, sizeof(Region))
    cdef Control* control
    cdef void* base
    if g == NULL:
        raise MemoryError
    in_bytes = (in_bytes + PAGE - 1) & ~<size_t>(PAGE - 1)
    out_bytes = (out_bytes + PAGE - 1) & ~<size_t>(PAGE - 1)
    g.refs = 1
    g.size = CONTROL_BYTES + in_bytes + out_bytes
    g.in_off = CONTROL_BYTES
    g.in_bytes = in_bytes
    g.out_off = CONTROL_BYTES + in_bytes
    g.out_bytes = out_bytes
    g.sweep_at = SWEEP_MIN
    g.fd = memfd_create(b"triton_fast", MFD_CLOEXEC | MFD_ALLOW_SEALING)
    if g.fd < 0 or ftruncate(g.fd, g.size) != 0 or tf_seal(g.fd) != 0:
        reason = errno
        if g.fd >= 0:
            close(g.fd)
        free(g)
        raise OSError(reason, f"can not make {in_bytes + out_bytes} bytes of shared memory: {os.strerror(reason)}")
    base = mmap(NULL, g.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, g.fd, 0)
    g.pages = <Chunk**>calloc(in_bytes // PAGE + 1, sizeof(Chunk*))
    if base == MAP_FAILED or g.pages == NULL:
        reason = errno
        if base != MAP_FAILED:
            munmap(base, g.size)
        free(g.pages)
        close(g.fd)
        free(g)
        raise OSError(reason, f"can not map {in_bytes + out_bytes} bytes of shared memory: {os.strerror(reason)}")
    madvise(base, g.size, MADV_DONTDUMP)
    g.base = <uint8_t*>base
    control = <Control*>base
    control.magic = LAYOUT_MAGIC
    control.version = LAYOUT_VERSION
    control.region_bytes = g.size
    control.in_off = g.in_off
    control.in_bytes = g.in_bytes
    control.out_off = g.out_off
    control.out_bytes = g.out_bytes
    tf_add64(&live_regions, 1)
    return g


cdef void region_ref(Region* g) noexcept nogil:
    tf_add32(&g.refs, 1)


cdef void free_list_of(Chunk* c) noexcept nogil:
    cdef Chunk* after
    while c != NULL:
        after = c.next
        free(c)
        c = after


cdef void region_unref(Region* g) noexcept nogil:
    cdef int i
    if g == NULL or tf_add32(&g.refs, -1) != 0:
        return
    free_list_of(g.used)
    for i in range(N_CLASSES):
        free_list_of(g.free_list[i])
    free(g.pages)
    munmap(g.base, g.size)
    close(g.fd)
    free(g)
    tf_add64(&live_regions, -1)


# The lock is held. Move what nobody uses any more to the free lists.
cdef void sweep(Region* g) noexcept nogil:
    cdef Chunk** link = &g.used
    cdef Chunk* c
    while link[0] != NULL:
        c = link[0]
        if tf_load32(<int32_t*>c.header) == 0 and tf_load32(&c.refs) == 0:
            link[0] = c.next
            c.given = False
            c.next = g.free_list[c.size_class]
            g.free_list[c.size_class] = c
            g.n_used -= 1
        else:
            link = &c.next
    # Looking costs as much as there is in use: the next look is due when that has doubled.
    g.sweep_at = g.n_used * 2 if g.n_used * 2 > SWEEP_MIN else SWEEP_MIN


# The lock is held, and nothing is in use: from the beginning again.
cdef void start_over(Region* g) noexcept nogil:
    cdef int i
    for i in range(N_CLASSES):
        free_list_of(g.free_list[i])
        g.free_list[i] = NULL
    memset(g.pages, 0, g.bump // PAGE * sizeof(Chunk*))
    g.bump = 0


cdef bint inbound_fits(Region* g, size_t n) noexcept nogil:
    cdef size_t size = 0
    cdef int k
    if n > g.in_bytes:
        return False
    k = class_of(n + HEADER, &size)
    return 0 <= k < N_CLASSES and size <= g.in_bytes


cdef Chunk* inbound_new(Region* g, size_t n) noexcept nogil:
    cdef size_t size = 0, page
    cdef int k
    cdef Chunk* c
    if n > g.in_bytes:
        return NULL
    k = class_of(n + HEADER, &size)
    if k < 0 or k >= N_CLASSES:
        return NULL
    tf_lock(&g.lock)
    if g.free_list[k] == NULL or g.n_used >= g.sweep_at:
        sweep(g)
    c = g.free_list[k]
    if c == NULL and g.used == NULL and size > g.in_bytes - g.bump:
        start_over(g)       # what is free was cut too small
    if c != NULL:
        g.free_list[k] = c.next
    elif size <= g.in_bytes - g.bump:
        c = <Chunk*>malloc(sizeof(Chunk))
        if c != NULL:
            c.header = g.base + g.in_off + g.bump
            c.cap = size - HEADER
            c.size_class = k
            for page in range(g.bump // PAGE, (g.bump + size) // PAGE):
                g.pages[page] = c
            g.bump += size
    else:
        while c == NULL and k < N_CLASSES - 1:      # a larger one is better than none
            k += 1
            c = g.free_list[k]
        if c != NULL:
            g.free_list[k] = c.next
    if c != NULL:
        c.next = g.used
        g.used = c
        g.n_used += 1
        c.given = True
        tf_store32(&c.refs, 1)
        (<uint64_t*>(c.header + 8))[0] = c.cap
        tf_store32(<int32_t*>c.header, 1)
    tf_unlock(&g.lock)
    return c


cdef void inbound_told(Chunk* chunk) noexcept nogil:
    tf_add32(&chunk.refs, -1)


cdef void inbound_drop(Chunk* chunk) noexcept nogil:
    tf_store32(<int32_t*>chunk.header, 0)
    tf_add32(&chunk.refs, -1)


cdef void inbound_trim(Region* g, size_t keep) noexcept nogil:
    cdef Chunk* c
    cdef int i
    cdef size_t size
    tf_lock(&g.lock)
    sweep(g)
    if g.used == NULL and g.bump > 0:
        keep = (keep + PAGE - 1) & ~<size_t>(PAGE - 1)
        if g.bump > keep:
            madvise(g.base + g.in_off + keep, g.bump - keep, MADV_REMOVE)
        start_over(g)
    else:
        for i in range(N_CLASSES):
            c = g.free_list[i]
            while c != NULL:
                size = c.cap + HEADER
                if size <= keep:
                    keep -= size
                else:
                    madvise(c.header, size, MADV_REMOVE)
                c = c.next
    tf_unlock(&g.lock)


cdef bint is_outbound(Region* g, uint64_t off, uint64_t n) noexcept nogil:
    return (off >= g.out_off + HEADER and off & 7 == 0 and off <= g.out_off + g.out_bytes
            and n <= g.out_off + g.out_bytes - off)


cdef void release_hold(Block* block) noexcept nogil:
    cdef Hold* hold = <Hold*>block.owner
    if hold.chunk != NULL:
        tf_add32(&hold.chunk.refs, -1)
    else:
        outbound_release(hold.region, hold.off)
    region_unref(hold.region)
    free(hold)


cdef Block* wrap(Region* g, Chunk* chunk, uint64_t off, size_t n) noexcept nogil:
    cdef Hold* hold = <Hold*>malloc(sizeof(Hold))
    cdef Block* block
    if hold == NULL:
        return NULL
    hold.region = g
    hold.chunk = chunk
    hold.off = off
    block = block_wrap(g.base + off, n, release_hold, hold)
    if block == NULL:
        free(hold)
        return NULL
    block.kind = MEM_CLIENT         # the worker may write there at any time
    region_ref(g)
    return block


cdef void outbound_release(Region* g, uint64_t off) noexcept nogil:
    tf_store32(<int32_t*>(g.base + off - HEADER), 0)


cdef Block* outbound_block(Region* g, uint64_t off, size_t n) noexcept nogil:
    return wrap(g, NULL, off, n)


cdef Block* inbound_block(Region* g, uint64_t off, size_t n) noexcept nogil:
    cdef Chunk* c
    cdef Block* block = NULL
    if off < g.in_off or off >= g.in_off + g.in_bytes:
        return NULL
    tf_lock(&g.lock)
    c = g.pages[(off - g.in_off) // PAGE]
    # The word is read under the lock that giving the chunk out again needs; from then on the count holds it.
    if c != NULL and c.given and (tf_load32(<int32_t*>c.header) != 0 or tf_load32(&c.refs) != 0) \
            and g.base + off >= c.header + HEADER and n <= <size_t>(c.header + HEADER + c.cap - (g.base + off)):
        tf_add32(&c.refs, 1)
    else:
        c = NULL
    tf_unlock(&g.lock)
    if c != NULL:
        block = wrap(g, c, off, n)
        if block == NULL:
            tf_add32(&c.refs, -1)
    return block


def stats():
    """Return the debug counter: live_regions."""
    return {"live_regions": tf_load64(&live_regions)}
