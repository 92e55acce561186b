# Device memory of another process, by the 64-byte handle that it exports (cudaIpcMemHandle_t).
from libc.stdint cimport uint8_t

from triton_fast._native.core.native cimport tf_error

cdef enum:
    IPC_BYTES = 64

# Map the allocation that the handle names: its first byte to out, the bytes from there on that may be used to size. The
# handle of an allocation that this process made itself can not be opened here. 0, or -1 with e (INVALID_ARG for a
# handle that is none). The driver gives one address for a handle that is opened again; each open needs its close.
cdef int ipc_open(int device, const uint8_t* handle, void** out, size_t* size, tf_error* e) noexcept nogil
# Nothing may use the memory any more.
cdef int ipc_close(int device, void* data, tf_error* e) noexcept nogil
