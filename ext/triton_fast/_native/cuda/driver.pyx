# Opens libcuda.so.1, binds the functions of tf_cuda.h, describes the devices and keeps one primary context of each, the
# one that the runtime API (PyTorch, ONNX Runtime, TensorRT) uses too. Nothing is opened before somebody asks.
import os
import threading
from collections import namedtuple

from libc.stdint cimport int32_t
from libc.string cimport memset
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlclose, dlerror, dlopen

from triton_fast._native.core.native cimport TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE, tf_fail, tf_load32, tf_store32
from triton_fast._native.core.pthread cimport (
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock,
)

from triton_fast.errors import Internal, InvalidArg, NotFound, Unavailable, Unsupported

LIBRARY = "libcuda.so.1"

Device = namedtuple("Device", ("id", "name", "uuid", "capability", "total_bytes"))
Device.__doc__ = "One GPU; see the stub."

cdef enum:
    NAME_ROOM = 256

cdef tf_cuda table
cdef bint bound = False
cdef int n_devices = 0
cdef tf_cu_handle[MAX_DEVICES] contexts
cdef tf_cu_device[MAX_DEVICES] ordinals
cdef int32_t[MAX_DEVICES] lost_by      # atomic; the status that ended the context; 0: it is well
cdef pthread_mutex_t making         # contexts are made one after the other, each takes some 100 ms
cdef void* library = NULL
cdef str library_path = ""
cdef tuple found = ()
cdef object opening = threading.Lock()

memset(&table, 0, sizeof(table))
memset(contexts, 0, sizeof(contexts))
pthread_mutex_init(&making, NULL)
memset(lost_by, 0, sizeof(lost_by))


cdef const tf_cuda* cuda_api() noexcept nogil:
    return &table if bound else NULL


cdef int cuda_count() noexcept nogil:
    return n_devices


cdef tf_cu_handle cuda_context(int device) noexcept nogil:
    return contexts[device] if 0 <= device < n_devices else NULL


# Whether a context answers nothing else any more: to use the GPU again, the process must be started anew.
cdef bint is_final(int status) noexcept nogil:
    return (status == 214 or status == 220                          # memory or a link that can not be corrected
            or status == 700 or status == 702 or status == 709      # illegal address, time over, context destroyed
            or status == 710 or 714 <= status <= 719 or status == 721)      # what a kernel ended by


cdef int cuda_fail(tf_error* e, int status, int device, const char* what) noexcept nogil:
    cdef const char* name = NULL
    cdef const char* text = NULL
    cdef int code = TF_UNAVAILABLE if status == TF_CU_OUT_OF_MEMORY else TF_INTERNAL
    table.GetErrorName(status, &name)
    table.GetErrorString(status, &text)
    if is_final(status) and 0 <= device < n_devices:
        tf_store32(&lost_by[device], status)
    if name == NULL:
        name = b"unknown error"
    if text == NULL:
        text = b"the driver has no text for it"
    if device < 0:
        return tf_fail(e, code, b"%s: %s (%d): %s", what, name, status, text)
    return tf_fail(e, code, b"%s on GPU %d: %s (%d): %s", what, device, name, status, text)


cdef int cuda_check(tf_error* e, int status, int device, const char* what) noexcept nogil:
    return 0 if status == TF_CU_SUCCESS else cuda_fail(e, status, device, what)


cdef object cuda_error(tf_error* e):
    text = e.text[:e.len].decode("utf-8", "replace")
    if e.code == TF_UNAVAILABLE:
        return Unavailable(text)
    return InvalidArg(text) if e.code == TF_INVALID_ARG else Internal(text)


cdef int cuda_enter(int device, tf_error* e) noexcept nogil:
    cdef tf_cu_handle now = NULL
    if not 0 <= device < n_devices:
        if n_devices == 0:
            return tf_fail(e, TF_UNAVAILABLE, b"there is no GPU %d: the server uses no GPU", device)
        return tf_fail(e, TF_INVALID_ARG, b"there is no GPU %d: the driver has GPUs 0 to %d", device, n_devices - 1)
    if contexts[device] == NULL and make_context(device, e):
        return -1
    if table.CtxGetCurrent(&now) == TF_CU_SUCCESS and now == contexts[device]:
        return 0
    return cuda_check(e, table.CtxSetCurrent(contexts[device]), device, b"failed to enter the CUDA context")


cdef tf_cu_handle cuda_current() noexcept nogil:
    cdef tf_cu_handle now = NULL
    table.CtxGetCurrent(&now)
    return now


cdef void cuda_restore(tf_cu_handle before) noexcept nogil:
    cdef tf_cu_handle now = NULL
    if table.CtxGetCurrent(&now) != TF_CU_SUCCESS or now != before:
        table.CtxSetCurrent(before)


cdef int make_context(int device, tf_error* e) noexcept nogil:
    cdef int status = TF_CU_SUCCESS
    cdef tf_cu_handle made = NULL
    pthread_mutex_lock(&making)
    if contexts[device] == NULL:
        status = table.DevicePrimaryCtxRetain(&made, ordinals[device])
        if status == TF_CU_SUCCESS:
            contexts[device] = made
    pthread_mutex_unlock(&making)
    return cuda_check(e, status, device, b"failed to make the CUDA context")


def open_driver(str path=None):
    """Open the driver; see the stub."""
    with opening:
        return open_locked(path or LIBRARY)


cdef int open_locked(str path) except -1:
    global library, library_path, bound, n_devices, found
    cdef const char* lacking
    cdef int status
    cdef int version = 0
    cdef int count = 0
    cdef tf_error e
    if bound:
        if path not in (library_path, LIBRARY):
            raise Internal("the CUDA driver is already open from another file of this process")
        return n_devices
    encoded = os.fsencode(path)
    name = os.path.basename(path)
    library = dlopen(<const char*>encoded, RTLD_NOW | RTLD_LOCAL)
    if library == NULL:
        reason = dlerror()
        raise NotFound(f"there is no NVIDIA driver: {reason.decode('utf-8', 'replace')}")
    try:
        lacking = tf_cuda_bind(&table, library)
        if lacking != NULL:
            raise Unsupported(
                f"the NVIDIA driver is too old: '{name}' lacks {lacking.decode()}; install a driver for CUDA 11.4 or "
                "later")
        with nogil:
            status = table.Init(0)
        if status == TF_CU_NO_DEVICE:
            raise NotFound("the NVIDIA driver finds no GPU; CUDA_VISIBLE_DEVICES may hide them")
        if cuda_check(&e, status, -1, b"the NVIDIA driver can not be started"):
            text = e.text[:e.len].decode("utf-8", "replace")
            if status == TF_CU_SYSTEM_DRIVER_MISMATCH:
                text += "; its library and its kernel module are of different versions: reboot, or reinstall it"
            raise Unavailable(text)
        if cuda_check(&e, table.DriverGetVersion(&version), -1, b"asking for the driver's version") or \
                cuda_check(&e, table.DeviceGetCount(&count), -1, b"counting GPUs"):
            raise cuda_error(&e)
        if version < TF_CU_LEAST_VERSION:
            raise Unsupported(
                f"the NVIDIA driver is too old: it is for CUDA {version // 1000}.{version % 1000 // 10}, at least 11.4 "
                "is needed")
        if count < 1:
            raise NotFound("the NVIDIA driver finds no GPU; CUDA_VISIBLE_DEVICES may hide them")
        found = tuple([describe(i) for i in range(min(count, MAX_DEVICES))])
    except BaseException:
        dlclose(library)
        library = NULL
        raise
    library_path = path
    bound = True
    n_devices = len(found)
    return n_devices


cdef object describe(int i):
    cdef char[NAME_ROOM] name
    cdef tf_cu_uuid uuid
    cdef int major = 0
    cdef int minor = 0
    cdef size_t total = 0
    cdef tf_error e
    cdef tf_cu_device device = 0
    memset(name, 0, sizeof(name))
    memset(&uuid, 0, sizeof(uuid))
    if cuda_check(&e, table.DeviceGet(&device, i), i, b"asking for the device") or \
            cuda_check(&e, table.DeviceGetName(name, NAME_ROOM - 1, device), i, b"asking for the name") or \
            cuda_check(&e, table.DeviceTotalMem(&total, device), i, b"asking for the size of memory") or \
            cuda_check(&e, table.DeviceGetAttribute(&major, TF_CU_CAPABILITY_MAJOR, device), i,
                       b"asking for the compute capability") or \
            cuda_check(&e, table.DeviceGetAttribute(&minor, TF_CU_CAPABILITY_MINOR, device), i,
                       b"asking for the compute capability"):
        raise cuda_error(&e)
    # The second form tells the parts of a divided GPU (MIG) apart.
    if table.DeviceGetUuid_v2 == NULL or table.DeviceGetUuid_v2(&uuid, device) != TF_CU_SUCCESS:
        if table.DeviceGetUuid != NULL:
            table.DeviceGetUuid(&uuid, device)
    ordinals[i] = device
    text = bytes(uuid.bytes[:16]).hex()
    return Device(
        i, (<const char*>name).decode("utf-8", "replace"),
        f"GPU-{text[:8]}-{text[8:12]}-{text[12:16]}-{text[16:20]}-{text[20:]}", (major, minor), total)


def devices():
    return list(found)


def lost():
    cdef const char* name
    cdef int i, status
    result = []
    for i in range(n_devices):
        status = tf_load32(&lost_by[i])
        if status:
            name = NULL
            table.GetErrorName(status, &name)
            result.append((i, (<bytes>name).decode("utf-8", "replace") if name != NULL else str(status)))
    return result


def version():
    cdef int number = 0
    if not bound or table.DriverGetVersion(&number) != TF_CU_SUCCESS:
        return (0, 0)
    return (number // 1000, number % 1000 // 10)


def enter(int device):
    cdef tf_error e
    cdef int status
    with nogil:
        status = cuda_enter(device, &e)
    if status:
        raise cuda_error(&e)


def memory_info(int device):
    cdef tf_error e
    cdef size_t left = 0
    cdef size_t total = 0
    cdef int status
    with nogil:
        status = cuda_enter(device, &e)
        if status == 0:
            status = cuda_check(&e, table.MemGetInfo(&left, &total), device, b"asking for free memory")
    if status:
        raise cuda_error(&e)
    return left, total


def enable_peer_access(ids):
    cdef tf_error e
    cdef int can
    cdef int one
    cdef int other
    cdef int status
    pairs = []
    for one in ids:
        for other in ids:
            can = 0
            if one == other or cuda_enter(other, &e) or cuda_enter(one, &e):
                continue
            if table.DeviceCanAccessPeer(&can, ordinals[one], ordinals[other]) != TF_CU_SUCCESS or not can:
                continue
            status = table.CtxEnablePeerAccess(contexts[other], 0)
            if status == TF_CU_SUCCESS or status == TF_CU_PEER_ACCESS_ALREADY_ENABLED:
                pairs.append((one, other))
    return pairs


def _close():
    """Release the contexts and close the library (tests only): nothing of it may be in use."""
    global library, library_path, bound, n_devices, found
    cdef int i
    with opening:
        if not bound:
            return
        table.CtxSetCurrent(NULL)
        for i in range(n_devices):
            if contexts[i] != NULL:
                table.DevicePrimaryCtxRelease(ordinals[i])
            contexts[i] = NULL
            lost_by[i] = 0
        bound = False
        n_devices = 0
        found = ()
        library_path = ""
        dlclose(library)
        library = NULL
        memset(&table, 0, sizeof(table))
