# Opens libopenvino_c, binds the functions of tf_ov.h, asks for the numbers of the element types, and makes cores. Knows
# no model. Python code calls open_library once; nothing else here is process-wide.
import os
import threading

from libc.stdint cimport int32_t
from libc.string cimport memset
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlclose, dlerror, dlopen

from triton_fast._native.core.native cimport (
    DT_BF16, DT_BOOL, DT_COUNT, DT_FP16, DT_FP32, DT_FP64, DT_INT8, DT_INT16, DT_INT32, DT_INT64, DT_INVALID, DT_STRING,
    DT_UINT8, DT_UINT16, DT_UINT32, DT_UINT64, TF_INTERNAL, tf_fail,
)

from triton_fast.errors import Internal, InvalidArg, Unsupported

cdef enum:
    MAX_REASON = 1536
    MAX_ELEMENT = 128

cdef tf_ov table
cdef bint bound = False
cdef str library_path = ""
cdef str library_version = ""
cdef object opening = threading.Lock()
cdef int[DT_COUNT] elements
cdef int32_t[MAX_ELEMENT] dtypes

memset(&table, 0, sizeof(table))

# Datatype -> its name in a model's text, of an element and of a port.
NAMES = {
    DT_BOOL: ("boolean", "BOOL"), DT_UINT8: ("u8", "U8"), DT_UINT16: ("u16", "U16"), DT_UINT32: ("u32", "U32"),
    DT_UINT64: ("u64", "U64"), DT_INT8: ("i8", "I8"), DT_INT16: ("i16", "I16"), DT_INT32: ("i32", "I32"),
    DT_INT64: ("i64", "I64"), DT_FP16: ("f16", "FP16"), DT_FP32: ("f32", "FP32"), DT_FP64: ("f64", "FP64"),
    DT_BF16: ("bf16", "BF16"), DT_STRING: ("string", "STRING"),
}


cdef const tf_ov* ov_api() noexcept nogil:
    return &table if bound else NULL


cdef int32_t dtype_of(int element) noexcept nogil:
    return dtypes[element] if 0 <= element < MAX_ELEMENT else DT_INVALID


cdef void last_reason(char* out) noexcept nogil:
    cdef char* message = table.get_last_err_msg()
    tf_ov_reason(message, out, MAX_REASON)
    if message != NULL:
        table.free(message)


cdef int ov_fail(tf_error* e, int status, const char* what) noexcept nogil:
    cdef char[MAX_REASON] reason
    last_reason(reason)
    if reason[0] == 0:
        return tf_fail(e, TF_INTERNAL, b"openvino error in %s : status %d", what, status)
    return tf_fail(e, TF_INTERNAL, b"openvino error in %s : %s", what, <char*>reason)


cdef int ov_check(int status, str what) except -1:
    cdef char[MAX_REASON] reason
    if status == 0:
        return 0
    last_reason(reason)
    text = (<const char*>reason).decode("utf-8", "replace").strip()
    raise Internal(f"openvino error in {what} : {text or f'status {status}'}")


def open_library(str path not None):
    with opening:
        return open_locked(path)


cdef str open_locked(str path):
    global bound, library_path, library_version
    cdef void* handle
    cdef const char* lacking
    cdef ov_version version
    if bound:
        if path != library_path:
            raise Internal(f"OpenVINO {library_version} is already loaded from another file of this process")
        return library_version
    encoded = os.fsencode(path)
    name = os.path.basename(path)
    handle = dlopen(<const char*>encoded, RTLD_NOW | RTLD_LOCAL)
    if handle == NULL:
        reason = dlerror()
        raise Internal(f"can not open the OpenVINO library '{name}': {reason.decode('utf-8', 'replace')}")
    lacking = tf_ov_bind(&table, handle)
    if lacking != NULL:
        dlclose(handle)
        raise Unsupported(f"'{name}' lacks the function {lacking.decode()}: install openvino>=2024.0")
    ov_check(table.get_openvino_version(&version), "asking for the version")
    text = version.build.decode("utf-8", "replace")
    table.version_free(&version)
    learn_elements()
    library_path = path
    library_version = text
    bound = True
    return text


# A model with an input of every datatype says which numbers the element types have in this release.
cdef int learn_elements() except -1:
    cdef ov_core* core = NULL
    cdef ov_model* model = NULL
    cdef ov_port* port
    cdef int i
    cdef int element
    cdef int32_t dtype
    for i in range(DT_COUNT):
        elements[i] = -1
    for i in range(MAX_ELEMENT):
        dtypes[i] = DT_INVALID
    document = model_of_all().encode()
    ov_check(table.core_create(&core), "making a core")
    try:
        ov_check(table.core_read_model_from_memory_buffer(core, <const char*>document, len(document), NULL, &model),
                 "asking for the element types")
        for i, dtype in enumerate(NAMES):
            port = NULL
            ov_check(table.model_const_input_by_index(model, i, &port), "asking for the element types")
            element = -1
            table.port_get_element_type(port, &element)
            table.output_const_port_free(port)
            if not 0 <= element < MAX_ELEMENT:
                raise Unsupported(f"OpenVINO gives an element type the number {element}")
            elements[dtype] = element
            dtypes[element] = dtype
    finally:
        if model != NULL:
            table.model_free(model)
        table.core_free(core)
    return 0


cdef str model_of_all():
    layers, edges = [], []
    for i, (element, precision) in enumerate(NAMES.values()):
        port = f'<port id="0" precision="{precision}"><dim>1</dim></port>'
        layers.append(
            f'<layer id="{i}" name="p{i}" type="Parameter" version="opset1"><data shape="1" element_type="{element}"/>'
            f'<output>{port}</output></layer>'
            f'<layer id="{100 + i}" name="r{i}" type="Result" version="opset1"><input>{port}</input></layer>')
        edges.append(f'<edge from-layer="{i}" from-port="0" to-layer="{100 + i}" to-port="0"/>')
    return f'<net name="types" version="11"><layers>{"".join(layers)}</layers><edges>{"".join(edges)}</edges></net>'


def element_types():
    return {dtype: elements[dtype] for dtype in range(1, DT_COUNT)}


cdef class Core:

    def __cinit__(self):
        if not bound:
            raise Internal("the OpenVINO library is not open")
        ov_check(table.core_create(&self.ptr), "making a core")

    def __dealloc__(self):
        if self.ptr != NULL:
            with nogil:
                table.core_free(self.ptr)

    def extend(self, str path not None):
        encoded = os.fsencode(path)
        if b"\0" in encoded:
            raise InvalidArg("the path of an extension must not contain a NUL byte")
        cdef const char* p = encoded
        cdef int status
        with nogil:
            status = table.core_add_extension(self.ptr, p)
        ov_check(status, "loading the extension")

    def devices(self):
        cdef ov_devices found
        cdef int status
        cdef size_t i
        with nogil:
            status = table.core_get_available_devices(self.ptr, &found)
        ov_check(status, "asking for the devices")
        names = [found.devices[i].decode("utf-8", "replace") for i in range(found.size)]
        table.available_devices_free(&found)
        return names
