/* ONNX Runtime's C API, as far as this project calls it. The library hands out a table of function pointers whose order
 * is its ABI: one row here says slot, result, name and arguments of one function. tf_ort_bind copies the rows' pointers
 * out of the table, so that the rest of the code calls api->Run(...). Nothing is linked; nothing here knows a model. */
#ifndef TF_ORT_H
#define TF_ORT_H
#include <stddef.h>
#include <stdint.h>

/* The rows below exist since this API version. Older libraries are refused; newer ones still offer it. */
#define TF_ORT_API_VERSION 17

typedef struct OrtStatus OrtStatus;
typedef struct OrtEnv OrtEnv;
typedef struct OrtSession OrtSession;
typedef struct OrtSessionOptions OrtSessionOptions;
typedef struct OrtRunOptions OrtRunOptions;
typedef struct OrtThreadingOptions OrtThreadingOptions;
typedef struct OrtValue OrtValue;
typedef struct OrtMemoryInfo OrtMemoryInfo;
typedef struct OrtAllocator OrtAllocator;
typedef struct OrtTypeInfo OrtTypeInfo;
typedef struct OrtTensorTypeAndShapeInfo OrtShapeInfo;
typedef struct OrtModelMetadata OrtModelMetadata;
typedef struct OrtProviderOptions OrtProviderOptions; /* of CUDA or of TensorRT */

typedef void (*tf_ort_log_fn)(void *param, int severity, const char *category, const char *logid, const char *location,
                              const char *message);

#define TF_ORT_FUNCTIONS(F)                                                                                            \
    F(0, OrtStatus *, CreateStatus, (int code, const char *message))                                                   \
    F(1, int, GetErrorCode, (const OrtStatus *))                                                                       \
    F(2, const char *, GetErrorMessage, (const OrtStatus *))                                                           \
    F(4, OrtStatus *, CreateEnvWithCustomLogger, (tf_ort_log_fn, void *, int severity, const char *id, OrtEnv **))     \
    F(6, OrtStatus *, DisableTelemetryEvents, (const OrtEnv *))                                                        \
    F(7, OrtStatus *, CreateSession, (const OrtEnv *, const char *path, const OrtSessionOptions *, OrtSession **))     \
    F(9, OrtStatus *, Run, (OrtSession *, const OrtRunOptions *, const char *const *in_names,                          \
                            const OrtValue *const *in_values, size_t n_in, const char *const *out_names, size_t n_out, \
                            OrtValue **out_values))                                                                    \
    F(10, OrtStatus *, CreateSessionOptions, (OrtSessionOptions **))                                                   \
    F(13, OrtStatus *, SetSessionExecutionMode, (OrtSessionOptions *, int))                                            \
    F(16, OrtStatus *, EnableMemPattern, (OrtSessionOptions *))                                                        \
    F(17, OrtStatus *, DisableMemPattern, (OrtSessionOptions *))                                                       \
    F(18, OrtStatus *, EnableCpuMemArena, (OrtSessionOptions *))                                                       \
    F(19, OrtStatus *, DisableCpuMemArena, (OrtSessionOptions *))                                                      \
    F(20, OrtStatus *, SetSessionLogId, (OrtSessionOptions *, const char *))                                           \
    F(22, OrtStatus *, SetSessionLogSeverityLevel, (OrtSessionOptions *, int))                                         \
    F(23, OrtStatus *, SetSessionGraphOptimizationLevel, (OrtSessionOptions *, int))                                   \
    F(24, OrtStatus *, SetIntraOpNumThreads, (OrtSessionOptions *, int))                                               \
    F(25, OrtStatus *, SetInterOpNumThreads, (OrtSessionOptions *, int))                                               \
    F(30, OrtStatus *, SessionGetInputCount, (const OrtSession *, size_t *))                                           \
    F(31, OrtStatus *, SessionGetOutputCount, (const OrtSession *, size_t *))                                          \
    F(32, OrtStatus *, SessionGetOverridableInitializerCount, (const OrtSession *, size_t *))                          \
    F(33, OrtStatus *, SessionGetInputTypeInfo, (const OrtSession *, size_t, OrtTypeInfo **))                          \
    F(34, OrtStatus *, SessionGetOutputTypeInfo, (const OrtSession *, size_t, OrtTypeInfo **))                         \
    F(35, OrtStatus *, SessionGetOverridableInitializerTypeInfo, (const OrtSession *, size_t, OrtTypeInfo **))         \
    F(36, OrtStatus *, SessionGetInputName, (const OrtSession *, size_t, OrtAllocator *, char **))                     \
    F(37, OrtStatus *, SessionGetOutputName, (const OrtSession *, size_t, OrtAllocator *, char **))                    \
    F(38, OrtStatus *, SessionGetOverridableInitializerName, (const OrtSession *, size_t, OrtAllocator *, char **))    \
    F(39, OrtStatus *, CreateRunOptions, (OrtRunOptions **))                                                           \
    F(48, OrtStatus *, CreateTensorAsOrtValue, (OrtAllocator *, const int64_t *shape, size_t rank, int type,           \
                                                OrtValue **))                                                          \
    F(49, OrtStatus *, CreateTensorWithDataAsOrtValue, (const OrtMemoryInfo *, void *data, size_t n,                   \
                                                        const int64_t *shape, size_t rank, int type, OrtValue **))     \
    F(51, OrtStatus *, GetTensorMutableData, (OrtValue *, void **))                                                    \
    F(53, OrtStatus *, GetStringTensorDataLength, (const OrtValue *, size_t *))                                        \
    F(54, OrtStatus *, GetStringTensorContent, (const OrtValue *, void *, size_t n, size_t *offsets, size_t count))    \
    F(55, OrtStatus *, CastTypeInfoToTensorInfo, (const OrtTypeInfo *, const OrtShapeInfo **))                         \
    F(56, OrtStatus *, GetOnnxTypeFromTypeInfo, (const OrtTypeInfo *, int *))                                          \
    F(60, OrtStatus *, GetTensorElementType, (const OrtShapeInfo *, int *))                                            \
    F(61, OrtStatus *, GetDimensionsCount, (const OrtShapeInfo *, size_t *))                                           \
    F(62, OrtStatus *, GetDimensions, (const OrtShapeInfo *, int64_t *, size_t))                                       \
    F(63, OrtStatus *, GetSymbolicDimensions, (const OrtShapeInfo *, const char **, size_t))                           \
    F(65, OrtStatus *, GetTensorTypeAndShape, (const OrtValue *, OrtShapeInfo **))                                     \
    F(68, OrtStatus *, CreateMemoryInfo, (const char *name, int allocator, int id, int memory, OrtMemoryInfo **))      \
    F(69, OrtStatus *, CreateCpuMemoryInfo, (int allocator, int memory, OrtMemoryInfo **))                             \
    F(76, OrtStatus *, AllocatorFree, (OrtAllocator *, void *))                                                        \
    F(78, OrtStatus *, GetAllocatorWithDefaultOptions, (OrtAllocator **))                                              \
    F(93, void, ReleaseStatus, (OrtStatus *))                                                                          \
    F(94, void, ReleaseMemoryInfo, (OrtMemoryInfo *))                                                                  \
    F(95, void, ReleaseSession, (OrtSession *))                                                                        \
    F(96, void, ReleaseValue, (OrtValue *))                                                                            \
    F(97, void, ReleaseRunOptions, (OrtRunOptions *))                                                                  \
    F(98, void, ReleaseTypeInfo, (OrtTypeInfo *))                                                                      \
    F(99, void, ReleaseTensorTypeAndShapeInfo, (OrtShapeInfo *))                                                       \
    F(100, void, ReleaseSessionOptions, (OrtSessionOptions *))                                                         \
    F(111, OrtStatus *, SessionGetModelMetadata, (const OrtSession *, OrtModelMetadata **))                            \
    F(116, OrtStatus *, ModelMetadataLookupCustomMetadataMap, (const OrtModelMetadata *, OrtAllocator *,               \
                                                               const char *key, char **))                              \
    F(118, void, ReleaseModelMetadata, (OrtModelMetadata *))                                                           \
    F(120, OrtStatus *, DisablePerSessionThreads, (OrtSessionOptions *))                                               \
    F(121, OrtStatus *, CreateThreadingOptions, (OrtThreadingOptions **))                                              \
    F(122, void, ReleaseThreadingOptions, (OrtThreadingOptions *))                                                     \
    F(123, OrtStatus *, ModelMetadataGetCustomMetadataMapKeys, (const OrtModelMetadata *, OrtAllocator *, char ***,    \
                                                                int64_t *))                                            \
    F(125, OrtStatus *, GetAvailableProviders, (char ***, int *))                                                      \
    F(126, OrtStatus *, ReleaseAvailableProviders, (char **, int))                                                     \
    F(130, OrtStatus *, AddSessionConfigEntry, (OrtSessionOptions *, const char *, const char *))                      \
    F(147, OrtStatus *, SetGlobalIntraOpNumThreads, (OrtThreadingOptions *, int))                                      \
    F(148, OrtStatus *, SetGlobalInterOpNumThreads, (OrtThreadingOptions *, int))                                      \
    F(149, OrtStatus *, SetGlobalSpinControl, (OrtThreadingOptions *, int))                                            \
    F(151, OrtStatus *, CreateEnvWithCustomLoggerAndGlobalThreadPools,                                                 \
      (tf_ort_log_fn, void *, int severity, const char *id, const OrtThreadingOptions *, OrtEnv **))                   \
    F(165, OrtStatus *, AddRunConfigEntry, (OrtRunOptions *, const char *, const char *))                              \
    F(170, OrtStatus *, SessionOptionsAppendExecutionProvider_TensorRT_V2, (OrtSessionOptions *,                       \
                                                                            const OrtProviderOptions *))               \
    F(171, OrtStatus *, CreateTensorRTProviderOptions, (OrtProviderOptions **))                                        \
    F(172, OrtStatus *, UpdateTensorRTProviderOptions, (OrtProviderOptions *, const char *const *,                     \
                                                        const char *const *, size_t))                                  \
    F(174, void, ReleaseTensorRTProviderOptions, (OrtProviderOptions *))                                               \
    F(204, OrtStatus *, SessionOptionsAppendExecutionProvider_CUDA_V2, (OrtSessionOptions *,                           \
                                                                        const OrtProviderOptions *))                   \
    F(205, OrtStatus *, CreateCUDAProviderOptions, (OrtProviderOptions **))                                            \
    F(206, OrtStatus *, UpdateCUDAProviderOptions, (OrtProviderOptions *, const char *const *, const char *const *,    \
                                                    size_t))                                                           \
    F(208, void, ReleaseCUDAProviderOptions, (OrtProviderOptions *))                                                   \
    F(216, OrtStatus *, SessionOptionsAppendExecutionProvider, (OrtSessionOptions *, const char *name,                 \
                                                                const char *const *, const char *const *, size_t))     \
    F(228, OrtStatus *, RegisterCustomOpsLibrary_V2, (OrtSessionOptions *, const char *path))                          \
    F(252, OrtStatus *, GetResizedStringTensorElementBuffer, (OrtValue *, size_t index, size_t n, char **))

#define TF_ORT_FIELD(slot, result, name, args) result(*name) args;
typedef struct {
    TF_ORT_FUNCTIONS(TF_ORT_FIELD)
} tf_ort;
#undef TF_ORT_FIELD

/* What OrtGetApiBase returns: two functions. */
typedef struct {
    const void *(*GetApi)(uint32_t version);
    const char *(*GetVersionString)(void);
} tf_ort_base;

typedef struct {
    const char *name;
    int slot;
} tf_ort_row;

#define TF_ORT_ROW(slot, result, name, args) {#name, slot},
static const tf_ort_row tf_ort_rows[] = {TF_ORT_FUNCTIONS(TF_ORT_ROW)};
#undef TF_ORT_ROW
#define TF_ORT_COUNT ((int)(sizeof(tf_ort_rows) / sizeof(tf_ort_rows[0])))

/* Fill api from the library's table. Returns the name of a function that the table lacks, or NULL. */
static inline const char *tf_ort_bind(tf_ort *api, const void *table) {
    void *const *slots = (void *const *)table;
#define TF_ORT_TAKE(slot, result, name, args)                                                                          \
    if (!slots[slot]) return #name;                                                                                    \
    api->name = (result(*) args)slots[slot];
    TF_ORT_FUNCTIONS(TF_ORT_TAKE)
#undef TF_ORT_TAKE
    return NULL;
}

/* Numbers of the API that the code compares with. */
enum {
    TF_ORT_TYPE_TENSOR = 1,          /* kind of a value */
    TF_ORT_DEVICE_ALLOCATOR = 0,
    TF_ORT_MEMORY_DEFAULT = 0
};
#endif
