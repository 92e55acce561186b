/* OpenVINO's C API, as far as this project calls it: one row here says result, name and arguments of one function of
 * libopenvino_c, which tf_ov_bind looks up by name. Nothing is linked; nothing here knows a model. The numbers of element
 * types differ between releases and are asked for at run time (openvino/capi.pyx). */
#ifndef TF_OV_H
#define TF_OV_H
#include <dlfcn.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

typedef struct ov_core ov_core;
typedef struct ov_model ov_model;
typedef struct ov_port ov_port; /* const port */
typedef struct ov_compiled ov_compiled;
typedef struct ov_request ov_request;
typedef struct ov_tensor ov_tensor;

typedef struct {
    int64_t rank;
    int64_t *dims;
} ov_shape;

typedef struct {
    int64_t min;
    int64_t max; /* -1: no limit */
} ov_dimension;

typedef struct {
    ov_dimension rank;
    ov_dimension *dims;
} ov_partial_shape;

typedef struct {
    const char *build;
    const char *description;
} ov_version;

typedef struct {
    char **devices;
    size_t size;
} ov_devices;

/* Most properties that compile_model is given; see tf_ov_compile. */
#define TF_OV_PROPERTIES 16

#define TF_OV_FUNCTIONS(F)                                                                                             \
    F(char *, get_last_err_msg, (void))                                                                                \
    F(void, free, (const char *))                                                                                      \
    F(int, get_openvino_version, (ov_version *))                                                                       \
    F(void, version_free, (ov_version *))                                                                              \
    F(int, core_create, (ov_core **))                                                                                  \
    F(void, core_free, (ov_core *))                                                                                    \
    F(int, core_add_extension, (const ov_core *, const char *path))                                                    \
    F(int, core_get_available_devices, (const ov_core *, ov_devices *))                                                \
    F(void, available_devices_free, (ov_devices *))                                                                    \
    F(int, core_read_model, (const ov_core *, const char *path, const char *weights, ov_model **))                     \
    F(int, core_read_model_from_memory_buffer, (const ov_core *, const char *text, size_t n, const ov_tensor *weights, \
                                                ov_model **))                                                          \
    F(int, core_compile_model, (const ov_core *, const ov_model *, const char *device, size_t n, ov_compiled **, ...)) \
    F(void, model_free, (ov_model *))                                                                                  \
    F(int, model_inputs_size, (const ov_model *, size_t *))                                                            \
    F(int, model_outputs_size, (const ov_model *, size_t *))                                                           \
    F(int, model_const_input_by_index, (const ov_model *, size_t, ov_port **))                                         \
    F(int, model_const_output_by_index, (const ov_model *, size_t, ov_port **))                                        \
    F(int, model_reshape_by_port_indexes, (const ov_model *, const size_t *, const ov_partial_shape *, size_t))        \
    F(int, port_get_any_name, (const ov_port *, char **))                                                              \
    F(int, port_get_element_type, (const ov_port *, int *))                                                            \
    F(int, port_get_partial_shape, (const ov_port *, ov_partial_shape *))                                              \
    F(void, output_const_port_free, (ov_port *))                                                                       \
    F(int, partial_shape_create, (int64_t rank, const ov_dimension *, ov_partial_shape *))                             \
    F(void, partial_shape_free, (ov_partial_shape *))                                                                  \
    F(void, shape_free, (ov_shape *))                                                                                  \
    F(void, compiled_model_free, (ov_compiled *))                                                                      \
    F(int, compiled_model_create_infer_request, (const ov_compiled *, ov_request **))                                  \
    F(int, compiled_model_get_property, (const ov_compiled *, const char *key, char **value))                          \
    F(void, infer_request_free, (ov_request *))                                                                        \
    F(int, infer_request_infer, (ov_request *))                                                                        \
    F(int, infer_request_start_async, (ov_request *))                                                                  \
    F(int, infer_request_wait, (ov_request *))                                                                         \
    F(int, infer_request_set_input_tensor_by_index, (ov_request *, size_t, const ov_tensor *))                         \
    F(int, infer_request_set_output_tensor_by_index, (ov_request *, size_t, const ov_tensor *))                        \
    F(int, tensor_create, (int element, ov_shape, ov_tensor **))                                                       \
    F(int, tensor_create_from_host_ptr, (int element, ov_shape, void *, ov_tensor **))                                 \
    F(int, tensor_get_shape, (const ov_tensor *, ov_shape *))                                                          \
    F(int, tensor_get_byte_size, (const ov_tensor *, size_t *))                                                        \
    F(int, tensor_data, (const ov_tensor *, void **))                                                                  \
    F(void, tensor_free, (ov_tensor *))

#define TF_OV_FIELD(result, name, args) result(*name) args;
typedef struct {
    TF_OV_FUNCTIONS(TF_OV_FIELD)
} tf_ov;
#undef TF_OV_FIELD

/* Fill api from an opened library. Returns the name of a function that it lacks, or NULL. */
static inline const char *tf_ov_bind(tf_ov *api, void *library) {
    void *found;
#define TF_OV_TAKE(result, name, args)                                                                                 \
    found = dlsym(library, "ov_" #name);                                                                               \
    if (!found) return "ov_" #name;                                                                                    \
    api->name = (result(*) args)found;
    TF_OV_FUNCTIONS(TF_OV_TAKE)
#undef TF_OV_TAKE
    return NULL;
}

/* compile_model takes its properties as variable arguments; it reads 2 * n of the ones that follow. */
static inline int tf_ov_compile(const tf_ov *api, const ov_core *core, const ov_model *model, const char *device,
                                const char *const *p, size_t n, ov_compiled **out) {
    const char *a[2 * TF_OV_PROPERTIES] = {0};
    if (n > TF_OV_PROPERTIES) return -1;
    memcpy(a, p, 2 * n * sizeof(*p));
    return api->core_compile_model(core, model, device, 2 * n, out, a[0], a[1], a[2], a[3], a[4], a[5], a[6], a[7], a[8],
                                   a[9], a[10], a[11], a[12], a[13], a[14], a[15], a[16], a[17], a[18], a[19], a[20],
                                   a[21], a[22], a[23], a[24], a[25], a[26], a[27], a[28], a[29], a[30], a[31]);
}

/* What a message says without the places in OpenVINO's sources that stand around it: its other lines, joined. */
static inline void tf_ov_reason(const char *text, char *out, size_t room) {
    size_t at = 0, n;
    while (text && *text) {
        n = strcspn(text, "\n");
        if (n && strncmp(text, "Exception from ", 15) && strncmp(text, "Check '", 7) &&
            strncmp(text, "FrontEnd API failed", 19)) {
            if (at && at + 1 < room) out[at++] = ' ';
            if (n > room - 1 - at) n = room - 1 - at;
            memcpy(out + at, text, n);
            at += n;
            text += n;
            text += strcspn(text, "\n");
        } else {
            text += n;
        }
        text += *text == '\n';
    }
    out[at] = 0;
}
#endif
