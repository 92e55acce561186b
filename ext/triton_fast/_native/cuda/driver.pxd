# CUDA's driver as Cython sees it (tf_cuda.h has the symbols), the devices of this process and their contexts.
# A device is its CUDA ordinal; addresses in device memory travel as pointers that no CPU may follow.
from libc.stdint cimport uint64_t

from triton_fast._native.core.native cimport tf_error


cdef extern from "tf_cuda.h" nogil:
    ctypedef int tf_cu_device
    ctypedef void* tf_cu_handle
    ctypedef uint64_t tf_cu_ptr
    ctypedef struct tf_cu_uuid:
        unsigned char bytes[16]
    ctypedef struct tf_cu_ipc:
        unsigned char bytes[64]
    ctypedef const char* cu_text "const char *"
    enum:
        TF_CU_SUCCESS
        TF_CU_INVALID_VALUE
        TF_CU_OUT_OF_MEMORY
        TF_CU_NO_DEVICE
        TF_CU_PEER_ACCESS_ALREADY_ENABLED
        TF_CU_NOT_READY
        TF_CU_BROKEN_FROM
        TF_CU_BROKEN_TO
        TF_CU_SYSTEM_DRIVER_MISMATCH
        TF_CU_STREAM_NON_BLOCKING
        TF_CU_EVENT_BLOCKING_SYNC
        TF_CU_EVENT_DISABLE_TIMING
        TF_CU_HOST_PORTABLE
        TF_CU_IPC_LAZY_PEER_ACCESS
        TF_CU_CAPTURE_THREAD_LOCAL
        TF_CU_CAPABILITY_MAJOR
        TF_CU_CAPABILITY_MINOR
        TF_CU_POINTER_RANGE_START
        TF_CU_POINTER_RANGE_SIZE
        TF_CU_LEAST_VERSION
    ctypedef struct tf_cuda:
        int (*Init)(unsigned flags) noexcept nogil
        int (*DriverGetVersion)(int*) noexcept nogil
        int (*GetErrorName)(int, cu_text*) noexcept nogil
        int (*GetErrorString)(int, cu_text*) noexcept nogil
        int (*DeviceGetCount)(int*) noexcept nogil
        int (*DeviceGet)(tf_cu_device*, int) noexcept nogil
        int (*DeviceGetName)(char*, int, tf_cu_device) noexcept nogil
        int (*DeviceTotalMem)(size_t*, tf_cu_device) noexcept nogil
        int (*DeviceGetAttribute)(int*, int, tf_cu_device) noexcept nogil
        int (*DeviceCanAccessPeer)(int*, tf_cu_device, tf_cu_device) noexcept nogil
        int (*DevicePrimaryCtxRetain)(tf_cu_handle*, tf_cu_device) noexcept nogil
        int (*DevicePrimaryCtxRelease)(tf_cu_device) noexcept nogil
        int (*CtxSetCurrent)(tf_cu_handle) noexcept nogil
        int (*CtxGetCurrent)(tf_cu_handle*) noexcept nogil
        int (*CtxSynchronize)() noexcept nogil
        int (*CtxEnablePeerAccess)(tf_cu_handle, unsigned flags) noexcept nogil
        int (*StreamCreate)(tf_cu_handle*, unsigned flags) noexcept nogil
        int (*StreamDestroy)(tf_cu_handle) noexcept nogil
        int (*StreamSynchronize)(tf_cu_handle) noexcept nogil
        int (*StreamWaitEvent)(tf_cu_handle, tf_cu_handle event, unsigned flags) noexcept nogil
        int (*EventCreate)(tf_cu_handle*, unsigned flags) noexcept nogil
        int (*EventDestroy)(tf_cu_handle) noexcept nogil
        int (*EventRecord)(tf_cu_handle, tf_cu_handle stream) noexcept nogil
        int (*EventQuery)(tf_cu_handle) noexcept nogil
        int (*EventSynchronize)(tf_cu_handle) noexcept nogil
        int (*EventElapsedTime)(float*, tf_cu_handle start, tf_cu_handle end) noexcept nogil
        int (*MemAlloc)(tf_cu_ptr*, size_t) noexcept nogil
        int (*MemFree)(tf_cu_ptr) noexcept nogil
        int (*MemGetInfo)(size_t* left, size_t* total) noexcept nogil
        int (*MemGetAddressRange)(tf_cu_ptr*, size_t*, tf_cu_ptr) noexcept nogil
        int (*MemHostAlloc)(void**, size_t, unsigned flags) noexcept nogil
        int (*MemFreeHost)(void*) noexcept nogil
        int (*MemcpyHtoDAsync)(tf_cu_ptr, const void*, size_t, tf_cu_handle stream) noexcept nogil
        int (*MemcpyDtoHAsync)(void*, tf_cu_ptr, size_t, tf_cu_handle stream) noexcept nogil
        int (*MemcpyDtoDAsync)(tf_cu_ptr, tf_cu_ptr, size_t, tf_cu_handle stream) noexcept nogil
        int (*MemcpyPeerAsync)(tf_cu_ptr, tf_cu_handle to, tf_cu_ptr, tf_cu_handle origin, size_t,
                               tf_cu_handle stream) noexcept nogil
        int (*MemsetD8Async)(tf_cu_ptr, unsigned char, size_t, tf_cu_handle stream) noexcept nogil
        int (*IpcGetMemHandle)(tf_cu_ipc*, tf_cu_ptr) noexcept nogil
        int (*IpcOpenMemHandle)(tf_cu_ptr*, tf_cu_ipc, unsigned flags) noexcept nogil
        int (*IpcCloseMemHandle)(tf_cu_ptr) noexcept nogil
        int (*PointerGetAttribute)(void*, int attribute, tf_cu_ptr) noexcept nogil
        # NULL where the driver lacks them.
        int (*DeviceGetUuid)(tf_cu_uuid*, tf_cu_device) noexcept nogil
        int (*DeviceGetUuid_v2)(tf_cu_uuid*, tf_cu_device) noexcept nogil
        int (*StreamCreateWithPriority)(tf_cu_handle*, unsigned flags, int priority) noexcept nogil
        int (*CtxGetStreamPriorityRange)(int* least, int* greatest) noexcept nogil
        int (*StreamBeginCapture)(tf_cu_handle, int mode) noexcept nogil
        int (*StreamEndCapture)(tf_cu_handle, tf_cu_handle* graph) noexcept nogil
        int (*GraphInstantiate)(tf_cu_handle*, tf_cu_handle graph, unsigned long long flags) noexcept nogil
        int (*GraphLaunch)(tf_cu_handle, tf_cu_handle stream) noexcept nogil
        int (*GraphExecDestroy)(tf_cu_handle) noexcept nogil
        int (*GraphDestroy)(tf_cu_handle) noexcept nogil
    const char* tf_cuda_bind(tf_cuda* api, void* library)


cdef enum:
    MAX_DEVICES = 64

# The driver's functions; NULL until open_driver has found a device. Stays: contexts and pinned blocks outlive servers.
cdef const tf_cuda* cuda_api() noexcept nogil
# Devices that there are: 0 until open_driver.
cdef int cuda_count() noexcept nogil
# Make the primary context of a device current on the calling thread; it is retained (made: some 100 ms) at its first
# use. Each function of copies, ipc, pool and pinned does that itself. 0, or -1 with e.
cdef int cuda_enter(int device, tf_error* e) noexcept nogil
# The context that is current on the calling thread; and make it that again: a thread may be a framework's, at work on
# another GPU, where a block is made or let go of.
cdef tf_cu_handle cuda_current() noexcept nogil
cdef void cuda_restore(tf_cu_handle before) noexcept nogil
# The context of a device that was entered before, else NULL.
cdef tf_cu_handle cuda_context(int device) noexcept nogil
# Fill e with "<what> on GPU <device>: <driver's name>: <driver's text>", INTERNAL, or UNAVAILABLE when memory ran out;
# device -1: none is named. Returns -1.
cdef int cuda_fail(tf_error* e, int status, int device, const char* what) noexcept nogil
# 0 when status is success, else cuda_fail.
cdef int cuda_check(tf_error* e, int status, int device, const char* what) noexcept nogil
# e as the ServerError of its code.
cdef object cuda_error(tf_error* e)
