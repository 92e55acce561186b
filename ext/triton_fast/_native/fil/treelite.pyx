# Opens libtreelite and binds its functions. Knows no model. What treelite prints while it reads a broken file is
# dropped: the error that it returns says the same.
import os
import re
import threading

from libc.string cimport memset
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlclose, dlerror, dlopen, dlsym

from triton_fast.errors import Internal, InvalidArg, Unsupported

cdef Treelite table
cdef bint bound = False
cdef str opened = ""
cdef object opening = threading.Lock()
# "[06:49:50] /project/src/model_loader/xgboost_json.cc:135: "
cdef object place = re.compile(r"^(\[[0-9:]+\] )?(\S+\.(cc|h|hpp|cpp):[0-9]+: )?")

memset(&table, 0, sizeof(table))


cdef const Treelite* treelite() noexcept nogil:
    return &table if bound else NULL


cdef int refuse() except -1:
    text = (<const char*>table.last_error()).decode("utf-8", "replace")
    raise InvalidArg(place.sub("", text).strip() or "treelite gave no reason")


cdef void ignore(const char* text) noexcept nogil:
    pass


cdef void* find(void* handle, str name) except NULL:
    encoded = name.encode()
    cdef void* found = dlsym(handle, <const char*>encoded)
    if found == NULL:
        raise Unsupported(f"the installed treelite does not export {name}: pip install 'treelite>=4.5'")
    return found


def open_library(str path not None):
    with opening:
        open_locked(path)


cdef int open_locked(str path) except -1:
    global bound, opened
    cdef void* handle
    if bound:
        if path != opened:
            raise Internal("treelite is already loaded from another file of this process")
        return 0
    encoded = os.fsencode(path)
    handle = dlopen(<const char*>encoded, RTLD_NOW | RTLD_LOCAL)
    if handle == NULL:
        reason = dlerror()
        text = reason.decode("utf-8", "replace").replace(os.path.dirname(path) + "/", "")
        raise Internal(f"can not open the treelite library: {text}")
    try:
        bind(handle)
    except BaseException:
        dlclose(handle)
        raise
    table.log_callback(ignore)
    table.warning_callback(ignore)
    opened = path
    bound = True
    return 0


cdef int bind(void* handle) except -1:
    (<void**>&table.last_error)[0] = find(handle, "TreeliteGetLastError")
    (<void**>&table.log_callback)[0] = find(handle, "TreeliteRegisterLogCallback")
    (<void**>&table.warning_callback)[0] = find(handle, "TreeliteRegisterWarningCallback")
    (<void**>&table.load_json)[0] = find(handle, "TreeliteLoadXGBoostModelFromJSONString")
    (<void**>&table.load_ubjson)[0] = find(handle, "TreeliteLoadXGBoostModelFromUBJSONString")
    (<void**>&table.load_binary)[0] = find(handle, "TreeliteLoadXGBoostModelLegacyBinaryFromMemoryBuffer")
    (<void**>&table.load_lightgbm)[0] = find(handle, "TreeliteLoadLightGBMModelFromString")
    (<void**>&table.load_checkpoint)[0] = find(handle, "TreeliteDeserializeModelFromBytes")
    (<void**>&table.serialize)[0] = find(handle, "TreeliteSerializeModelToBytes")
    (<void**>&table.free_model)[0] = find(handle, "TreeliteFreeModel")
    (<void**>&table.count_features)[0] = find(handle, "TreeliteQueryNumFeature")
    (<void**>&table.count_trees)[0] = find(handle, "TreeliteQueryNumTree")
    (<void**>&table.input_type)[0] = find(handle, "TreeliteGetInputType")
    (<void**>&table.header)[0] = find(handle, "TreeliteGetHeaderField")
    (<void**>&table.set_header)[0] = find(handle, "TreeliteSetHeaderField")
    (<void**>&table.tree)[0] = find(handle, "TreeliteGetTreeField")
    (<void**>&table.parse_config)[0] = find(handle, "TreeliteGTILParseConfig")
    (<void**>&table.free_config)[0] = find(handle, "TreeliteGTILDeleteConfig")
    (<void**>&table.predict)[0] = find(handle, "TreeliteGTILPredict")
    return 0
