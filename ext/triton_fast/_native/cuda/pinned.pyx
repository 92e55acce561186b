# Pinned host memory for the blocks of core/memory, within the budget of --pinned-memory-pool-byte-size. Pinning is dear
# (the kernel locks every page), so blocks are kept when they are freed; another workload gets its share when idle.
from cpython.buffer cimport PyBuffer_FillInfo
from libc.stdint cimport int64_t, uintptr_t

from triton_fast._native.core.memory cimport (
    PIN_FROM, Block, block_new, block_unref, memory_pin, memory_pinned_free, memory_pinned_trim, memory_unpin,
)
from triton_fast._native.core.native cimport MEM_PINNED, tf_add64, tf_error, tf_load64, tf_store64
from triton_fast._native.cuda.driver cimport (
    TF_CU_HOST_PORTABLE, TF_CU_SUCCESS, cuda_api, cuda_current, cuda_enter, cuda_error, cuda_restore, tf_cu_handle,
)

cdef int64_t budget = 0
cdef int64_t pinned = 0
cdef int64_t refused = 0            # since the last trim
cdef int64_t failed = 0             # times that the driver had no pinned memory
cdef int home = 0                   # whose context is entered; the memory serves all devices


cdef int64_t pinned_bytes() noexcept nogil:
    return tf_load64(&pinned)


cdef void* take(size_t n) noexcept nogil:
    cdef void* data = NULL
    cdef tf_cu_handle before
    cdef int status = -1
    cdef tf_error e
    if tf_add64(&pinned, <int64_t>n) > tf_load64(&budget):
        tf_add64(&pinned, -<int64_t>n)
        tf_add64(&refused, 1)
        return NULL
    before = cuda_current()
    if cuda_enter(home, &e) == 0:
        status = cuda_api().MemHostAlloc(&data, n, TF_CU_HOST_PORTABLE)
    cuda_restore(before)
    if status == TF_CU_SUCCESS:
        return data
    # The system may have less than the budget, such as in a container: ordinary memory does as well.
    tf_add64(&pinned, -<int64_t>n)
    tf_add64(&failed, 1)
    tf_add64(&refused, 1)
    return NULL


cdef void give(void* data, size_t n) noexcept nogil:
    cdef tf_cu_handle before = cuda_current()
    cdef tf_error e
    if cuda_enter(home, &e) == 0:
        cuda_api().MemFreeHost(data)
    cuda_restore(before)
    tf_add64(&pinned, -<int64_t>n)


def start(int device, int64_t n):
    global home
    cdef tf_error e
    cdef int status
    if n < 0:
        raise ValueError(f"the budget of pinned memory must be >= 0, got {n}")
    with nogil:
        status = cuda_enter(device, &e)
    if status:
        raise cuda_error(&e)
    if n < PIN_FROM:
        stop()
        return
    home = device
    tf_store64(&budget, n)
    with nogil:
        memory_pin(take, give)


def stop():
    tf_store64(&budget, 0)
    with nogil:
        memory_unpin()
        memory_pinned_trim(0)


def trim():
    # Only where somebody went without: what is free may be of the wrong sizes.
    if tf_load64(&refused):
        tf_store64(&refused, 0)
        with nogil:
            memory_pinned_trim(0)


def usage():
    return tf_load64(&budget), tf_load64(&pinned) - memory_pinned_free()


def stats():
    return {
        "budget": tf_load64(&budget), "pinned": tf_load64(&pinned), "free": memory_pinned_free(),
        "refused": tf_load64(&refused), "failed": tf_load64(&failed),
    }


cdef class HostBlock:
    cdef Block* block
    cdef Py_ssize_t size

    def __init__(self, Py_ssize_t n):
        if self.block != NULL or n < 0:
            raise ValueError("a block is made once, of 0 bytes or more")
        with nogil:
            self.block = block_new(n)
        if self.block == NULL:
            raise MemoryError(f"no memory for a block of {n} bytes")
        self.size = n

    def __dealloc__(self):
        cdef Block* block = self.block
        with nogil:
            block_unref(block)

    def __getbuffer__(self, Py_buffer* view, int flags):
        if self.block == NULL:
            raise BufferError("the block is not made")
        PyBuffer_FillInfo(view, self, self.block.data, self.size, False, flags)

    @property
    def address(self):
        return <uintptr_t>self.block.data

    @property
    def pinned(self):
        return self.block.kind == MEM_PINNED
