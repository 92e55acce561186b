/* A stand-in for libcuda.so.1, for machines without a GPU, which is every machine that runs the tests: compiled by them
 * and given to triton_fast by path or LD_LIBRARY_PATH. It has the driver API's functions that triton_fast calls, and
 * mistakes show in it: device memory cannot be followed by the CPU, streams do nothing until somebody waits (so that
 * what is read without a wait is stale), copies are checked against allocations, any call can be made to fail.
 *
 * Device memory is a memfd mapped twice: PROT_NONE at the address that callers get, and readable for copies here. Other
 * processes open it through /proc (IPC). Environment, read by cuInit: FAKE_CUDA_DEVICES (2), FAKE_CUDA_MEMORY (bytes
 * of each device, 1 GiB), FAKE_CUDA_PINNED (bytes, no limit), FAKE_CUDA_CAPABILITY (9.0), FAKE_CUDA_FAIL
 * ("cuMemAlloc_v2:3:2,...": the third call from now on returns 2). The fake_* functions do the same in a process. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#define PUBLIC __attribute__((visibility("default")))
#define MAX_DEVICES 8
#define MAX_FAILS 16
#define PAGE 4096

typedef uint64_t ptr_t;

enum { OK = 0, INVALID_VALUE = 1, OUT_OF_MEMORY = 2, NOT_INITIALIZED = 3, NO_DEVICE = 100, INVALID_DEVICE = 101,
       INVALID_CONTEXT = 201, ALREADY_MAPPED = 208, INVALID_HANDLE = 400, NOT_READY = 600, PEER_ENABLED = 704,
       CAPTURE_INVALID = 901 };

typedef struct context { int device; int retained; int peers; } context;

/* An allocation of a device, ours or one that another process made; or pinned host memory (device -1). */
typedef struct memory {
    struct memory *next;
    char *at;   /* what callers know */
    char *data; /* what copies use */
    size_t n, mapped;
    int fd, device, foreign, opens;
} memory;

typedef struct stream stream;
typedef struct event { stream *on; uint64_t mark; int flags, recorded; double ms; } event;
typedef enum { COPY, FILL, CALL, WAIT, MARK } kind;
typedef struct op {
    struct op *next;
    kind kind;
    char *to;
    const char *from;
    size_t n;
    int value;
    void (*call)(void *);
    void *arg;
    stream *on; /* WAIT: for this stream to have done `mark` */
    event *event;
    uint64_t mark;
    char *staged; /* a copy of pageable memory, ours to free */
} op;
struct stream { stream *next; int device; uint64_t queued, done; op *head, *tail; struct graph *capture; };
typedef struct graph { op *head, *tail; } graph;

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int started, n_devices, last_priority = 99;
static size_t device_bytes, pinned_limit, used[MAX_DEVICES], pinned;
static int major_ = 9, minor_;
static context contexts[MAX_DEVICES];
static memory *memories;
static stream *streams, defaults[MAX_DEVICES];
static __thread context *current;
static struct { char name[48]; long at; int code; } fails[MAX_FAILS];
static struct { const char *name; long n, thread; } calls[128];
static long live_streams, live_events, live_graphs;
static void (*watcher)(void);
static char watched[48];

PUBLIC void fake_fail(const char *name, long nth, int code);

/* ---- calls: counted, and made to fail */

static int entered(const char *name) {
    int i;
    for (i = 0; i < 127 && calls[i].name && strcmp(calls[i].name, name); i++);
    calls[i].name = name;
    calls[i].n++;
    calls[i].thread = gettid();
    for (i = 0; i < MAX_FAILS; i++)
        if (fails[i].at && !strcmp(fails[i].name, name) && --fails[i].at == 0) return fails[i].code;
    return OK;
}

#define ENTER_RAW                                                                                                      \
    int failed;                                                                                                        \
    if (watcher && !strcmp(watched, __func__)) watcher();                                                              \
    pthread_mutex_lock(&lock);                                                                                         \
    failed = entered(__func__);                                                                                        \
    if (failed) return leave(failed)
#define ENTER                                                                                                          \
    ENTER_RAW;                                                                                                         \
    if (!started) return leave(NOT_INITIALIZED)
#define ENTER_CONTEXT                                                                                                  \
    ENTER;                                                                                                             \
    if (!current || !current->retained) return leave(INVALID_CONTEXT)

static int leave(int code) {
    pthread_mutex_unlock(&lock);
    return code;
}

PUBLIC void fake_fail(const char *name, long nth, int code) {
    int i;
    for (i = 0; i < MAX_FAILS; i++)
        if (!fails[i].at) {
            snprintf(fails[i].name, sizeof fails[i].name, "%s", name);
            fails[i].at = nth;
            fails[i].code = code;
            return;
        }
    abort();
}

PUBLIC void fake_fail_clear(void) { memset(fails, 0, sizeof fails); }

/* Have `call` called at the begin of each call of a function, on its thread; others go on meanwhile. NULL: no more. */
PUBLIC void fake_watch(const char *name, void (*call)(void)) {
    snprintf(watched, sizeof watched, "%s", name ? name : "");
    watcher = call;
}

PUBLIC void fake_limit(size_t bytes, size_t pinned_bytes) {
    device_bytes = bytes;
    pinned_limit = pinned_bytes;
}

PUBLIC long fake_thread(const char *name) {
    for (int i = 0; i < 128 && calls[i].name; i++)
        if (!strcmp(calls[i].name, name)) return calls[i].thread;
    return 0;
}

PUBLIC long fake_calls(const char *name) {
    for (int i = 0; i < 128 && calls[i].name; i++)
        if (!strcmp(calls[i].name, name)) return calls[i].n;
    return 0;
}

/* What is held: "device" and "pinned" bytes, "allocations", "mappings", "streams", "events", "graphs", "contexts". */
PUBLIC long fake_held(const char *what) {
    long n = 0;
    memory *m;
    if (!strcmp(what, "streams")) return live_streams;
    if (!strcmp(what, "events")) return live_events;
    if (!strcmp(what, "graphs")) return live_graphs;
    if (!strcmp(what, "pinned")) return (long)pinned;
    pthread_mutex_lock(&lock);
    if (!strcmp(what, "device")) for (int i = 0; i < MAX_DEVICES; i++) n += (long)used[i];
    if (!strcmp(what, "contexts")) for (int i = 0; i < MAX_DEVICES; i++) n += contexts[i].retained;
    for (m = memories; m; m = m->next) {
        if (!strcmp(what, "allocations")) n += !m->foreign;
        if (!strcmp(what, "mappings")) n += m->foreign ? m->opens : 0;
    }
    pthread_mutex_unlock(&lock);
    return n;
}

/* ---- memory */

static memory *find(ptr_t p, size_t n, int wanted_pinned) {
    for (memory *m = memories; m; m = m->next) {
        char *at = (char *)(uintptr_t)p;
        if ((m->device < 0) == wanted_pinned && at >= m->at && at < m->at + m->n && n <= (size_t)(m->at + m->n - at))
            return m;
    }
    return NULL;
}

static char *device_data(ptr_t p, size_t n) {
    memory *m = find(p, n, 0);
    return m ? m->data + ((char *)(uintptr_t)p - m->at) : NULL;
}

/* Where a kernel of a test finds device memory; NULL where there is none. */
PUBLIC void *fake_data(ptr_t p) {
    char *data;
    pthread_mutex_lock(&lock);
    data = device_data(p, 1);
    pthread_mutex_unlock(&lock);
    return data;
}

static memory *map(int fd, size_t n, int device, int foreign) {
    memory *m = calloc(1, sizeof *m);
    m->mapped = (n + PAGE - 1) / PAGE * PAGE;
    m->at = mmap(NULL, m->mapped, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    m->data = mmap(NULL, m->mapped, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (m->at == MAP_FAILED || m->data == MAP_FAILED) {
        free(m);
        return NULL;
    }
    m->n = n;
    m->fd = fd;
    m->device = device;
    m->foreign = foreign;
    m->next = memories;
    memories = m;
    return m;
}

static void unmap(memory *m) {
    memory **at = &memories;
    while (*at != m) at = &(*at)->next;
    *at = m->next;
    munmap(m->at, m->mapped);
    if (m->data != m->at) munmap(m->data, m->mapped);
    if (m->fd >= 0) close(m->fd);
    free(m);
}

static void finish_all(void);

PUBLIC int cuMemAlloc_v2(ptr_t *out, size_t n) {
    memory *m;
    int fd;
    ENTER_CONTEXT;
    if (!n) return leave(INVALID_VALUE);
    if (n > device_bytes - used[current->device] || used[current->device] > device_bytes) return leave(OUT_OF_MEMORY);
    fd = memfd_create("fake_cuda", MFD_CLOEXEC);
    if (fd < 0 || ftruncate(fd, (off_t)((n + PAGE - 1) / PAGE * PAGE))) abort();
    m = map(fd, n, current->device, 0);
    if (!m) return leave(OUT_OF_MEMORY);
    used[current->device] += n;
    *out = (ptr_t)(uintptr_t)m->at;
    return leave(OK);
}

PUBLIC int cuMemFree_v2(ptr_t p) {
    memory *m;
    ENTER_CONTEXT;
    finish_all();
    m = find(p, 1, 0);
    if (!m || m->foreign || m->at != (char *)(uintptr_t)p) return leave(INVALID_VALUE);
    used[m->device] -= m->n;
    unmap(m);
    return leave(OK);
}

PUBLIC int cuMemGetInfo_v2(size_t *left, size_t *total) {
    ENTER_CONTEXT;
    *total = device_bytes;
    *left = used[current->device] > device_bytes ? 0 : device_bytes - used[current->device];
    return leave(OK);
}

PUBLIC int cuMemGetAddressRange_v2(ptr_t *base, size_t *n, ptr_t p) {
    memory *m;
    ENTER_CONTEXT;
    m = find(p, 1, 0);
    if (!m) return leave(INVALID_VALUE);
    *base = (ptr_t)(uintptr_t)m->at;
    *n = m->n;
    return leave(OK);
}

PUBLIC int cuMemHostAlloc(void **out, size_t n, unsigned flags) {
    memory *m;
    char *data;
    ENTER_CONTEXT;
    if (pinned_limit && n > pinned_limit - pinned) return leave(OUT_OF_MEMORY);
    data = mmap(NULL, (n + PAGE - 1) / PAGE * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (data == MAP_FAILED) return leave(OUT_OF_MEMORY);
    m = calloc(1, sizeof *m);
    m->at = m->data = data;
    m->n = n;
    m->mapped = (n + PAGE - 1) / PAGE * PAGE;
    m->fd = m->device = -1;
    m->next = memories;
    memories = m;
    pinned += n;
    *out = data;
    return leave(OK);
}

PUBLIC int cuMemFreeHost(void *p) {
    memory *m;
    ENTER_CONTEXT;
    finish_all();
    m = find((ptr_t)(uintptr_t)p, 1, 1);
    if (!m || m->at != p) return leave(INVALID_VALUE);
    pinned -= m->n;
    unmap(m);
    return leave(OK);
}

PUBLIC int cuPointerGetAttribute(void *out, int attribute, ptr_t p) {
    memory *m;
    ENTER;
    m = find(p, 1, 0);
    if (!m) m = find(p, 1, 1);
    if (!m || (attribute != 2 && attribute != 9 && attribute != 11 && attribute != 12)) return leave(INVALID_VALUE);
    if (attribute == 11) *(ptr_t *)out = (ptr_t)(uintptr_t)m->at;
    else if (attribute == 12) *(size_t *)out = m->n;
    else *(int *)out = attribute == 2 ? (m->device < 0 ? 1 : 2) : (m->device < 0 ? 0 : m->device);
    return leave(OK);
}

#include "streams.h"

/* ---- other processes' memory */

typedef struct { unsigned char bytes[64]; } ipc;
typedef struct { char magic[8]; int pid, fd, device; size_t n; } named;

PUBLIC int cuIpcGetMemHandle(ipc *out, ptr_t p) {
    named name = {"fakeipc", getpid(), 0, 0, 0};
    memory *m;
    ENTER_CONTEXT;
    m = find(p, 1, 0);
    if (!m || m->foreign) return leave(INVALID_VALUE);
    name.fd = m->fd;
    name.device = m->device;
    name.n = m->n;
    memset(out, 0, sizeof *out);
    memcpy(out, &name, sizeof name);
    return leave(OK);
}

PUBLIC int cuIpcOpenMemHandle_v2(ptr_t *out, ipc handle, unsigned flags) {
    char path[64];
    struct stat st, other;
    named name;
    memory *m;
    int fd;
    ENTER_CONTEXT;
    memcpy(&name, &handle, sizeof name);
    if (memcmp(name.magic, "fakeipc", 8)) return leave(INVALID_VALUE);
    if (name.pid == getpid()) return leave(INVALID_CONTEXT);
    snprintf(path, sizeof path, "/proc/%d/fd/%d", name.pid, name.fd);
    fd = open(path, O_RDWR | O_CLOEXEC);
    if (fd < 0 || fstat(fd, &st)) return leave(INVALID_VALUE);
    for (m = memories; m; m = m->next)
        if (m->foreign && !fstat(m->fd, &other) && other.st_ino == st.st_ino && other.st_dev == st.st_dev) {
            close(fd);
            m->opens++;
            *out = (ptr_t)(uintptr_t)m->at;
            return leave(OK);
        }
    if (name.device != current->device || (size_t)st.st_size < name.n || !(m = map(fd, name.n, name.device, 1))) {
        close(fd);
        return leave(INVALID_VALUE);
    }
    m->opens = 1;
    *out = (ptr_t)(uintptr_t)m->at;
    return leave(OK);
}

PUBLIC int cuIpcCloseMemHandle(ptr_t p) {
    memory *m;
    ENTER_CONTEXT;
    m = find(p, 1, 0);
    if (!m || !m->foreign || m->at != (char *)(uintptr_t)p) return leave(INVALID_VALUE);
    finish_all();
    if (--m->opens == 0) unmap(m);
    return leave(OK);
}

/* ---- devices and contexts */

PUBLIC int cuInit(unsigned flags) {
    const char *text, *next;
    char name[48];
    long nth;
    int code;
    pthread_mutex_lock(&lock);
    text = getenv("FAKE_CUDA_DEVICES");
    n_devices = text ? atoi(text) : 2;
    if (n_devices > MAX_DEVICES) n_devices = MAX_DEVICES;
    if (!started) {
        text = getenv("FAKE_CUDA_MEMORY");
        device_bytes = text ? strtoull(text, NULL, 10) : (size_t)1 << 30;
        text = getenv("FAKE_CUDA_PINNED");
        pinned_limit = text ? strtoull(text, NULL, 10) : 0;
        text = getenv("FAKE_CUDA_CAPABILITY");
        if (text) sscanf(text, "%d.%d", &major_, &minor_);
        for (text = getenv("FAKE_CUDA_FAIL"); text && *text; text = next ? next + 1 : NULL) {
            next = strchr(text, ',');
            if (sscanf(text, "%47[^:]:%ld:%d", name, &nth, &code) == 3) fake_fail(name, nth, code);
        }
        for (int i = 0; i < MAX_DEVICES; i++) defaults[i].device = contexts[i].device = i;
    }
    started = 1;
    code = entered("cuInit");
    return leave(code ? code : n_devices ? OK : NO_DEVICE);
}

PUBLIC int cuDriverGetVersion(int *out) {
    ENTER_RAW;
    *out = 13000;
    return leave(OK);
}

PUBLIC int cuDeviceGetCount(int *out) {
    ENTER;
    *out = n_devices;
    return leave(OK);
}

#define DEVICE(i) if ((i) < 0 || (i) >= n_devices) return leave(INVALID_DEVICE)

PUBLIC int cuDeviceGet(int *out, int ordinal) {
    ENTER;
    DEVICE(ordinal);
    *out = ordinal;
    return leave(OK);
}

PUBLIC int cuDeviceGetName(char *out, int room, int device) {
    ENTER;
    DEVICE(device);
    snprintf(out, (size_t)room, "Stand-in GPU %d", device);
    return leave(OK);
}

PUBLIC int cuDeviceGetUuid(unsigned char *out, int device) {
    ENTER;
    DEVICE(device);
    memset(out, 0xab, 16);
    out[15] = (unsigned char)device;
    return leave(OK);
}

PUBLIC int cuDeviceTotalMem_v2(size_t *out, int device) {
    ENTER;
    DEVICE(device);
    *out = device_bytes;
    return leave(OK);
}

PUBLIC int cuDeviceGetAttribute(int *out, int attribute, int device) {
    ENTER;
    DEVICE(device);
    *out = attribute == 75 ? major_ : attribute == 76 ? minor_ : 0;
    return leave(OK);
}

PUBLIC int cuDeviceCanAccessPeer(int *out, int device, int peer) {
    ENTER;
    DEVICE(device);
    DEVICE(peer);
    *out = device != peer;
    return leave(OK);
}

PUBLIC int cuDevicePrimaryCtxRetain(context **out, int device) {
    ENTER;
    DEVICE(device);
    contexts[device].retained++;
    *out = &contexts[device];
    return leave(OK);
}

PUBLIC int cuDevicePrimaryCtxRelease_v2(int device) {
    ENTER;
    DEVICE(device);
    if (!contexts[device].retained) return leave(INVALID_CONTEXT);
    if (--contexts[device].retained == 0) contexts[device].peers = 0;
    return leave(OK);
}

PUBLIC int cuCtxSetCurrent(context *c) {
    ENTER;
    current = c;
    return leave(OK);
}

PUBLIC int cuCtxGetCurrent(context **out) {
    ENTER;
    *out = current;
    return leave(OK);
}

PUBLIC int cuCtxEnablePeerAccess(context *peer, unsigned flags) {
    ENTER_CONTEXT;
    if (current->peers & 1 << peer->device) return leave(PEER_ENABLED);
    current->peers |= 1 << peer->device;
    return leave(OK);
}

/* ---- errors */

static const struct { int code; const char *name, *text; } errors[] = {
    {OK, "CUDA_SUCCESS", "no error"},
    {INVALID_VALUE, "CUDA_ERROR_INVALID_VALUE", "invalid argument"},
    {OUT_OF_MEMORY, "CUDA_ERROR_OUT_OF_MEMORY", "out of memory"},
    {NOT_INITIALIZED, "CUDA_ERROR_NOT_INITIALIZED", "initialization error"},
    {NO_DEVICE, "CUDA_ERROR_NO_DEVICE", "no CUDA-capable device is detected"},
    {INVALID_DEVICE, "CUDA_ERROR_INVALID_DEVICE", "invalid device ordinal"},
    {INVALID_CONTEXT, "CUDA_ERROR_INVALID_CONTEXT", "invalid device context"},
    {INVALID_HANDLE, "CUDA_ERROR_INVALID_HANDLE", "invalid resource handle"},
    {NOT_READY, "CUDA_ERROR_NOT_READY", "device not ready"},
    {700, "CUDA_ERROR_ILLEGAL_ADDRESS", "an illegal memory access was encountered"},
    {803, "CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "system has unsupported display driver / cuda driver combination"},
    {PEER_ENABLED, "CUDA_ERROR_PEER_ACCESS_ALREADY_ENABLED", "peer access is already enabled"},
    {CAPTURE_INVALID, "CUDA_ERROR_STREAM_CAPTURE_INVALIDATED", "operation failed due to a previous error during capture"},
};

static int told(int code, const char **out, int is_name) {
    *out = NULL;
    for (size_t i = 0; i < sizeof errors / sizeof *errors; i++)
        if (errors[i].code == code) {
            *out = is_name ? errors[i].name : errors[i].text;
            return OK;
        }
    return INVALID_VALUE;
}

PUBLIC int cuGetErrorName(int code, const char **out) { return told(code, out, 1); }
PUBLIC int cuGetErrorString(int code, const char **out) { return told(code, out, 0); }
