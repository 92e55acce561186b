# Treelite's C functions, declared here and looked up in the library of the installed wheel. Each returns 0, or -1 with
# a text of its thread in GetLastError; models and configs are opaque.
from libc.stddef cimport size_t
from libc.stdint cimport uint64_t

# A field of a model: memory of the model's own. format: a buffer protocol code such as "=l" or "T{=B}".
cdef struct Frame:
    void* buf
    char* format
    size_t itemsize
    size_t nitem

ctypedef int (*load_fn)(const char* data, size_t n, const char* config, void** model) noexcept nogil

cdef struct Treelite:
    const char* (*last_error)() noexcept nogil
    int (*log_callback)(void (*)(const char*) noexcept nogil) noexcept nogil
    int (*warning_callback)(void (*)(const char*) noexcept nogil) noexcept nogil
    load_fn load_json
    load_fn load_ubjson
    load_fn load_binary
    int (*load_lightgbm)(const char* text, const char* config, void** model) noexcept nogil
    int (*load_checkpoint)(const char* data, size_t n, void** model) noexcept nogil
    int (*serialize)(void* model, const char** out, size_t* n) noexcept nogil
    int (*free_model)(void* model) noexcept nogil
    int (*count_features)(void* model, int* out) noexcept nogil
    int (*count_trees)(void* model, size_t* out) noexcept nogil
    int (*input_type)(void* model, const char** out) noexcept nogil
    int (*header)(void* model, const char* name, Frame* out) noexcept nogil
    int (*set_header)(void* model, const char* name, Frame value) noexcept nogil
    int (*tree)(void* model, uint64_t tree, const char* name, Frame* out) noexcept nogil
    int (*parse_config)(const char* json, void** config) noexcept nogil
    int (*free_config)(void* config) noexcept nogil
    int (*predict)(void* model, const void* rows, const char* dtype, uint64_t n, void* out,
                   void* config) noexcept nogil


# NULL before open_library. The library is never closed: it may keep threads.
cdef const Treelite* treelite() noexcept nogil
# Raise InvalidArg with the text of the last failure on this thread, without the place in treelite's sources.
cdef int refuse() except -1
