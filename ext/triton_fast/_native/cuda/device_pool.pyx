# Device memory in size classes of 2^k and 1.5 * 2^k bytes, kept when freed up to the budget of
# --cuda-memory-pool-byte-size: the driver's own free waits for the whole device. Knows no tensors.
from libc.stdint cimport int32_t, int64_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from triton_fast._native.core.memory cimport Block, block_unref, block_wrap_device
from triton_fast._native.core.native cimport (
    TF_INVALID_ARG, TF_UNAVAILABLE, tf_add64, tf_error, tf_fail, tf_load64, tf_lock, tf_store64, tf_unlock,
)
from triton_fast._native.cuda.driver cimport (
    MAX_DEVICES, TF_CU_OUT_OF_MEMORY, TF_CU_SUCCESS, cuda_api, cuda_count, cuda_current, cuda_enter, cuda_error,
    cuda_fail, cuda_restore, tf_cu_handle, tf_cu_ptr,
)

cdef enum:
    MIN_SHIFT = 12
    MAX_SHIFT = 30
    N_CLASSES = 2 * (MAX_SHIFT - MIN_SHIFT) + 1
    MIB = 1 << 20

cdef size_t MAX_BLOCK = <size_t>1 << 46
cdef int64_t DEFAULT_BUDGET = <int64_t>64 << 20

cdef struct Free:
    Free* next
    tf_cu_ptr data

cdef struct Pool:
    int32_t lock
    Free* lists[N_CLASSES]
    int64_t budget
    int64_t kept                # bytes in lists
    int64_t live                # bytes in blocks

cdef Pool[MAX_DEVICES] pools

cdef int i
memset(pools, 0, sizeof(pools))
for i in range(MAX_DEVICES):
    pools[i].budget = DEFAULT_BUDGET


cdef extern from * nogil:
    int __builtin_clzl(unsigned long x)


cdef inline size_t class_size(int c) noexcept nogil:
    cdef size_t base = <size_t>1 << (MIN_SHIFT + (c >> 1))
    return base + (base >> 1) if c & 1 else base


# The smallest class that holds n, or -1: larger memory is rounded up to 2 MiB, the driver's own step.
cdef inline int class_of(size_t n) noexcept nogil:
    cdef int c
    if n <= (<size_t>1 << MIN_SHIFT):
        return 0
    if n > (<size_t>1 << MAX_SHIFT):
        return -1
    c = 2 * (63 - __builtin_clzl(n - 1) - MIN_SHIFT)
    return c + 1 if n <= class_size(c + 1) else c + 2


cdef Block* device_block_new(int device, size_t n, tf_error* e) noexcept nogil:
    cdef int c = class_of(n)
    cdef size_t cap
    cdef Free* one = NULL
    cdef tf_cu_ptr data = 0
    cdef Block* block
    cdef int status
    if n > MAX_BLOCK:
        tf_fail(e, TF_INVALID_ARG, b"%zu bytes of GPU memory are more than any GPU has", n)
        return NULL
    if cuda_enter(device, e):
        return NULL
    cap = class_size(c) if c >= 0 else (n + 2 * MIB - 1) // (2 * MIB) * (2 * MIB)
    if c >= 0:
        tf_lock(&pools[device].lock)
        one = pools[device].lists[c]
        if one != NULL:
            pools[device].lists[c] = one.next
            pools[device].kept -= <int64_t>cap
        tf_unlock(&pools[device].lock)
    if one != NULL:
        data = one.data
        free(one)
    else:
        status = cuda_api().MemAlloc(&data, cap)
        if status == TF_CU_OUT_OF_MEMORY:
            # What is kept may be of other sizes.
            trim_device(device, 0)
            status = cuda_api().MemAlloc(&data, cap)
        if status != TF_CU_SUCCESS:
            no_memory(device, n, status, e)
            return NULL
    block = block_wrap_device(<void*><uintptr_t>data, cap, device, device_block_free, NULL)
    if block == NULL:
        cuda_api().MemFree(data)
        tf_fail(e, TF_UNAVAILABLE, b"out of memory")
        return NULL
    tf_add64(&pools[device].live, <int64_t>cap)
    return block


cdef void no_memory(int device, size_t n, int status, tf_error* e) noexcept nogil:
    cdef size_t left = 0
    cdef size_t total = 0
    if status != TF_CU_OUT_OF_MEMORY or cuda_api().MemGetInfo(&left, &total) != TF_CU_SUCCESS:
        cuda_fail(e, status, device, b"failed to allocate device memory")
        return
    tf_fail(e, TF_UNAVAILABLE,
            b"failed to allocate %zu bytes on GPU %d: out of memory, %zu of %zu MiB are free; load fewer models or "
            b"instances there, or send smaller batches", n, device, left // MIB, total // MIB)


# At the last release, on any thread.
cdef void device_block_free(Block* block) noexcept nogil:
    cdef int device = block.device
    cdef int c = class_of(block.cap)
    cdef tf_cu_ptr data = <tf_cu_ptr><uintptr_t>block.data
    cdef Free* one = NULL
    cdef tf_cu_handle before
    cdef tf_error e
    tf_add64(&pools[device].live, -<int64_t>block.cap)
    if c >= 0 and tf_load64(&pools[device].kept) <= tf_load64(&pools[device].budget) - <int64_t>block.cap:
        one = <Free*>malloc(sizeof(Free))
    if one == NULL:
        before = cuda_current()
        if cuda_enter(device, &e) == 0:
            cuda_api().MemFree(data)
        cuda_restore(before)
        return
    one.data = data
    tf_lock(&pools[device].lock)
    one.next = pools[device].lists[c]
    pools[device].lists[c] = one
    pools[device].kept += <int64_t>block.cap
    tf_unlock(&pools[device].lock)


cdef void trim_device(int device, int64_t keep) noexcept nogil:
    cdef int c
    cdef Free* one
    cdef tf_error e
    if pools[device].kept <= keep or cuda_enter(device, &e):
        return
    for c in range(N_CLASSES - 1, -1, -1):
        while tf_load64(&pools[device].kept) > keep:
            tf_lock(&pools[device].lock)
            one = pools[device].lists[c]
            if one != NULL:
                pools[device].lists[c] = one.next
                pools[device].kept -= <int64_t>class_size(c)
            tf_unlock(&pools[device].lock)
            if one == NULL:
                break
            cuda_api().MemFree(one.data)
            free(one)


def set_budget(int device, int64_t n):
    if not 0 <= device < MAX_DEVICES:
        raise ValueError(f"there is no GPU {device}")
    if n < 0:
        raise ValueError(f"the budget of GPU memory must be >= 0, got {n}")
    tf_store64(&pools[device].budget, n)
    if device < cuda_count():
        with nogil:
            trim_device(device, n)


def trim(int64_t keep=0):
    cdef int device
    for device in range(cuda_count()):
        with nogil:
            trim_device(device, keep)


def stats(int device):
    if not 0 <= device < MAX_DEVICES:
        raise ValueError(f"there is no GPU {device}")
    return {"budget": tf_load64(&pools[device].budget), "kept": tf_load64(&pools[device].kept),
            "live": tf_load64(&pools[device].live)}


cdef class DeviceMemory:
    cdef Block* block

    def __init__(self, int device, size_t n):
        cdef tf_error e
        cdef Block* block
        if self.block != NULL:
            raise RuntimeError("the memory is taken already")
        with nogil:
            block = device_block_new(device, n, &e)
        if block == NULL:
            raise cuda_error(&e)
        self.block = block

    def __dealloc__(self):
        cdef Block* block = self.block
        if block != NULL:
            with nogil:
                block_unref(block)

    @property
    def address(self):
        return <uintptr_t>self.block.data

    @property
    def size(self):
        return self.block.cap

    @property
    def device(self):
        return self.block.device
