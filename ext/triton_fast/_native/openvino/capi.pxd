# OpenVINO's functions as Cython sees them (tf_ov.h has the rows), and the process-wide handle of the library.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.native cimport tf_error


cdef extern from "tf_ov.h" nogil:
    ctypedef struct ov_core
    ctypedef struct ov_model
    ctypedef struct ov_port
    ctypedef struct ov_compiled
    ctypedef struct ov_request
    ctypedef struct ov_tensor
    ctypedef struct ov_shape:
        int64_t rank
        int64_t* dims
    ctypedef struct ov_dimension:
        int64_t min
        int64_t max
    ctypedef struct ov_partial_shape:
        ov_dimension rank
        ov_dimension* dims
    ctypedef struct ov_version:
        const char* build
        const char* description
    ctypedef struct ov_devices:
        char** devices
        size_t size
    ctypedef const char* text "const char *"
    enum:
        TF_OV_PROPERTIES
    ctypedef struct tf_ov:
        char* (*get_last_err_msg)() noexcept nogil
        void (*free)(text) noexcept nogil
        int (*get_openvino_version)(ov_version*) noexcept nogil
        void (*version_free)(ov_version*) noexcept nogil
        int (*core_create)(ov_core**) noexcept nogil
        void (*core_free)(ov_core*) noexcept nogil
        int (*core_add_extension)(const ov_core*, text) noexcept nogil
        int (*core_get_available_devices)(const ov_core*, ov_devices*) noexcept nogil
        void (*available_devices_free)(ov_devices*) noexcept nogil
        int (*core_read_model)(const ov_core*, text, text, ov_model**) noexcept nogil
        int (*core_read_model_from_memory_buffer)(const ov_core*, text, size_t, const ov_tensor*,
                                                  ov_model**) noexcept nogil
        void (*model_free)(ov_model*) noexcept nogil
        int (*model_inputs_size)(const ov_model*, size_t*) noexcept nogil
        int (*model_outputs_size)(const ov_model*, size_t*) noexcept nogil
        int (*model_const_input_by_index)(const ov_model*, size_t, ov_port**) noexcept nogil
        int (*model_const_output_by_index)(const ov_model*, size_t, ov_port**) noexcept nogil
        int (*model_reshape_by_port_indexes)(const ov_model*, const size_t*, const ov_partial_shape*,
                                             size_t) noexcept nogil
        int (*port_get_any_name)(const ov_port*, char**) noexcept nogil
        int (*port_get_element_type)(const ov_port*, int*) noexcept nogil
        int (*port_get_partial_shape)(const ov_port*, ov_partial_shape*) noexcept nogil
        void (*output_const_port_free)(ov_port*) noexcept nogil
        int (*partial_shape_create)(int64_t, const ov_dimension*, ov_partial_shape*) noexcept nogil
        void (*partial_shape_free)(ov_partial_shape*) noexcept nogil
        void (*shape_free)(ov_shape*) noexcept nogil
        void (*compiled_model_free)(ov_compiled*) noexcept nogil
        int (*compiled_model_create_infer_request)(const ov_compiled*, ov_request**) noexcept nogil
        int (*compiled_model_get_property)(const ov_compiled*, text, char**) noexcept nogil
        void (*infer_request_free)(ov_request*) noexcept nogil
        int (*infer_request_infer)(ov_request*) noexcept nogil
        int (*infer_request_start_async)(ov_request*) noexcept nogil
        int (*infer_request_wait)(ov_request*) noexcept nogil
        int (*infer_request_set_input_tensor_by_index)(ov_request*, size_t, const ov_tensor*) noexcept nogil
        int (*infer_request_set_output_tensor_by_index)(ov_request*, size_t, const ov_tensor*) noexcept nogil
        int (*tensor_create)(int, ov_shape, ov_tensor**) noexcept nogil
        int (*tensor_create_from_host_ptr)(int, ov_shape, void*, ov_tensor**) noexcept nogil
        int (*tensor_get_shape)(const ov_tensor*, ov_shape*) noexcept nogil
        int (*tensor_get_byte_size)(const ov_tensor*, size_t*) noexcept nogil
        int (*tensor_data)(const ov_tensor*, void**) noexcept nogil
        void (*tensor_free)(ov_tensor*) noexcept nogil
    const char* tf_ov_bind(tf_ov* api, void* library)
    int tf_ov_compile(const tf_ov* api, const ov_core* core, const ov_model* model, text device, text* properties,
                      size_t n, ov_compiled** out)
    void tf_ov_reason(const char* message, char* out, size_t room)


# The bound functions; NULL before open_library. Never goes away again: OpenVINO keeps threads and statics of its own.
cdef const tf_ov* ov_api() noexcept nogil
# The datatype of an element type's number; DT_INVALID when the v2 protocol has none.
cdef int32_t dtype_of(int element) noexcept nogil
# Turn a status that is not 0 into e ("openvino error in <what> : <reason>", INTERNAL); returns -1. The message is the
# process's last: another thread's failure at the same moment may stand in its place.
cdef int ov_fail(tf_error* e, int status, const char* what) noexcept nogil
# The same as an exception; 0 when status is 0.
cdef int ov_check(int status, str what) except -1


# A core: the devices and extensions that models are read with.
cdef class Core:
    cdef ov_core* ptr
