# See regions.pxd. Files are opened in /dev/shm by name only, mapped once and closed; the mapping is all that is kept.
from libc.errno cimport errno
from libc.stdint cimport UINT64_MAX, int32_t, int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy, memset, strerror

from triton_fast._native.core.memory cimport block_ref, block_unref, block_wrap, body_whole
from triton_fast._native.core.native cimport (
    MEM_CLIENT, MEM_GPU, TF_INVALID_ARG, TF_NOT_FOUND, TF_UNAVAILABLE, tf_add32, tf_cas32, tf_fail, tf_lock, tf_unlock,
)
from triton_fast._native.core.request cimport request_alloc, request_free, request_new

import os
import stat

from triton_fast.errors import NO_ROOM as NO_ROOM_TEXT, AlreadyExists, Internal, InvalidArg, Unavailable, make

cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* at, size_t n, int prot, int flags, int fd, int64_t offset)
    int munmap(void* at, size_t n)
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED
    void* MAP_FAILED

cdef extern from "tf_fault.h" nogil:
    int TF_FAULT_SLOTS
    int tf_fault_install()
    int32_t tf_fault_guard(void* start, size_t n, int32_t* broken)
    void tf_fault_forget(int32_t slot)
    int64_t tf_fault_seen()

cdef enum:
    NAME_CUT = 256          # bytes of a client's text that an error repeats
    MAX_DEVICE_REGIONS = 4096

DIRECTORY = "/dev/shm"
MAX_KEY = 255
PYTHON_PREFIX = "triton_python_backend_shm_region_"
# Named semaphores of the C library: what others write there steers their programs.
SEMAPHORES = "sem."
cdef bytes NO_ROOM_BYTES = NO_ROOM_TEXT.encode()
cdef const char* NO_ROOM = NO_ROOM_BYTES
cdef size_t PAGE = os.sysconf("SC_PAGESIZE")
cdef int32_t fault_lock = 0     # of the fault handler's slots; they are the process's


cdef inline int cut(uint32_t n) noexcept nogil:
    return <int>n if n < NAME_CUT else NAME_CUT


cdef inline uint32_t bucket_of(const char* name, uint32_t n) noexcept nogil:
    cdef uint32_t h = 2166136261, i
    for i in range(n):
        h = (h ^ <uint8_t>name[i]) * <uint32_t>16777619
    return (h ^ h >> 16) & (BUCKETS - 1)


cdef inline bint is_named(Region* region, const char* name, uint32_t n) noexcept nogil:
    return region.name_len == n and memcmp(region.name, name, n) == 0


# Under the lock. A region whose last reference is gone is about to leave: it is not found.
cdef Region* find(Registry* home, const char* name, uint32_t n) noexcept nogil:
    cdef Region* region = home.buckets[bucket_of(name, n)]
    while region != NULL:
        if region.block != NULL and is_named(region, name, n) and tf_load32(&region.block.refs) > 0:
            return region
        region = region.next
    return NULL


# One more reference, unless the last is gone.
cdef inline bint try_ref(Block* block) noexcept nogil:
    cdef int32_t n = tf_load32(&block.refs)
    while n > 0:
        if tf_cas32(&block.refs, n, n + 1):
            return True
        n = tf_load32(&block.refs)
    return False


cdef void registry_unref(Registry* home) noexcept nogil:
    if tf_add32(&home.refs, -1) == 0:
        free(home)


cdef inline size_t whole_pages(size_t n) noexcept nogil:
    return (n + PAGE - 1) & ~(PAGE - 1)


# The last reference of a region's block is gone, on whatever thread.
cdef void region_end(Block* block) noexcept nogil:
    cdef Region* region = <Region*>block.owner
    tf_lock(&region.home.lock)
    region.block = NULL
    tf_unlock(&region.home.lock)
    region.close(region)


cdef void region_closed(Region* region) noexcept nogil:
    cdef Registry* home = region.home
    cdef Region** link = &home.buckets[bucket_of(region.name, region.name_len)]
    tf_lock(&home.lock)
    while link[0] != NULL and link[0] != region:
        link = &link[0].next
    if link[0] == region:       # else the name was taken before it could be listed
        link[0] = region.next
        home.count -= 1
    tf_unlock(&home.lock)


cdef void region_drop(Region* region) noexcept nogil:
    cdef Registry* home = region.home
    cdef bint last
    tf_lock(&home.lock)
    region.refs -= 1
    last = region.refs == 0
    tf_unlock(&home.lock)
    if last:
        free(region)
        registry_unref(home)


cdef Region* region_closing(SharedRegions regions, const char* name, uint32_t n) noexcept nogil:
    cdef Registry* home = regions.ptr
    cdef Region* region = NULL
    cdef int32_t i = <int32_t>bucket_of(name, n) if n else 0
    cdef int32_t end = i + 1 if n else BUCKETS
    tf_lock(&home.lock)
    while region == NULL and i < end:
        region = home.buckets[i]
        while region != NULL and (region.block != NULL or not is_device(region)
                                  or (n and not is_named(region, name, n))):
            region = region.next
        i += 1
    if region != NULL:
        region.refs += 1
    tf_unlock(&home.lock)
    return region


cdef void unmap(Region* region) noexcept nogil:
    tf_lock(&fault_lock)
    tf_fault_forget(region.slot)
    tf_unlock(&fault_lock)
    munmap(region.data, region.nbytes)
    region_closed(region)
    region_drop(region)


# ---- loans

cdef int fail_find(const char* name, uint32_t n, tf_error* e) noexcept nogil:
    return tf_fail(e, TF_NOT_FOUND, b"Unable to find shared memory region: '%.*s'", cut(n), name)


cdef int fail_broken(Region* region, tf_error* e) noexcept nogil:
    return tf_fail(e, TF_INVALID_ARG, b"shared memory region '%.*s' can not be used any more: its file was made "
                   b"smaller than what was registered, or has no memory left; unregister it", cut(region.name_len),
                   region.name)


# offset and nbytes lie within the region. Sums are not built before they are known to fit.
cdef int check_bounds(Region* region, uint64_t offset, uint64_t nbytes, tf_error* e) noexcept nogil:
    if offset >= region.nbytes:
        return tf_fail(e, TF_INVALID_ARG, b"Invalid offset for shared memory region: '%.*s'", cut(region.name_len),
                       region.name)
    if nbytes > UINT64_MAX - offset:
        return tf_fail(e, TF_INVALID_ARG, b"Integer overflow detected: byte_size (%llu) + offset (%llu) exceeds "
                       b"maximum value (%llu) for region '%.*s'", <unsigned long long>nbytes,
                       <unsigned long long>offset, <unsigned long long>UINT64_MAX, cut(region.name_len), region.name)
    if nbytes > region.nbytes - offset:
        return tf_fail(e, TF_INVALID_ARG, b"Invalid offset + byte size for shared memory region: '%.*s'",
                       cut(region.name_len), region.name)
    if tf_load32(&region.broken):
        return fail_broken(region, e)
    return 0


cdef Lent* region_lend(Registry* home, Request* r, const char* name, uint32_t n, uint64_t offset, uint64_t nbytes,
                       int32_t wanted, tf_error* e) noexcept nogil:
    cdef Region* region
    cdef Lent* lent
    if home == NULL:
        fail_find(name, n, e)
        return NULL
    tf_lock(&home.lock)
    region = find(home, name, n)
    if region != NULL and not try_ref(region.block):
        region = NULL
    tf_unlock(&home.lock)
    if region == NULL:
        fail_find(name, n, e)
        return NULL
    lent = <Lent*>request_alloc(r, sizeof(Lent))
    if lent == NULL:
        tf_fail(e, TF_UNAVAILABLE, b"out of memory while decoding the request")
    if lent == NULL or check_bounds(region, offset, nbytes, e) != 0:
        block_unref(region.block)
        return NULL
    lent.block = region.block
    lent.ptr = region.block.data + offset
    lent.nbytes = <size_t>nbytes
    lent.wanted = wanted
    lent.next = r.lent
    r.lent = lent
    return lent


cdef int lent_check(Request* r, tf_error* e) noexcept nogil:
    cdef Lent* lent = r.lent
    while lent != NULL:
        if tf_load32(&region_of(lent.block).broken):
            return fail_broken(region_of(lent.block), e)
        lent = lent.next
    return 0


cdef int lent_settle(Request* r, Tensor* t, tf_error* e) noexcept nogil:
    cdef Block* region = t.block
    cdef Block* block
    if region == NULL or region.kind != MEM_CLIENT:
        return 0
    # The client says how much; it counts as if it had sent it.
    block = body_whole(t.nbytes)
    if block == NULL:
        return tf_fail(e, TF_UNAVAILABLE, "%s", NO_ROOM)
    memcpy(block.data, t.ptr, t.nbytes)
    t.block = block
    t.ptr = block.data
    block_unref(region)
    return lent_check(r, e)


cdef int lent_settle_all(Request* r, tf_error* e) noexcept nogil:
    cdef int32_t i
    for i in range(r.n_inputs):
        if lent_settle(r, &r.inputs[i], e) != 0:
            return -1
    return 0


# ---- registering

cdef object taken(str name):
    return AlreadyExists(f"shared memory region '{name}' already in manager")


# The file of /dev/shm that a key means. Raises the ServerError that the client gets.
cdef str file_of(str region, str key):
    cdef str file = key.lstrip("/")
    if not file or len(file.encode("utf-8", "surrogateescape")) > MAX_KEY or "/" in file or "\0" in file or (
            file in (".", "..")):
        raise InvalidArg(f"cannot register shared memory region '{region}' - invalid shm key '{key}'")
    if file.startswith(PYTHON_PREFIX):
        raise InvalidArg(f"cannot register shared memory region '{region}' with key '{key}' as the key contains the "
                         f"reserved prefix '{PYTHON_PREFIX}'")
    return file


# Open it, if clients may have it.
cdef int open_file(str file, str key) except -1:
    cdef int fd
    if file.startswith(SEMAPHORES):
        raise Internal(f"Unable to open shared memory region: '{key}'")
    try:
        fd = os.open(f"{DIRECTORY}/{file}", os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (OSError, ValueError):
        raise Internal(f"Unable to open shared memory region: '{key}'") from None
    try:
        if not may_use(os.fstat(fd)):
            raise Internal(f"Unable to open shared memory region: '{key}'")
    except BaseException:
        os.close(fd)
        raise
    return fd


# Whether the server may open this for whoever asks: a plain file under one name that is its own user's, or that its
# user could read and write without the rights of root, which are not lent to clients.
cdef bint may_use(info) except -1:
    if not stat.S_ISREG(info.st_mode) or info.st_nlink != 1:
        return False
    if info.st_uid == os.geteuid():
        return True
    if info.st_gid == os.getegid() or info.st_gid in os.getgroups():
        return info.st_mode & 0o060 == 0o060
    return info.st_mode & 0o006 == 0o006


cdef class SharedRegions:
    """The regions of one server, by name."""

    def __cinit__(self):
        self.ptr = <Registry*>calloc(1, sizeof(Registry))
        if self.ptr == NULL:
            raise MemoryError
        self.ptr.refs = 1

    def __dealloc__(self):
        if self.ptr != NULL:
            leave_all(self.ptr, False)
            leave_all(self.ptr, True)
            registry_unref(self.ptr)

    def __len__(self):
        return self.ptr.count

    def register(self, str name not None, str key not None, offset, byte_size):
        cdef bytes encoded = name.encode("utf-8", "surrogateescape")
        cdef bytes encoded_key = key.encode("utf-8", "surrogateescape")
        cdef Region* region
        cdef str file = file_of(name, key)
        cdef int fd
        if self.knows(encoded):
            raise taken(name)
        fd = open_file(file, key)
        try:
            size = os.fstat(fd).st_size
            if offset < 0 or byte_size < 0 or offset > size or byte_size > size - offset:
                raise InvalidArg(f"failed to register shared memory region '{name}': invalid args")
            region = region_new(self.ptr, name, encoded, encoded_key, fd, offset, byte_size)
        finally:
            os.close(fd)
        if not enlist(self.ptr, region):
            with nogil:
                block_unref(region.block)
            raise taken(name)

    cdef bint knows(self, bytes name) noexcept:
        cdef bint known
        tf_lock(&self.ptr.lock)
        known = find(self.ptr, name, <uint32_t>len(name)) != NULL
        tf_unlock(&self.ptr.lock)
        return known

    def check_free(self, str name not None):
        if self.knows(name.encode("utf-8", "surrogateescape")):
            raise taken(name)

    def status(self):
        return [(name, key, offset, size) for name, key, offset, size, device in rows_of(self.ptr) if device < 0]

    def device_status(self):
        return [(name, device, size) for name, _, _, size, device in rows_of(self.ptr) if device >= 0]

    def unregister(self, str name not None, bint cuda=False):
        """Take a name away; one that is not there, is leaving or of the other kind, is left alone."""
        cdef bytes encoded = name.encode("utf-8", "surrogateescape")
        cdef Region* region
        tf_lock(&self.ptr.lock)
        region = find(self.ptr, encoded, <uint32_t>len(encoded))
        if region != NULL and (region.leaving or is_device(region) != cuda):
            region = NULL
        if region != NULL:
            region.leaving = True
        tf_unlock(&self.ptr.lock)
        if region != NULL:
            with nogil:
                block_unref(region.block)

    def unregister_all(self, bint cuda=False):
        with nogil:
            leave_all(self.ptr, cuda)


cdef inline bint is_device(Region* region) noexcept nogil:
    return region.device >= 0


# (name, key, offset, byte_size, device) of each region, by name; device -1: system memory. Those that requests still
# use are in it, and those that are being closed.
cdef list rows_of(Registry* home):
    cdef Region* region
    cdef int32_t i
    # References are taken under the lock, names are copied outside: making objects may run anything.
    cdef list rows = []
    cdef size_t n = 0, k
    cdef size_t room = <size_t>home.count + 64
    cdef Region** found = <Region**>calloc(room, sizeof(Region*))
    if found == NULL:
        raise MemoryError
    tf_lock(&home.lock)
    for i in range(BUCKETS):
        region = home.buckets[i]
        while region != NULL:
            if n < room:
                region.refs += 1
                found[n] = region
                n += 1
            region = region.next
    tf_unlock(&home.lock)
    try:
        for k in range(n):
            rows.append((found[k].name[:found[k].name_len], found[k].key[:found[k].key_len], found[k].offset,
                         found[k].nbytes, found[k].device))
    finally:
        for k in range(n):
            region_drop(found[k])
        free(found)
    rows.sort()
    return [(name.decode("utf-8", "surrogateescape"), key.decode("utf-8", "surrogateescape"), offset, size, device)
            for name, key, offset, size, device in rows]


cdef void leave_all(Registry* home, bint cuda) noexcept nogil:
    cdef Region* region
    cdef int32_t i = 0
    while i < BUCKETS:
        tf_lock(&home.lock)
        region = home.buckets[i]
        while region != NULL and (region.leaving or is_device(region) != cuda):
            region = region.next
        if region != NULL:
            region.leaving = True
        tf_unlock(&home.lock)
        if region == NULL:
            i += 1
        else:
            block_unref(region.block)


# A region without memory and without a place among the names; region.block is NULL.
cdef Region* region_make(Registry* home, bytes encoded, bytes key, size_t nbytes) except NULL:
    cdef size_t n = len(encoded), m = len(key)
    cdef Region* region = <Region*>calloc(1, sizeof(Region) + n + m + 2)
    if region == NULL:
        raise MemoryError
    region.name = <char*>(region + 1)
    region.name_len = <uint32_t>n
    region.key = region.name + n + 1
    region.key_len = <uint32_t>m
    memcpy(region.name, <const char*>encoded, n)
    memcpy(region.key, <const char*>key, m)
    region.nbytes = nbytes
    region.home = home
    region.refs = 1
    region.device = -1
    region.slot = -1
    return region


# Whether it is listed: the name is not taken.
cdef bint enlist(Registry* home, Region* region) noexcept nogil:
    cdef Region** bucket = &home.buckets[bucket_of(region.name, region.name_len)]
    cdef bint taken
    tf_lock(&home.lock)
    taken = find(home, region.name, region.name_len) != NULL
    if not taken:
        region.next = bucket[0]
        bucket[0] = region
        home.count += 1
    tf_unlock(&home.lock)
    return not taken


cdef Region* region_new(Registry* home, str name, bytes encoded, bytes key, int fd, uint64_t offset,
                        size_t nbytes) except NULL:
    cdef Region* region = region_make(home, encoded, key, nbytes)
    cdef void* data = mmap(NULL, nbytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, <int64_t>offset)
    cdef int32_t slot
    cdef bint guarded
    if data == MAP_FAILED:
        text = strerror(errno).decode()
        free(region)
        raise InvalidArg(f"failed to register shared memory region '{name}': unable to process address space{text}")
    region.data = data
    region.offset = offset
    region.close = unmap
    # cap 0: it takes nothing of the memory that requests may have.
    region.block = block_wrap(data, 0, region_end, region)
    tf_lock(&fault_lock)
    guarded = tf_fault_install() == 0
    slot = tf_fault_guard(data, whole_pages(nbytes), &region.broken) if guarded else -1
    tf_unlock(&fault_lock)
    if region.block == NULL or slot < 0:
        if slot >= 0:
            tf_lock(&fault_lock)
            tf_fault_forget(slot)
            tf_unlock(&fault_lock)
        munmap(data, nbytes)
        if region.block != NULL:
            region.block.free_fn = NULL
            block_unref(region.block)
        free(region)
        raise Unavailable(f"failed to register shared memory region '{name}': there may be {TF_FAULT_SLOTS} at a time")
    region.slot = slot
    region.block.kind = MEM_CLIENT
    tf_add32(&home.refs, 1)
    return region


cdef int region_take(SharedRegions regions, str name, void* data, size_t nbytes, int32_t device,
                     void (*close)(Region*) noexcept nogil) except -1:
    cdef Region* region
    if regions.ptr.count >= MAX_DEVICE_REGIONS:
        raise Unavailable(f"failed to register shared memory region '{name}': there may be {MAX_DEVICE_REGIONS} at a "
                          "time")
    region = region_make(regions.ptr, name.encode("utf-8", "surrogateescape"), b"", nbytes)
    region.data = data
    region.device = device
    region.close = close
    region.block = block_wrap(data, 0, region_end, region)
    if region.block == NULL:
        free(region)
        raise MemoryError
    region.block.kind = MEM_GPU
    region.block.device = device
    tf_add32(&regions.ptr.refs, 1)
    if not enlist(regions.ptr, region):
        region.block.free_fn = NULL
        block_unref(region.block)
        region_drop(region)
        raise taken(name)
    return 0


# ---- tests

def faults():
    """Return how many faults in regions the handler has mended."""
    return tf_fault_seen()


cdef class Loan:
    """A stretch of a region in the hands of a request, until ``end`` or the object's end (tests and bench)."""

    cdef Request* r
    cdef Lent* lent

    def __cinit__(self, SharedRegions regions, bytes name not None, offset, byte_size):
        cdef tf_error e
        cdef Registry* home = regions.ptr if regions is not None else NULL
        cdef const char* text = name
        cdef uint32_t n = <uint32_t>len(name)
        cdef uint64_t at = offset, size = byte_size
        self.r = request_new(NULL)
        if self.r == NULL:
            raise MemoryError
        with nogil:
            self.lent = region_lend(home, self.r, text, n, at, size, FOR_INPUT, &e)
        if self.lent == NULL:
            raise make(e.code, e.text[:e.len].decode(errors="replace"))

    def __dealloc__(self):
        self.end()

    def end(self):
        cdef Request* r = self.r
        self.r = NULL
        if r != NULL:
            with nogil:
                request_free(r)

    def read(self, bint settle=False):
        """Return the bytes as an input would hold them: in place, or copied out as texts are."""
        cdef tf_error e
        cdef Tensor t
        cdef int rc = 0
        if self.r == NULL:
            raise ValueError("the loan has ended")
        memset(&t, 0, sizeof(t))
        t.ptr = self.lent.ptr
        t.nbytes = self.lent.nbytes
        t.block = self.lent.block
        block_ref(t.block)
        if settle:
            with nogil:
                rc = lent_settle(self.r, &t, &e)
        try:
            if rc == 0:
                data = (<char*>t.ptr)[:t.nbytes]
                rc = lent_check(self.r, &e)
        finally:
            block_unref(t.block)
        if rc != 0:
            raise make(e.code, e.text[:e.len].decode(errors="replace"))
        return data

    def write(self, bytes data not None):
        """Write at most as much as was lent; whether the region is whole is told by ``read``."""
        if self.r == NULL or <size_t>len(data) > self.lent.nbytes:
            raise ValueError("more than was lent")
        memcpy(self.lent.ptr, <const char*>data, len(data))
