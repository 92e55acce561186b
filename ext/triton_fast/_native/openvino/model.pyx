# Models as files say them and as devices run them: everything that happens at load time. Each call that can take long
# runs without the GIL, and every status is checked. Knows no config: names and values come in as plain Python values.
import os

from libc.stdint cimport int64_t
from libc.stdlib cimport free, malloc

from triton_fast._native.core.native cimport tf_add64, tf_load64
from triton_fast._native.openvino.capi cimport (
    TF_OV_PROPERTIES, Core, dtype_of, ov_api, ov_check, ov_dimension, ov_partial_shape, ov_port, text,
    tf_ov, tf_ov_compile,
)

from triton_fast.errors import InvalidArg

cdef enum:
    MAX_DIMS = 1024         # a rank past this is a broken model, not a tensor
    MAX_TEXTS = 2 * TF_OV_PROPERTIES

cdef int64_t live_models = 0


def live():
    return tf_load64(&live_models)


cdef class Compiled:

    def __dealloc__(self):
        if self.ptr != NULL:
            with nogil:
                ov_api().compiled_model_free(self.ptr)
            tf_add64(&live_models, -1)

    def property(self, str key not None):
        cdef char* value = NULL
        encoded = key.encode()
        ov_check(ov_api().compiled_model_get_property(self.ptr, <const char*>encoded, &value), f"reading {key}")
        result = value.decode("utf-8", "replace")
        ov_api().free(value)
        return result


cdef class Model:

    def __init__(self, Core core not None, str path not None):
        cdef int status
        if self.ptr != NULL:
            raise InvalidArg("a model can not be read twice")
        encoded = os.fsencode(path)
        if b"\0" in encoded:
            raise InvalidArg("the path of a model file must not contain a NUL byte")
        cdef const char* p = encoded
        self.core = core
        with nogil:
            status = ov_api().core_read_model(core.ptr, p, NULL, &self.ptr)
        ov_check(status, "reading model")

    def __dealloc__(self):
        if self.ptr != NULL:
            with nogil:
                ov_api().model_free(self.ptr)

    def inputs(self):
        return describe(self, True)

    def outputs(self):
        return describe(self, False)

    def reshape(self, list shapes not None):
        cdef Py_ssize_t n = len(shapes), made = 0, i
        cdef size_t* indexes = <size_t*>malloc((n + 1) * sizeof(size_t))
        cdef ov_partial_shape* partial = <ov_partial_shape*>malloc((n + 1) * sizeof(ov_partial_shape))
        cdef int status
        try:
            if indexes == NULL or partial == NULL:
                raise MemoryError
            for i in range(n):
                index, dims = shapes[i]
                indexes[i] = index
                make_partial(&partial[i], dims)
                made += 1
            with nogil:
                status = ov_api().model_reshape_by_port_indexes(self.ptr, indexes, partial, <size_t>n)
            ov_check(status, "reshaping the model")
        finally:
            for i in range(made):
                ov_api().partial_shape_free(&partial[i])
            free(indexes)
            free(partial)

    def compile(self, str device not None, list properties not None):
        cdef text[MAX_TEXTS] p
        cdef size_t n = len(properties), i
        cdef int status
        cdef Compiled made = Compiled.__new__(Compiled)
        if n > TF_OV_PROPERTIES:
            raise InvalidArg(f"a model may have {TF_OV_PROPERTIES} properties of OpenVINO, {n} are given")
        texts = [part.encode() for pair in properties for part in pair]
        for i in range(2 * n):
            p[i] = <const char*>texts[i]
        encoded = device.encode()
        cdef const char* name = encoded
        with nogil:
            status = tf_ov_compile(ov_api(), self.core.ptr, self.ptr, name, p, n, &made.ptr)
        ov_check(status, "compiling the model")
        tf_add64(&live_models, 1)
        return made


cdef int make_partial(ov_partial_shape* out, tuple dims) except -1:
    cdef ov_dimension[MAX_DIMS] made
    cdef Py_ssize_t i, n = len(dims)
    if n > MAX_DIMS:
        raise InvalidArg(f"a shape has {n} dimensions, the limit is {MAX_DIMS}")
    for i in range(n):
        made[i].min = made[i].max = dims[i]
    return ov_check(ov_api().partial_shape_create(n, made, out), "making a shape")


# The tensors of one side in the model's order: (name, datatype number, element type number, dims). dims is None where
# even their number varies; a dimension that varies is -1.
cdef tuple describe(Model model, bint is_input):
    cdef const tf_ov* api = ov_api()
    cdef ov_port* port
    cdef ov_partial_shape shape
    cdef char* raw
    cdef size_t n = 0, i
    cdef int element = 0
    cdef int64_t k
    ov_check(api.model_inputs_size(model.ptr, &n) if is_input else api.model_outputs_size(model.ptr, &n),
             "counting tensors")
    found = []
    for i in range(n):
        port = NULL
        raw = NULL
        ov_check(api.model_const_input_by_index(model.ptr, i, &port) if is_input
                 else api.model_const_output_by_index(model.ptr, i, &port), "reading tensors")
        try:
            # A port may be without a name: it can not be asked for then.
            if api.port_get_any_name(port, &raw) == 0 and raw != NULL:
                name = raw.decode("utf-8", "replace")
                api.free(raw)
            else:
                name = ""
            ov_check(api.port_get_element_type(port, &element), "reading tensors")
            ov_check(api.port_get_partial_shape(port, &shape), "reading tensors")
        finally:
            api.output_const_port_free(port)
        dims = None
        if 0 <= shape.rank.min == shape.rank.max:
            dims = tuple([shape.dims[k].min if shape.dims[k].min == shape.dims[k].max else -1
                          for k in range(shape.rank.min)])
        api.partial_shape_free(&shape)
        found.append((name, dtype_of(element), element, dims))
    return tuple(found)
