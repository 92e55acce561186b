# Session options and sessions: everything that happens at load time. Each ORT call that can take long runs without the
# GIL, and every status is checked. Knows no config: names and values come in as plain Python values.
import os

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from triton_fast._native.core.native cimport (
    DT_BF16, DT_BOOL, DT_FP16, DT_FP32, DT_FP64, DT_INT8, DT_INT16, DT_INT32, DT_INT64, DT_INVALID, DT_STRING,
    DT_UINT8, DT_UINT16, DT_UINT32, DT_UINT64, tf_add64, tf_load64,
)
from triton_fast._native.ort.capi cimport (
    OrtAllocator, OrtModelMetadata, OrtProviderOptions, OrtSession, OrtShapeInfo, OrtStatus, OrtTypeInfo,
    TF_ORT_TYPE_TENSOR, ort_api, ort_check, ort_env, text, tf_ort,
)

from triton_fast.errors import Internal, InvalidArg, Unsupported

cdef enum:
    MAX_DIMS = 1024         # a rank past this is a broken model, not a tensor

cdef int64_t live_sessions = 0

# Datatype of an ONNX element type number; what is absent has no counterpart in the v2 protocol.
TYPE_OF = {
    1: DT_FP32, 2: DT_UINT8, 3: DT_INT8, 4: DT_UINT16, 5: DT_INT16, 6: DT_INT32, 7: DT_INT64, 8: DT_STRING, 9: DT_BOOL,
    10: DT_FP16, 11: DT_FP64, 12: DT_UINT32, 13: DT_UINT64, 16: DT_BF16,
}
KINDS = ("unknown", "tensor", "sequence", "map", "opaque", "sparse tensor", "optional")


cdef const tf_ort* need_api() except NULL:
    cdef const tf_ort* api = ort_api()
    if api == NULL or ort_env() == NULL:
        raise Internal("the ONNX Runtime library is not open")
    return api


cdef void hold_free(SessionHold* hold) noexcept nogil:
    ort_api().ReleaseSession(hold.session)
    free(hold)
    tf_add64(&live_sessions, -1)


def live():
    return tf_load64(&live_sessions)


cdef class SessionOptions:

    def __cinit__(self):
        ort_check(need_api().CreateSessionOptions(&self.ptr))

    def __dealloc__(self):
        if self.ptr != NULL:
            ort_api().ReleaseSessionOptions(self.ptr)

    def log(self, str name not None, int severity):
        encoded = name.encode()
        ort_check(ort_api().SetSessionLogId(self.ptr, <const char*>encoded))
        ort_check(ort_api().SetSessionLogSeverityLevel(self.ptr, severity))

    def graph_level(self, int level):
        ort_check(ort_api().SetSessionGraphOptimizationLevel(self.ptr, level))

    def parallel(self, bint on):
        ort_check(ort_api().SetSessionExecutionMode(self.ptr, 1 if on else 0))

    def threads(self, int intra, int inter):
        if intra > 0:
            ort_check(ort_api().SetIntraOpNumThreads(self.ptr, intra))
        if inter > 0:
            ort_check(ort_api().SetInterOpNumThreads(self.ptr, inter))

    def use_global_pool(self):
        ort_check(ort_api().DisablePerSessionThreads(self.ptr))

    def mem_arena(self, bint on):
        ort_check(ort_api().EnableCpuMemArena(self.ptr) if on else ort_api().DisableCpuMemArena(self.ptr))

    def mem_pattern(self, bint on):
        ort_check(ort_api().EnableMemPattern(self.ptr) if on else ort_api().DisableMemPattern(self.ptr))

    def entry(self, str key not None, str value not None):
        k = key.encode()
        v = value.encode()
        ort_check(ort_api().AddSessionConfigEntry(self.ptr, <const char*>k, <const char*>v))

    def custom_ops(self, str path not None):
        encoded = os.fsencode(path)
        cdef const char* p = encoded
        cdef OrtStatus* status
        with nogil:
            status = ort_api().RegisterCustomOpsLibrary_V2(self.ptr, p)
        ort_check(status)

    def provider(self, str name not None, dict options not None):
        cdef const tf_ort* api = ort_api()
        cdef const char** keys = NULL
        cdef const char** values = NULL
        cdef OrtProviderOptions* made = NULL
        cdef Py_ssize_t i, n = len(options)
        encoded = [(k.encode(), v.encode()) for k, v in options.items()]
        keys = <const char**>malloc((n + 1) * sizeof(char*))
        values = <const char**>malloc((n + 1) * sizeof(char*))
        try:
            if keys == NULL or values == NULL:
                raise MemoryError
            for i in range(n):
                k, v = encoded[i]
                keys[i] = k
                values[i] = v
            if name == "CUDA":
                ort_check(api.CreateCUDAProviderOptions(&made))
                ort_check(api.UpdateCUDAProviderOptions(made, keys, values, n))
                ort_check(api.SessionOptionsAppendExecutionProvider_CUDA_V2(self.ptr, made))
            elif name == "TensorRT":
                ort_check(api.CreateTensorRTProviderOptions(&made))
                ort_check(api.UpdateTensorRTProviderOptions(made, keys, values, n))
                ort_check(api.SessionOptionsAppendExecutionProvider_TensorRT_V2(self.ptr, made))
            else:
                bname = name.encode()
                ort_check(api.SessionOptionsAppendExecutionProvider(self.ptr, <const char*>bname, keys, values, n))
        finally:
            free(keys)
            free(values)
            if made != NULL and name == "CUDA":
                api.ReleaseCUDAProviderOptions(made)
            elif made != NULL:
                api.ReleaseTensorRTProviderOptions(made)


cdef class Session:

    def __init__(self, str path not None, SessionOptions options not None):
        cdef const tf_ort* api = need_api()
        cdef OrtStatus* status
        cdef OrtSession* made = NULL
        encoded = os.fsencode(path)
        if b"\0" in encoded:
            raise InvalidArg("the path of a model file must not contain a NUL byte")
        cdef const char* p = encoded
        cdef SessionHold* hold = <SessionHold*>malloc(sizeof(SessionHold))
        if hold == NULL:
            raise MemoryError
        with nogil:
            status = api.CreateSession(ort_env(), p, options.ptr, &made)
        if status != NULL:
            free(hold)
            ort_check(status)
        hold.refs = 1
        hold.session = made
        tf_add64(&live_sessions, 1)
        self.hold = hold
        self.inputs = describe(made, 0)
        self.outputs = describe(made, 1)
        self.initializers = describe(made, 2)
        self.metadata = read_metadata(made)

    def __dealloc__(self):
        cdef SessionHold* hold = self.hold
        with nogil:
            hold_unref(hold)


cdef str take_text(OrtAllocator* allocator, char* value):
    if value == NULL:
        return ""
    result = value.decode("utf-8", "replace")
    ort_check(ort_api().AllocatorFree(allocator, value))
    return result


# The tensors of one side (0 inputs, 1 outputs, 2 initializers that a request may override), in the model's order:
# (name, datatype number, ONNX type number, dims with -1, names of the variable dims).
cdef tuple describe(OrtSession* session, int side):
    cdef const tf_ort* api = ort_api()
    cdef OrtAllocator* allocator = NULL
    cdef OrtTypeInfo* info = NULL
    cdef char* raw = NULL
    cdef size_t n = 0, i
    ort_check(api.GetAllocatorWithDefaultOptions(&allocator))
    if side == 0:
        ort_check(api.SessionGetInputCount(session, &n))
    elif side == 1:
        ort_check(api.SessionGetOutputCount(session, &n))
    else:
        ort_check(api.SessionGetOverridableInitializerCount(session, &n))
    found = []
    for i in range(n):
        raw = NULL
        info = NULL
        if side == 0:
            ort_check(api.SessionGetInputName(session, i, allocator, &raw))
        elif side == 1:
            ort_check(api.SessionGetOutputName(session, i, allocator, &raw))
        else:
            ort_check(api.SessionGetOverridableInitializerName(session, i, allocator, &raw))
        name = take_text(allocator, raw)
        if side == 0:
            ort_check(api.SessionGetInputTypeInfo(session, i, &info))
        elif side == 1:
            ort_check(api.SessionGetOutputTypeInfo(session, i, &info))
        else:
            ort_check(api.SessionGetOverridableInitializerTypeInfo(session, i, &info))
        try:
            found.append((name, *describe_tensor(name, info)))
        finally:
            api.ReleaseTypeInfo(info)
    return tuple(found)


cdef tuple describe_tensor(str name, OrtTypeInfo* info):
    cdef const tf_ort* api = ort_api()
    cdef const OrtShapeInfo* shape = NULL
    cdef int64_t[MAX_DIMS] dims
    cdef text[MAX_DIMS] symbols
    cdef int kind = 0, element = 0
    cdef size_t rank = 0, i
    ort_check(api.GetOnnxTypeFromTypeInfo(info, &kind))
    if kind != TF_ORT_TYPE_TENSOR:
        label = KINDS[kind] if 0 <= kind < len(KINDS) else str(kind)
        raise Unsupported(f"Unsupported ONNX Type '{label}' for I/O '{name}', expected 'tensor'.")
    ort_check(api.CastTypeInfoToTensorInfo(info, &shape))
    if shape == NULL:
        raise Unsupported(f"Unsupported ONNX Type 'unknown' for I/O '{name}', expected 'tensor'.")
    ort_check(api.GetTensorElementType(shape, &element))
    ort_check(api.GetDimensionsCount(shape, &rank))
    if rank > MAX_DIMS:
        raise Unsupported(f"'{name}' has {rank} dimensions, more than any request may have")
    ort_check(api.GetDimensions(shape, dims, rank))
    ort_check(api.GetSymbolicDimensions(shape, symbols, rank))
    return (TYPE_OF.get(element, DT_INVALID), element, tuple([dims[i] if dims[i] >= 0 else -1 for i in range(rank)]),
            tuple([symbols[i].decode("utf-8", "replace") if symbols[i] != NULL else "" for i in range(rank)]))


cdef dict read_metadata(OrtSession* session):
    cdef const tf_ort* api = ort_api()
    cdef OrtAllocator* allocator = NULL
    cdef OrtModelMetadata* metadata = NULL
    cdef char** keys = NULL
    cdef char* value
    cdef int64_t n = 0, i
    ort_check(api.GetAllocatorWithDefaultOptions(&allocator))
    ort_check(api.SessionGetModelMetadata(session, &metadata))
    try:
        result = {}
        ort_check(api.ModelMetadataGetCustomMetadataMapKeys(metadata, allocator, &keys, &n))
        names = []
        for i in range(n):
            names.append((<bytes>keys[i]))
            ort_check(api.AllocatorFree(allocator, keys[i]))
        if keys != NULL:
            ort_check(api.AllocatorFree(allocator, keys))
        for key in names:
            value = NULL
            ort_check(api.ModelMetadataLookupCustomMetadataMap(metadata, allocator, <const char*>key, &value))
            result[key.decode("utf-8", "replace")] = take_text(allocator, value)
        return result
    finally:
        api.ReleaseModelMetadata(metadata)
