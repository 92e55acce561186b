/* CUDA's driver API, as far as this project calls it: one row here says field, symbol and arguments of one function of
 * libcuda.so.1, which tf_cuda_bind looks up by name. Nothing is linked and no header of CUDA is needed. Symbols carry
 * the version suffix that the ABI has for these argument types. All results are CUresult: 0 is success. */
#ifndef TF_CUDA_H
#define TF_CUDA_H
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>

/* Opaque to us: contexts, streams, events and graphs are pointers (and those of the runtime API are the same ones);
 * a device is its ordinal, a device address a 64-bit number. */
typedef int tf_cu_device;
typedef void *tf_cu_handle;
typedef uint64_t tf_cu_ptr;

typedef struct {
    unsigned char bytes[16];
} tf_cu_uuid;

typedef struct {
    unsigned char bytes[64];
} tf_cu_ipc;

enum {
    TF_CU_SUCCESS = 0,
    TF_CU_INVALID_VALUE = 1,
    TF_CU_OUT_OF_MEMORY = 2,
    TF_CU_NOT_INITIALIZED = 3,
    TF_CU_DEINITIALIZED = 4,
    TF_CU_NO_DEVICE = 100,
    TF_CU_INVALID_CONTEXT = 201,
    TF_CU_PEER_ACCESS_ALREADY_ENABLED = 704,
    TF_CU_NOT_READY = 600,
    TF_CU_BROKEN_FROM = 700, /* an execution failed: the context is of no use any more */
    TF_CU_BROKEN_TO = 719,
    TF_CU_SYSTEM_DRIVER_MISMATCH = 803,

    TF_CU_STREAM_NON_BLOCKING = 1,
    TF_CU_EVENT_BLOCKING_SYNC = 1,
    TF_CU_EVENT_DISABLE_TIMING = 2,
    TF_CU_HOST_PORTABLE = 1,
    TF_CU_IPC_LAZY_PEER_ACCESS = 1,
    TF_CU_CAPTURE_THREAD_LOCAL = 1,

    TF_CU_CAPABILITY_MAJOR = 75, /* device attributes */
    TF_CU_CAPABILITY_MINOR = 76,

    TF_CU_POINTER_MEMORY_TYPE = 2, /* pointer attributes */
    TF_CU_POINTER_DEVICE = 9,
    TF_CU_POINTER_RANGE_START = 11,
    TF_CU_POINTER_RANGE_SIZE = 12,
    TF_CU_MEMORY_HOST = 1,
    TF_CU_MEMORY_DEVICE = 2,

    TF_CU_LEAST_VERSION = 11000 /* drivers before CUDA 11 lack functions below */
};

#define TF_CUDA_FUNCTIONS(F)                                                                                           \
    F(Init, "cuInit", (unsigned flags))                                                                                \
    F(DriverGetVersion, "cuDriverGetVersion", (int *))                                                                 \
    F(GetErrorName, "cuGetErrorName", (int, const char **))                                                            \
    F(GetErrorString, "cuGetErrorString", (int, const char **))                                                        \
    F(DeviceGetCount, "cuDeviceGetCount", (int *))                                                                     \
    F(DeviceGet, "cuDeviceGet", (tf_cu_device *, int ordinal))                                                         \
    F(DeviceGetName, "cuDeviceGetName", (char *, int room, tf_cu_device))                                              \
    F(DeviceTotalMem, "cuDeviceTotalMem_v2", (size_t *, tf_cu_device))                                                 \
    F(DeviceGetAttribute, "cuDeviceGetAttribute", (int *, int attribute, tf_cu_device))                                \
    F(DeviceCanAccessPeer, "cuDeviceCanAccessPeer", (int *, tf_cu_device, tf_cu_device peer))                          \
    F(DevicePrimaryCtxRetain, "cuDevicePrimaryCtxRetain", (tf_cu_handle *, tf_cu_device))                              \
    F(DevicePrimaryCtxRelease, "cuDevicePrimaryCtxRelease_v2", (tf_cu_device))                                         \
    F(CtxSetCurrent, "cuCtxSetCurrent", (tf_cu_handle))                                                                \
    F(CtxGetCurrent, "cuCtxGetCurrent", (tf_cu_handle *))                                                              \
    F(CtxSynchronize, "cuCtxSynchronize", (void))                                                                      \
    F(CtxEnablePeerAccess, "cuCtxEnablePeerAccess", (tf_cu_handle peer, unsigned flags))                               \
    F(StreamCreate, "cuStreamCreate", (tf_cu_handle *, unsigned flags))                                                \
    F(StreamDestroy, "cuStreamDestroy_v2", (tf_cu_handle))                                                             \
    F(StreamSynchronize, "cuStreamSynchronize", (tf_cu_handle))                                                        \
    F(StreamQuery, "cuStreamQuery", (tf_cu_handle))                                                                    \
    F(StreamWaitEvent, "cuStreamWaitEvent", (tf_cu_handle, tf_cu_handle event, unsigned flags))                        \
    F(EventCreate, "cuEventCreate", (tf_cu_handle *, unsigned flags))                                                  \
    F(EventDestroy, "cuEventDestroy_v2", (tf_cu_handle))                                                               \
    F(EventRecord, "cuEventRecord", (tf_cu_handle, tf_cu_handle stream))                                               \
    F(EventQuery, "cuEventQuery", (tf_cu_handle))                                                                      \
    F(EventSynchronize, "cuEventSynchronize", (tf_cu_handle))                                                          \
    F(EventElapsedTime, "cuEventElapsedTime", (float *ms, tf_cu_handle start, tf_cu_handle end))                       \
    F(MemAlloc, "cuMemAlloc_v2", (tf_cu_ptr *, size_t))                                                                \
    F(MemFree, "cuMemFree_v2", (tf_cu_ptr))                                                                            \
    F(MemGetInfo, "cuMemGetInfo_v2", (size_t * left, size_t *total))                                                   \
    F(MemGetAddressRange, "cuMemGetAddressRange_v2", (tf_cu_ptr *, size_t *, tf_cu_ptr))                               \
    F(MemHostAlloc, "cuMemHostAlloc", (void **, size_t, unsigned flags))                                               \
    F(MemFreeHost, "cuMemFreeHost", (void *))                                                                          \
    F(MemcpyHtoDAsync, "cuMemcpyHtoDAsync_v2", (tf_cu_ptr, const void *, size_t, tf_cu_handle stream))                 \
    F(MemcpyDtoHAsync, "cuMemcpyDtoHAsync_v2", (void *, tf_cu_ptr, size_t, tf_cu_handle stream))                       \
    F(MemcpyDtoDAsync, "cuMemcpyDtoDAsync_v2", (tf_cu_ptr, tf_cu_ptr, size_t, tf_cu_handle stream))                    \
    F(MemcpyPeerAsync, "cuMemcpyPeerAsync",                                                                            \
      (tf_cu_ptr, tf_cu_handle to, tf_cu_ptr, tf_cu_handle from, size_t, tf_cu_handle stream))                         \
    F(MemsetD8Async, "cuMemsetD8Async", (tf_cu_ptr, unsigned char, size_t, tf_cu_handle stream))                       \
    F(IpcGetMemHandle, "cuIpcGetMemHandle", (tf_cu_ipc *, tf_cu_ptr))                                                  \
    F(IpcOpenMemHandle, "cuIpcOpenMemHandle_v2", (tf_cu_ptr *, tf_cu_ipc, unsigned flags))                             \
    F(IpcCloseMemHandle, "cuIpcCloseMemHandle", (tf_cu_ptr))                                                           \
    F(PointerGetAttribute, "cuPointerGetAttribute", (void *, int attribute, tf_cu_ptr))

/* Those a driver may lack: their fields are NULL then. */
#define TF_CUDA_OPTIONAL(F)                                                                                            \
    F(DeviceGetUuid, "cuDeviceGetUuid", (tf_cu_uuid *, tf_cu_device))                                                  \
    F(DeviceGetUuid_v2, "cuDeviceGetUuid_v2", (tf_cu_uuid *, tf_cu_device))                                            \
    F(StreamBeginCapture, "cuStreamBeginCapture_v2", (tf_cu_handle, int mode))                                         \
    F(StreamEndCapture, "cuStreamEndCapture", (tf_cu_handle, tf_cu_handle * graph))                                    \
    F(GraphInstantiate, "cuGraphInstantiateWithFlags", (tf_cu_handle *, tf_cu_handle graph, unsigned long long flags)) \
    F(GraphLaunch, "cuGraphLaunch", (tf_cu_handle, tf_cu_handle stream))                                               \
    F(GraphExecDestroy, "cuGraphExecDestroy", (tf_cu_handle))                                                          \
    F(GraphDestroy, "cuGraphDestroy", (tf_cu_handle))

#define TF_CUDA_FIELD(name, symbol, args) int(*name) args;
typedef struct {
    TF_CUDA_FUNCTIONS(TF_CUDA_FIELD)
    TF_CUDA_OPTIONAL(TF_CUDA_FIELD)
} tf_cuda;
#undef TF_CUDA_FIELD

/* Fill api from an opened library. Returns the name of a function that it lacks, or NULL. */
static inline const char *tf_cuda_bind(tf_cuda *api, void *library) {
    void *found;
#define TF_CUDA_TAKE(name, symbol, args)                                                                               \
    found = dlsym(library, symbol);                                                                                    \
    if (!found) return symbol;                                                                                         \
    api->name = (int(*) args)found;
    TF_CUDA_FUNCTIONS(TF_CUDA_TAKE)
#undef TF_CUDA_TAKE
#define TF_CUDA_TAKE(name, symbol, args) api->name = (int(*) args)dlsym(library, symbol);
    TF_CUDA_OPTIONAL(TF_CUDA_TAKE)
#undef TF_CUDA_TAKE
    return NULL;
}
#endif
