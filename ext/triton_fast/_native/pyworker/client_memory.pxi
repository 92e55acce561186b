# Part of client.pyx: the mapped region, leases of what lies in its inbound heap, and the outbound heap, which the
# worker manages with bookkeeping of its own. Knows nothing of rings and records.

cdef enum:
    PAGE = 4096
    CLASSES = 128
    SWEEP_MIN = 16
    DROPS = 64              # kept objects that one sweep can hand out

# A stretch of the outbound heap. In use until the server has written 0 into its word.
cdef struct Chunk:
    Chunk* next
    uint8_t* header
    size_t cap              # bytes of data
    PyObject* kept          # what must live until the server has read the message: one reference, or NULL
    int32_t size_class

cdef struct Heap:
    uint8_t* base
    size_t size
    size_t bump             # bytes ever given out
    Chunk* used
    uint32_t n_used
    uint32_t n_kept
    uint32_t sweep_at       # n_used at which to look for what is free again
    int32_t lock
    Chunk* free_list[CLASSES]

cdef struct Drops:
    uint32_t n
    PyObject* objects[DROPS]

# A lease's place in the list of all, newest first.
cdef struct Node:
    Node* before
    Node* after
    void* owner             # borrowed: the lease
    uint8_t* data
    size_t size


# Four classes per power of two, from 4096 bytes, header included. -1: too large.
cdef inline int class_of(size_t n, size_t* size) noexcept nogil:
    cdef size_t units, step
    cdef int shift
    if n > <size_t>1 << 40:
        return -1
    units = (n + 1023) >> 10
    if units <= 4:
        size[0] = PAGE
        return 0
    shift = 63 - __builtin_clzl(units - 1) - 2
    step = (units - 1) >> shift             # 4..7
    size[0] = ((step + 1) << shift) << 10
    return 1 + shift * 4 + <int>step - 4


# The lock is held. Move what the server has read to the free lists; what was kept for it goes to `drops`, to be let go
# without the lock: letting go runs destructors.
cdef void heap_sweep(Heap* h, Drops* drops) noexcept nogil:
    cdef Chunk** link = &h.used
    cdef Chunk* c
    while link[0] != NULL:
        c = link[0]
        if tf_load32(<int32_t*>c.header) != 0 or (c.kept != NULL and drops.n == DROPS):
            link = &c.next
            continue
        if c.kept != NULL:
            drops.objects[drops.n] = c.kept
            drops.n += 1
            h.n_kept -= 1
            c.kept = NULL
        link[0] = c.next
        c.next = h.free_list[c.size_class]
        h.free_list[c.size_class] = c
        h.n_used -= 1
    # Looking costs as much as there is in use: the next look is due when that has doubled.
    h.sweep_at = h.n_used * 2 if h.n_used * 2 > SWEEP_MIN else SWEEP_MIN


cdef void free_chunks(Chunk* c) noexcept nogil:
    cdef Chunk* after
    while c != NULL:
        after = c.next
        free(c)
        c = after


# The lock is held, and nothing is in use: from the beginning again.
cdef void heap_reset(Heap* h) noexcept nogil:
    cdef int i
    for i in range(CLASSES):
        free_chunks(h.free_list[i])
        h.free_list[i] = NULL
    h.bump = 0


# n bytes of data, or NULL when there is no place now.
cdef Chunk* heap_take(Heap* h, size_t n, Drops* drops) noexcept nogil:
    cdef size_t size = 0
    cdef Chunk* c
    cdef int k, larger
    if n > h.size:
        return NULL
    k = class_of(n + HEADER, &size)
    if k < 0 or size > h.size:
        return NULL
    tf_lock(&h.lock)
    if h.used != NULL and (h.free_list[k] == NULL or h.n_used >= h.sweep_at):
        heap_sweep(h, drops)
    c = h.free_list[k]
    if c == NULL and size > h.size - h.bump:
        if h.used == NULL:
            heap_reset(h)
        else:
            for larger in range(k + 1, CLASSES):
                if h.free_list[larger] != NULL:
                    k = larger
                    c = h.free_list[k]
                    break
    if c != NULL:
        h.free_list[k] = c.next
    elif size <= h.size - h.bump:
        c = <Chunk*>malloc(sizeof(Chunk))
        if c != NULL:
            c.header = h.base + h.bump
            c.cap = size - HEADER
            c.size_class = k
            c.kept = NULL
            h.bump += size
    if c != NULL:
        c.next = h.used
        h.used = c
        h.n_used += 1
        (<uint32_t*>c.header)[1] = 0
        (<uint64_t*>(c.header + 8))[0] = c.cap
        tf_store32(<int32_t*>c.header, 1)
    tf_unlock(&h.lock)
    return c


# Whole pages within [p, p + n) go back to the system.
cdef void punch(uint8_t* p, size_t n) noexcept nogil:
    cdef size_t skip = (PAGE - (<size_t>p & (PAGE - 1))) & (PAGE - 1)
    if n > skip and (n - skip) >= PAGE:
        madvise(p + skip, (n - skip) & ~<size_t>(PAGE - 1), MADV_REMOVE)


cdef void heap_trim(Heap* h, size_t keep, Drops* drops) noexcept nogil:
    cdef Chunk* c
    cdef size_t size
    cdef int i
    tf_lock(&h.lock)
    heap_sweep(h, drops)
    if h.used == NULL:
        if h.bump > keep:
            punch(h.base + keep, h.bump - keep)
        heap_reset(h)
    else:
        for i in range(CLASSES):
            c = h.free_list[i]
            while c != NULL:
                size = c.cap + HEADER
                if size <= keep:
                    keep -= size
                else:
                    punch(c.header, size)
                c = c.next
    tf_unlock(&h.lock)


cdef inline void let_go(Drops* drops):
    cdef uint32_t i
    for i in range(drops.n):
        Py_DECREF(<object>drops.objects[i])
    drops.n = 0


@cython.final
@cython.no_gc
cdef class Region:
    """The region of a worker, mapped until the last view of it has gone.

    Parameters
    ----------
    fd
        The region's descriptor; it is not closed, and may be once this is made.

    Raises
    ------
    ValueError
        It is no such region, or its parts do not fit into it.
    """
    cdef uint8_t* base
    cdef size_t size
    cdef size_t in_off
    cdef size_t in_bytes
    cdef size_t out_off
    cdef Heap heap
    cdef Node* newest
    cdef uint32_t n_leases
    cdef int64_t wait_ns        # how long a message waits for outbound memory

    def __cinit__(self, int fd):
        cdef Control c
        cdef void* base
        self.size = <size_t>os.fstat(fd).st_size
        if self.size < CONTROL_BYTES:
            raise ValueError(f"a region has {CONTROL_BYTES} bytes or more, this one {self.size}")
        base = mmap(NULL, self.size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE, fd, 0)
        if base == MAP_FAILED:
            raise OSError(errno, f"can not map {self.size} bytes: {os.strerror(errno)}")
        self.base = <uint8_t*>base
        madvise(base, self.size, MADV_DONTDUMP)
        memcpy(&c, base, sizeof(Control))
        if c.magic != LAYOUT_MAGIC or c.version != LAYOUT_VERSION:
            raise ValueError(f"not a region of layout {LAYOUT_VERSION}: magic {c.magic:#x}, version {c.version}")
        if c.region_bytes != self.size or not self.holds(c.in_off, c.in_bytes) \
                or not self.holds(c.out_off, c.out_bytes) \
                or (c.in_off + c.in_bytes > c.out_off and c.out_off + c.out_bytes > c.in_off):
            raise ValueError(f"the parts of the region do not fit into its {self.size} bytes")
        self.in_off = c.in_off
        self.in_bytes = c.in_bytes
        self.out_off = c.out_off
        self.heap.base = self.base + c.out_off
        self.heap.size = c.out_bytes
        self.heap.sweep_at = SWEEP_MIN
        self.wait_ns = WAIT_NS

    cdef bint holds(self, uint64_t off, uint64_t n):
        return off >= CONTROL_BYTES and off % HEADER == 0 and off <= self.size and n <= self.size - off

    def __dealloc__(self):
        cdef Chunk* c = self.heap.used
        while c != NULL:
            Py_XDECREF(c.kept)
            c = c.next
        free_chunks(self.heap.used)
        heap_reset(&self.heap)
        if self.base != NULL:
            munmap(self.base, self.size)

    # n bytes of outbound data, in use from now on. Waits without the GIL for the server to read what it has, if it may,
    # but not longer than the message is wanted: it belongs to `requests`, or without them to one.
    cdef Chunk* take(self, size_t n, bint may_wait=True, list requests=None, uint32_t slot=0,
                     uint32_t generation=0) except NULL:
        cdef Drops drops
        cdef Chunk* c
        cdef int64_t end = 0, pause_ns = 20000
        drops.n = 0
        while True:
            c = heap_take(&self.heap, n, &drops)
            if drops.n:
                let_go(&drops)
            if c != NULL:
                return c
            if n > self.heap.size or self.heap.used == NULL:
                self.no_memory(n, f"{n} bytes for the server do not fit into the {self.heap.size} bytes of its memory")
            if end == 0 and may_wait:
                end = now_ns() + self.wait_ns
            if now_ns() >= end or self.is_unwanted(requests, slot, generation):
                self.no_memory(n, f"no place for {n} bytes: the server does not read what it has")
            with nogil:
                pause(pause_ns)
            if pause_ns < 1000000:
                pause_ns *= 2
            PyErr_CheckSignals()

    # Whether all that a message belongs to has been cancelled; no request is generation 0.
    cdef bint is_unwanted(self, list requests, uint32_t slot, uint32_t generation) except -1:
        cdef uint32_t found
        if requests is None:
            return generation != 0 and self.word(CANCEL_AT, slot) == generation
        for request in requests:
            found = request._generation
            if self.word(CANCEL_AT, request._slot) != found:
                return False
        return True

    cdef uint32_t word(self, size_t at, uint32_t slot) noexcept:
        return <uint32_t>tf_load32(<int32_t*>(self.base + at) + slot) if slot < MAX_SLOTS else 0

    @property
    def wait_s(self):
        """Seconds that a message waits for outbound memory."""
        return self.wait_ns / 1e9

    @wait_s.setter
    def wait_s(self, double seconds):
        self.wait_ns = <int64_t>(max(0.0, min(seconds, 1e9)) * 1e9)

    # The error's `wanted`: bytes of outbound memory with which there would be place.
    cdef int no_memory(self, size_t n, str text) except -1:
        error = MemoryError(text)
        error.wanted = self.heap.size + n + HEADER
        raise error

    # Let go of what was kept for messages that the server has read.
    cdef int settle(self) except -1:
        cdef Drops drops
        if self.heap.n_kept:
            drops.n = 0
            tf_lock(&self.heap.lock)
            heap_sweep(&self.heap, &drops)
            tf_unlock(&self.heap.lock)
            let_go(&drops)
        return 0

    # The lease that holds [p, p + n), or None.
    cdef Lease lease_at(self, const uint8_t* p, size_t n):
        cdef Node* node = self.newest
        while node != NULL:
            if p >= node.data and n <= node.size and <size_t>(p - node.data) <= node.size - n:
                return <Lease>node.owner
            node = node.after
        return None

    def lease(self, uint64_t off, uint64_t n):
        """Return the `Lease` of the allocation at a region offset, of n bytes or more, which a message named."""
        return lease_new(self, off, n)

    def allocate(self, size_t n):
        """Return the offset of n bytes of outbound memory, in use until the server writes 0 into its word."""
        cdef Chunk* c = self.take(n)
        return c.header + HEADER - self.base

    def write(self, uint64_t off, data):
        """Copy bytes to outbound memory that `allocate` gave.

        Raises
        ------
        ValueError
            It does not lie in the outbound heap.
        """
        cdef Py_buffer view
        PyObject_GetBuffer(data, &view, PyBUF_SIMPLE)
        try:
            if off < self.out_off or off - self.out_off > self.heap.size \
                    or <size_t>view.len > self.heap.size - (off - self.out_off):
                raise ValueError(f"{view.len} bytes at {off} are not in the outbound heap")
            memcpy(self.base + off, view.buf, view.len)
        finally:
            PyBuffer_Release(&view)

    def trim(self, size_t keep):
        """Give the memory of free outbound allocations back to the system, but for about ``keep`` bytes."""
        cdef Drops drops
        drops.n = 0
        with nogil:
            heap_trim(&self.heap, keep, &drops)
        let_go(&drops)

    def stats(self):
        """Return counters: used (outbound allocations), bump (bytes ever given out), kept, leases."""
        return {"used": self.heap.n_used, "bump": self.heap.bump, "kept": self.heap.n_kept, "leases": self.n_leases}


@cython.final
@cython.no_gc
@cython.freelist(16)
cdef class Lease:
    """The data of one inbound allocation as a writable buffer. Its word is set to 0 when the last view has gone."""
    cdef Region region
    cdef Node node
    cdef char* records      # the message's records, copied; or NULL
    cdef Py_ssize_t length

    def __getbuffer__(self, Py_buffer* view, int flags):
        self.length = <Py_ssize_t>self.node.size
        view.buf = self.node.data
        view.obj = self
        view.len = self.length
        view.itemsize = 1
        view.readonly = 0
        view.ndim = 1
        view.format = NULL
        if flags & PyBUF_FORMAT:
            view.format = b"B"
        view.shape = NULL
        if flags & PyBUF_ND:
            view.shape = &self.length
        view.strides = NULL
        if flags & PyBUF_STRIDES == PyBUF_STRIDES:
            view.strides = &one
        view.suboffsets = NULL
        view.internal = NULL

    def __releasebuffer__(self, Py_buffer* view):
        pass

    def __len__(self):
        return self.node.size

    def __dealloc__(self):
        cdef Node* n = &self.node
        if n.data != NULL:
            if n.before != NULL:
                n.before.after = n.after
            else:
                self.region.newest = n.after
            if n.after != NULL:
                n.after.before = n.before
            self.region.n_leases -= 1
            tf_store32(<int32_t*>(n.data - HEADER), 0)
        free(self.records)


cdef Lease lease_new(Region g, uint64_t off, uint64_t n):
    cdef uint64_t size = 0
    cdef uint8_t* header
    cdef Lease lease
    if off < g.in_off + HEADER or off % HEADER or off - g.in_off > g.in_bytes or n > g.in_bytes - (off - g.in_off):
        raise ValueError(f"{n} bytes at {off} are not in the inbound heap")
    header = g.base + off - HEADER
    memcpy(&size, header + 8, 8)
    if tf_load32(<int32_t*>header) != 1 or size < n or size > g.in_bytes - (off - g.in_off):
        raise ValueError(f"{n} bytes at {off} are no allocation in use: its word is {tf_load32(<int32_t*>header)}, its "
                         f"size {size}")
    lease = Lease.__new__(Lease)
    lease.region = g
    lease.node.owner = <void*>lease
    # All of the allocation: of a message n counts its records only, and tensors lie behind them.
    lease.node.size = size
    lease.node.after = g.newest
    if g.newest != NULL:
        g.newest.before = &lease.node
    g.newest = &lease.node
    lease.node.data = header + HEADER
    g.n_leases += 1
    return lease
