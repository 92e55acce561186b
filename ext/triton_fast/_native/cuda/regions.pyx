# Memory of GPUs that clients register by its IPC handle. It is listed beside the other regions (core/regions.pxd) and
# lent like them; this file only opens and closes it. A handle is a secret of its client's: it is in no text.
from libc.stdint cimport uint8_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.regions cimport SharedRegions, region_take
from triton_fast._native.cuda.driver cimport cuda_current, cuda_enter, cuda_error, cuda_restore, tf_cu_handle
from triton_fast._native.cuda.ipc cimport IPC_BYTES, ipc_close, ipc_open

from triton_fast.errors import InvalidArg


# A client that has ended, or a context that is broken: there is nobody to tell.
cdef void close(Block* block) noexcept nogil:
    cdef tf_cu_handle before = cuda_current()
    cdef tf_error e
    ipc_close(block.device, block.data, &e)
    cuda_restore(before)


def register(SharedRegions regions not None, str name not None, bytes handle not None, int device, size_t byte_size):
    cdef const uint8_t* p = handle
    cdef void* data = NULL
    cdef size_t whole = 0
    cdef tf_error e
    cdef int status
    if len(handle) != IPC_BYTES:
        raise InvalidArg(f"a CUDA IPC handle has {IPC_BYTES} bytes, got {len(handle)}")
    regions.check_free(name)
    with nogil:
        status = cuda_enter(device, &e)
    if status != 0:
        raise cuda_error(&e)
    with nogil:
        status = ipc_open(device, p, &data, &whole, &e)
    if status != 0:
        return e.text[:e.len].decode("utf-8", "replace")
    if byte_size > whole:
        with nogil:
            ipc_close(device, data, &e)
        raise InvalidArg(f"failed to register shared memory region '{name}': invalid args")
    region_take(regions, name, data, byte_size, device, close)
    return ""
