# ONNX Runtime's functions as Cython sees them (tf_ort.h has the slots), and the process-wide handles of the library.
from libc.stdint cimport int64_t

from triton_fast._native.core.native cimport tf_error


cdef extern from "tf_ort.h" nogil:
    ctypedef struct OrtStatus
    ctypedef struct OrtEnv
    ctypedef struct OrtSession
    ctypedef struct OrtSessionOptions
    ctypedef struct OrtRunOptions
    ctypedef struct OrtThreadingOptions
    ctypedef struct OrtValue
    ctypedef struct OrtMemoryInfo
    ctypedef struct OrtAllocator
    ctypedef struct OrtTypeInfo
    ctypedef struct OrtShapeInfo
    ctypedef struct OrtModelMetadata
    ctypedef struct OrtProviderOptions
    ctypedef const char* text "const char *"
    ctypedef const OrtValue* value_in "const OrtValue *"
    ctypedef void (*tf_ort_log_fn)(void*, int severity, const char* category, const char* logid, const char* location,
                                   const char* message) noexcept nogil
    enum:
        TF_ORT_API_VERSION
        TF_ORT_COUNT
        TF_ORT_TYPE_TENSOR
        TF_ORT_DEVICE_ALLOCATOR
        TF_ORT_MEMORY_DEFAULT
    ctypedef struct tf_ort_base:
        const void* (*GetApi)(unsigned int version) noexcept nogil
        const char* (*GetVersionString)() noexcept nogil
    ctypedef struct tf_ort_row:
        const char* name
        int slot
    tf_ort_row tf_ort_rows[]
    ctypedef struct tf_ort:
        OrtStatus* (*CreateStatus)(int, text) noexcept nogil
        int (*GetErrorCode)(const OrtStatus*) noexcept nogil
        text (*GetErrorMessage)(const OrtStatus*) noexcept nogil
        OrtStatus* (*CreateEnvWithCustomLogger)(tf_ort_log_fn, void*, int, text, OrtEnv**) noexcept nogil
        OrtStatus* (*DisableTelemetryEvents)(const OrtEnv*) noexcept nogil
        OrtStatus* (*CreateSession)(const OrtEnv*, text, const OrtSessionOptions*, OrtSession**) noexcept nogil
        OrtStatus* (*Run)(OrtSession*, const OrtRunOptions*, text*, value_in*, size_t, text*, size_t,
                          OrtValue**) noexcept nogil
        OrtStatus* (*CreateSessionOptions)(OrtSessionOptions**) noexcept nogil
        OrtStatus* (*SetSessionExecutionMode)(OrtSessionOptions*, int) noexcept nogil
        OrtStatus* (*EnableMemPattern)(OrtSessionOptions*) noexcept nogil
        OrtStatus* (*DisableMemPattern)(OrtSessionOptions*) noexcept nogil
        OrtStatus* (*EnableCpuMemArena)(OrtSessionOptions*) noexcept nogil
        OrtStatus* (*DisableCpuMemArena)(OrtSessionOptions*) noexcept nogil
        OrtStatus* (*SetSessionLogId)(OrtSessionOptions*, text) noexcept nogil
        OrtStatus* (*SetSessionLogSeverityLevel)(OrtSessionOptions*, int) noexcept nogil
        OrtStatus* (*SetSessionGraphOptimizationLevel)(OrtSessionOptions*, int) noexcept nogil
        OrtStatus* (*SetIntraOpNumThreads)(OrtSessionOptions*, int) noexcept nogil
        OrtStatus* (*SetInterOpNumThreads)(OrtSessionOptions*, int) noexcept nogil
        OrtStatus* (*SessionGetInputCount)(const OrtSession*, size_t*) noexcept nogil
        OrtStatus* (*SessionGetOutputCount)(const OrtSession*, size_t*) noexcept nogil
        OrtStatus* (*SessionGetOverridableInitializerCount)(const OrtSession*, size_t*) noexcept nogil
        OrtStatus* (*SessionGetInputTypeInfo)(const OrtSession*, size_t, OrtTypeInfo**) noexcept nogil
        OrtStatus* (*SessionGetOutputTypeInfo)(const OrtSession*, size_t, OrtTypeInfo**) noexcept nogil
        OrtStatus* (*SessionGetOverridableInitializerTypeInfo)(const OrtSession*, size_t, OrtTypeInfo**) noexcept nogil
        OrtStatus* (*SessionGetInputName)(const OrtSession*, size_t, OrtAllocator*, char**) noexcept nogil
        OrtStatus* (*SessionGetOutputName)(const OrtSession*, size_t, OrtAllocator*, char**) noexcept nogil
        OrtStatus* (*SessionGetOverridableInitializerName)(const OrtSession*, size_t, OrtAllocator*,
                                                           char**) noexcept nogil
        OrtStatus* (*CreateRunOptions)(OrtRunOptions**) noexcept nogil
        OrtStatus* (*CreateTensorAsOrtValue)(OrtAllocator*, const int64_t*, size_t, int, OrtValue**) noexcept nogil
        OrtStatus* (*CreateTensorWithDataAsOrtValue)(const OrtMemoryInfo*, void*, size_t, const int64_t*, size_t, int,
                                                     OrtValue**) noexcept nogil
        OrtStatus* (*GetTensorMutableData)(OrtValue*, void**) noexcept nogil
        OrtStatus* (*GetStringTensorDataLength)(const OrtValue*, size_t*) noexcept nogil
        OrtStatus* (*GetStringTensorContent)(const OrtValue*, void*, size_t, size_t*, size_t) noexcept nogil
        OrtStatus* (*CastTypeInfoToTensorInfo)(const OrtTypeInfo*, const OrtShapeInfo**) noexcept nogil
        OrtStatus* (*GetOnnxTypeFromTypeInfo)(const OrtTypeInfo*, int*) noexcept nogil
        OrtStatus* (*GetTensorElementType)(const OrtShapeInfo*, int*) noexcept nogil
        OrtStatus* (*GetDimensionsCount)(const OrtShapeInfo*, size_t*) noexcept nogil
        OrtStatus* (*GetDimensions)(const OrtShapeInfo*, int64_t*, size_t) noexcept nogil
        OrtStatus* (*GetSymbolicDimensions)(const OrtShapeInfo*, text*, size_t) noexcept nogil
        OrtStatus* (*GetTensorTypeAndShape)(const OrtValue*, OrtShapeInfo**) noexcept nogil
        OrtStatus* (*CreateMemoryInfo)(text, int, int, int, OrtMemoryInfo**) noexcept nogil
        OrtStatus* (*CreateCpuMemoryInfo)(int, int, OrtMemoryInfo**) noexcept nogil
        OrtStatus* (*AllocatorFree)(OrtAllocator*, void*) noexcept nogil
        OrtStatus* (*GetAllocatorWithDefaultOptions)(OrtAllocator**) noexcept nogil
        void (*ReleaseStatus)(OrtStatus*) noexcept nogil
        void (*ReleaseMemoryInfo)(OrtMemoryInfo*) noexcept nogil
        void (*ReleaseSession)(OrtSession*) noexcept nogil
        void (*ReleaseValue)(OrtValue*) noexcept nogil
        void (*ReleaseRunOptions)(OrtRunOptions*) noexcept nogil
        void (*ReleaseTypeInfo)(OrtTypeInfo*) noexcept nogil
        void (*ReleaseTensorTypeAndShapeInfo)(OrtShapeInfo*) noexcept nogil
        void (*ReleaseSessionOptions)(OrtSessionOptions*) noexcept nogil
        OrtStatus* (*SessionGetModelMetadata)(const OrtSession*, OrtModelMetadata**) noexcept nogil
        OrtStatus* (*ModelMetadataLookupCustomMetadataMap)(const OrtModelMetadata*, OrtAllocator*, text,
                                                           char**) noexcept nogil
        void (*ReleaseModelMetadata)(OrtModelMetadata*) noexcept nogil
        OrtStatus* (*DisablePerSessionThreads)(OrtSessionOptions*) noexcept nogil
        OrtStatus* (*CreateThreadingOptions)(OrtThreadingOptions**) noexcept nogil
        void (*ReleaseThreadingOptions)(OrtThreadingOptions*) noexcept nogil
        OrtStatus* (*ModelMetadataGetCustomMetadataMapKeys)(const OrtModelMetadata*, OrtAllocator*, char***,
                                                            int64_t*) noexcept nogil
        OrtStatus* (*GetAvailableProviders)(char***, int*) noexcept nogil
        OrtStatus* (*ReleaseAvailableProviders)(char**, int) noexcept nogil
        OrtStatus* (*AddSessionConfigEntry)(OrtSessionOptions*, text, text) noexcept nogil
        OrtStatus* (*SetGlobalIntraOpNumThreads)(OrtThreadingOptions*, int) noexcept nogil
        OrtStatus* (*SetGlobalInterOpNumThreads)(OrtThreadingOptions*, int) noexcept nogil
        OrtStatus* (*SetGlobalSpinControl)(OrtThreadingOptions*, int) noexcept nogil
        OrtStatus* (*CreateEnvWithCustomLoggerAndGlobalThreadPools)(
            tf_ort_log_fn, void*, int, text, const OrtThreadingOptions*, OrtEnv**) noexcept nogil
        OrtStatus* (*AddRunConfigEntry)(OrtRunOptions*, text, text) noexcept nogil
        OrtStatus* (*SessionOptionsAppendExecutionProvider_TensorRT_V2)(
            OrtSessionOptions*, const OrtProviderOptions*) noexcept nogil
        OrtStatus* (*CreateTensorRTProviderOptions)(OrtProviderOptions**) noexcept nogil
        OrtStatus* (*UpdateTensorRTProviderOptions)(OrtProviderOptions*, text*, text*, size_t) noexcept nogil
        void (*ReleaseTensorRTProviderOptions)(OrtProviderOptions*) noexcept nogil
        OrtStatus* (*SessionOptionsAppendExecutionProvider_CUDA_V2)(
            OrtSessionOptions*, const OrtProviderOptions*) noexcept nogil
        OrtStatus* (*CreateCUDAProviderOptions)(OrtProviderOptions**) noexcept nogil
        OrtStatus* (*UpdateCUDAProviderOptions)(OrtProviderOptions*, text*, text*, size_t) noexcept nogil
        void (*ReleaseCUDAProviderOptions)(OrtProviderOptions*) noexcept nogil
        OrtStatus* (*SessionOptionsAppendExecutionProvider)(OrtSessionOptions*, text, text*, text*,
                                                            size_t) noexcept nogil
        OrtStatus* (*RegisterCustomOpsLibrary_V2)(OrtSessionOptions*, text) noexcept nogil
        OrtStatus* (*GetResizedStringTensorElementBuffer)(OrtValue*, size_t, size_t, char**) noexcept nogil
    const char* tf_ort_bind(tf_ort* api, const void* table)


# The bound functions; NULL before open_library. Never goes away again: ORT keeps threads and statics of its own.
cdef const tf_ort* ort_api() noexcept nogil
# The one environment of the process; NULL before init_env.
cdef const OrtEnv* ort_env() noexcept nogil
# Turn a status into e ("onnx runtime error <code>: <message>", INTERNAL) and release it; returns -1.
cdef int ort_fail(tf_error* e, OrtStatus* status) noexcept nogil
# The same as an exception; 0 when status is NULL.
cdef int ort_check(OrtStatus* status) except -1
