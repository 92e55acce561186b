# Opens libonnxruntime, binds the functions of tf_ort.h, owns the process-wide environment and takes ORT's log lines.
# Knows no model. Python code calls open_library once, then init_env; ORT's threads only ever call log_line.
import os
import threading

from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strcmp, strlen
from posix.dlfcn cimport RTLD_LOCAL, RTLD_NOW, dlclose, dlerror, dlopen, dlsym
from posix.unistd cimport write

from triton_fast._native.core.native cimport TF_INTERNAL, tf_add64, tf_fail, tf_load64, tf_lock, tf_unlock

from triton_fast.errors import Internal, Unsupported

cdef enum:
    MAX_LINES = 1024        # log lines that wait to be read; more are counted and dropped
    MAX_TEXT = 8192         # bytes kept of one message

cdef struct Line:
    Line* next
    int32_t severity
    char* source            # the session's log id: the model's name
    char* location
    char* text

cdef struct Log:
    int32_t lock
    int32_t count
    Line* head
    Line* tail
    int64_t dropped
    int fd                  # eventfd; -1 = nobody reads

cdef tf_ort table
cdef bint bound = False
cdef OrtEnv* env = NULL
cdef Log log
cdef str library_path = ""
cdef str library_version = ""
cdef bint global_pool = False
cdef object opening = threading.Lock()

memset(&table, 0, sizeof(table))
memset(&log, 0, sizeof(log))
log.fd = -1


cdef const tf_ort* ort_api() noexcept nogil:
    return &table if bound else NULL


cdef const OrtEnv* ort_env() noexcept nogil:
    return env


cdef int ort_fail(tf_error* e, OrtStatus* status) noexcept nogil:
    tf_fail(e, TF_INTERNAL, b"onnx runtime error %d: %s", table.GetErrorCode(status), table.GetErrorMessage(status))
    table.ReleaseStatus(status)
    return -1


cdef int ort_check(OrtStatus* status) except -1:
    if status == NULL:
        return 0
    code = table.GetErrorCode(status)
    message = (<const char*>table.GetErrorMessage(status)).decode("utf-8", "replace")
    table.ReleaseStatus(status)
    raise Internal(f"onnx runtime error {code}: {message}")


cdef char* copy_text(const char* source, size_t limit) noexcept nogil:
    cdef size_t n = strlen(source) if source != NULL else 0
    cdef char* p
    if n > limit:
        n = limit
    p = <char*>malloc(n + 1)
    if p != NULL:
        memcpy(p, source, n)
        p[n] = 0
    return p


cdef void free_line(Line* line) noexcept nogil:
    free(line.source)
    free(line.location)
    free(line.text)
    free(line)


# Called by ORT on any of its threads, and on instance threads during a run: no GIL, no waiting.
cdef void log_line(void* param, int severity, const char* category, const char* logid, const char* location,
                   const char* message) noexcept nogil:
    cdef Line* line
    cdef uint64_t one = 1
    cdef bint first = False
    if log.count >= MAX_LINES:
        tf_add64(&log.dropped, 1)
        return
    line = <Line*>malloc(sizeof(Line))
    if line == NULL:
        return
    line.next = NULL
    line.severity = severity
    line.source = copy_text(logid, 256)
    line.location = copy_text(location, 512)
    line.text = copy_text(message, MAX_TEXT)
    if line.source == NULL or line.location == NULL or line.text == NULL:
        free_line(line)
        return
    tf_lock(&log.lock)
    if log.tail == NULL:
        log.head = line
        first = True
    else:
        log.tail.next = line
    log.tail = line
    log.count += 1
    tf_unlock(&log.lock)
    if first and log.fd >= 0:
        write(log.fd, &one, 8)


def drain_log():
    cdef Line* line
    cdef Line* after
    lines = []
    tf_lock(&log.lock)
    line = log.head
    log.head = NULL
    log.tail = NULL
    log.count = 0
    tf_unlock(&log.lock)
    while line != NULL:
        after = line.next
        lines.append((line.severity, line.source.decode("utf-8", "replace"), line.location.decode("utf-8", "replace"),
                      line.text.decode("utf-8", "replace")))
        free_line(line)
        line = after
    return lines


def log_dropped():
    return tf_load64(&log.dropped)


def watch_log(int fd):
    log.fd = fd


def open_library(str path not None):
    with opening:
        return open_locked(path)


cdef str open_locked(str path):
    global bound, library_path, library_version
    cdef void* handle
    cdef const tf_ort_base* (*get_base)() noexcept nogil
    cdef const tf_ort_base* base
    cdef const void* rows = NULL
    cdef const char* lacking
    cdef unsigned int version = TF_ORT_API_VERSION
    if bound:
        if path != library_path:
            raise Internal(f"ONNX Runtime {library_version} is already loaded from another file of this process")
        return library_version
    encoded = os.fsencode(path)
    name = os.path.basename(path)
    # Official builds may upload usage events unless this is set before they start; the user's own setting stands.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    handle = dlopen(<const char*>encoded, RTLD_NOW | RTLD_LOCAL)
    if handle == NULL:
        reason = dlerror()
        raise Internal(f"can not open the ONNX Runtime library '{name}': {reason.decode('utf-8', 'replace')}")
    get_base = <const tf_ort_base* (*)() noexcept nogil>dlsym(handle, b"OrtGetApiBase")
    if get_base == NULL:
        dlclose(handle)
        raise Unsupported(
            f"'{name}' does not export OrtGetApiBase: install an onnxruntime wheel with libonnxruntime.so")
    base = get_base()
    text = (<const char*>base.GetVersionString()).decode("utf-8", "replace")
    # GetApi prints to stderr when it refuses, so ask only for what the version says it has: 1.N offers API 1..N.
    parts = text.split(".")
    minor = int(parts[1]) if len(parts) > 1 and parts[0] == "1" and parts[1].isdigit() else TF_ORT_API_VERSION
    if minor >= TF_ORT_API_VERSION:
        rows = base.GetApi(version)
    if rows == NULL:
        dlclose(handle)
        raise Unsupported(f"ONNX Runtime {text} is too old: at least 1.{TF_ORT_API_VERSION} is needed")
    lacking = tf_ort_bind(&table, rows)
    if lacking != NULL:
        raise Unsupported(f"ONNX Runtime {text} lacks the function {lacking.decode()}")
    check_table(text)
    library_path = path
    library_version = text
    bound = True
    return text


# An error that goes in must come out as it was: the cheapest proof that the slots are where they are expected.
cdef int check_table(str version) except -1:
    cdef OrtStatus* status = table.CreateStatus(3, b"slots")
    cdef bint good = status != NULL and table.GetErrorCode(status) == 3 and \
        strcmp(table.GetErrorMessage(status), b"slots") == 0
    if status != NULL:
        table.ReleaseStatus(status)
    if not good:
        raise Internal(f"the function table of ONNX Runtime {version} is not the one this server was built for")
    return 0


def init_env(bint pool=False, int intra=0, int inter=0, bint spin=False, int severity=2):
    with opening:
        init_locked(pool, intra, inter, spin, severity)
    return global_pool


cdef int init_locked(bint pool, int intra, int inter, bint spin, int severity) except -1:
    global env, global_pool
    cdef OrtThreadingOptions* threading_options = NULL
    cdef OrtEnv* made = NULL
    if not bound:
        raise Internal("the ONNX Runtime library is not open")
    if env != NULL:
        return 0
    if pool:
        ort_check(table.CreateThreadingOptions(&threading_options))
        try:
            ort_check(table.SetGlobalIntraOpNumThreads(threading_options, intra))
            ort_check(table.SetGlobalInterOpNumThreads(threading_options, inter))
            ort_check(table.SetGlobalSpinControl(threading_options, spin))
            ort_check(table.CreateEnvWithCustomLoggerAndGlobalThreadPools(
                log_line, NULL, severity, b"onnxruntime", threading_options, &made))
        finally:
            table.ReleaseThreadingOptions(threading_options)
    else:
        ort_check(table.CreateEnvWithCustomLogger(log_line, NULL, severity, b"onnxruntime", &made))
    ort_check(table.DisableTelemetryEvents(made))
    env = made
    global_pool = pool
    return 0


def providers():
    cdef char** names = NULL
    cdef int n = 0, i
    if not bound:
        raise Internal("the ONNX Runtime library is not open")
    ort_check(table.GetAvailableProviders(&names, &n))
    found = [names[i].decode("utf-8", "replace") for i in range(n)]
    ort_check(table.ReleaseAvailableProviders(names, n))
    return found


def slots():
    cdef int i
    return {tf_ort_rows[i].name.decode(): tf_ort_rows[i].slot for i in range(TF_ORT_COUNT)}
