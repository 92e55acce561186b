# Device memory of another process. The driver's handle says nothing of sizes: the mapped range is asked for, so that
# what a client claims can be checked against it.
from libc.stdint cimport int64_t, uintptr_t
from libc.string cimport memcpy

from triton_fast._native.core.native cimport TF_INVALID_ARG, tf_add64, tf_fail, tf_load64
from triton_fast._native.cuda.driver cimport (
    TF_CU_BROKEN_FROM, TF_CU_BROKEN_TO, TF_CU_IPC_LAZY_PEER_ACCESS, TF_CU_OUT_OF_MEMORY, TF_CU_POINTER_RANGE_SIZE,
    TF_CU_POINTER_RANGE_START, TF_CU_SUCCESS, cuda_api, cuda_check, cuda_enter, cuda_error, tf_cu_ipc, tf_cu_ptr,
)

from triton_fast.errors import InvalidArg

cdef int64_t live = 0


cdef int ipc_open(int device, const uint8_t* handle, void** out, size_t* size, tf_error* e) noexcept nogil:
    cdef tf_cu_ipc copy
    cdef tf_cu_ptr data = 0
    cdef tf_cu_ptr base = 0
    cdef size_t whole = 0
    cdef int status
    if cuda_enter(device, e):
        return -1
    memcpy(copy.bytes, handle, IPC_BYTES)
    status = cuda_api().IpcOpenMemHandle(&data, copy, TF_CU_IPC_LAZY_PEER_ACCESS)
    if cuda_check(e, status, device, b"failed to open the CUDA IPC handle"):
        # Bytes that are no handle, one of a process that has ended, our own: drivers have several words for each.
        if status != TF_CU_OUT_OF_MEMORY and not TF_CU_BROKEN_FROM <= status <= TF_CU_BROKEN_TO:
            e.code = TF_INVALID_ARG
        return -1
    status = cuda_api().MemGetAddressRange(&base, &whole, data)
    if status != TF_CU_SUCCESS:
        # Another way to ask, of drivers that keep mapped memory out of the first.
        status = cuda_api().PointerGetAttribute(&base, TF_CU_POINTER_RANGE_START, data)
        if status == TF_CU_SUCCESS:
            status = cuda_api().PointerGetAttribute(&whole, TF_CU_POINTER_RANGE_SIZE, data)
    if cuda_check(e, status, device, b"failed to ask for the size of another process's memory"):
        cuda_api().IpcCloseMemHandle(data)
        return -1
    if data < base or data - base >= whole:
        cuda_api().IpcCloseMemHandle(data)
        return tf_fail(e, TF_INVALID_ARG, b"the CUDA IPC handle on GPU %d names no memory", device)
    out[0] = <void*><uintptr_t>data
    size[0] = whole - <size_t>(data - base)
    tf_add64(&live, 1)
    return 0


cdef int ipc_close(int device, void* data, tf_error* e) noexcept nogil:
    tf_add64(&live, -1)
    if cuda_enter(device, e):
        return -1
    return cuda_check(e, cuda_api().IpcCloseMemHandle(<tf_cu_ptr><uintptr_t>data), device,
                      b"failed to close the CUDA IPC handle")


def export(int device, uintptr_t address):
    cdef tf_cu_ipc handle
    cdef tf_error e
    if cuda_enter(device, &e) or cuda_check(
            &e, cuda_api().IpcGetMemHandle(&handle, <tf_cu_ptr>address), device,
            b"failed to export device memory"):
        raise cuda_error(&e)
    return bytes(handle.bytes[:IPC_BYTES])


def opened():
    return tf_load64(&live)


cdef class Mapping:
    cdef void* data
    cdef readonly size_t size
    cdef readonly int device

    def __init__(self, int device, bytes handle not None):
        cdef tf_error e
        cdef int status
        cdef const uint8_t* p = handle
        if self.data != NULL:
            raise RuntimeError("the memory is mapped already")
        if len(handle) != IPC_BYTES:
            raise InvalidArg(f"a CUDA IPC handle has {IPC_BYTES} bytes, got {len(handle)}")
        self.device = device
        with nogil:
            status = ipc_open(device, p, &self.data, &self.size, &e)
        if status:
            raise cuda_error(&e)

    def __dealloc__(self):
        cdef tf_error e
        if self.data != NULL and cuda_api() != NULL:
            with nogil:
                ipc_close(self.device, self.data, &e)

    @property
    def address(self):
        return <uintptr_t>self.data

    def close(self):
        cdef tf_error e
        cdef int status = 0
        cdef void* data = self.data
        self.data = NULL
        if data != NULL:
            with nogil:
                status = ipc_close(self.device, data, &e)
        if status:
            raise cuda_error(&e)
