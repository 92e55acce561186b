# Memory of GPUs that clients register by its IPC handle. It is listed beside the other regions (core/regions.pxd) and
# lent like them; this file only opens and closes it. A handle is a secret of its client's: it is in no text.
from libc.stdint cimport uint8_t, uint32_t

from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.pthread cimport (
    pthread_cond_broadcast, pthread_cond_init, pthread_cond_t, pthread_cond_wait, pthread_create, pthread_detach,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, pthread_self, pthread_setname_np,
    pthread_t,
)
from triton_fast._native.core.regions cimport Region, SharedRegions, region_closed, region_closing, region_drop, region_take
from triton_fast._native.cuda.driver cimport cuda_current, cuda_enter, cuda_error, cuda_restore, tf_cu_handle
from triton_fast._native.cuda.ipc cimport IPC_BYTES, ipc_close, ipc_open

from triton_fast.errors import InvalidArg

cdef extern from "tf_signals.h" nogil:
    int tf_block_signals()


# Regions that nothing uses any more. The driver may wait for the GPU before it unmaps one, and the last to let go is
# mostly the thread of the event loop: a thread that is there while there are any closes them, or who waits for one.
cdef pthread_mutex_t lock   # of all below, and of `closed` of regions
cdef pthread_cond_t one_closed
cdef Region* leaving = NULL
cdef int n_open = 0         # those of them that are not closed yet
cdef bint closing = False   # there is the thread

pthread_mutex_init(&lock, NULL)
pthread_cond_init(&one_closed, NULL)


# What fails has nobody to be told to: a client that has ended, or a context that is broken.
cdef void close_now(Region* region) noexcept nogil:
    global n_open
    cdef tf_cu_handle before = cuda_current()
    cdef tf_error e
    ipc_close(region.device, region.data, &e)
    cuda_restore(before)
    region_closed(region)
    pthread_mutex_lock(&lock)
    region.closed = True
    n_open -= 1
    pthread_cond_broadcast(&one_closed)
    pthread_mutex_unlock(&lock)
    region_drop(region)


cdef void close_all() noexcept nogil:
    global leaving, closing
    cdef Region* one
    while True:
        pthread_mutex_lock(&lock)
        one = leaving
        if one == NULL:
            closing = False
            pthread_mutex_unlock(&lock)
            return
        leaving = one.later
        pthread_mutex_unlock(&lock)
        close_now(one)


cdef void* run_closing(void* arg) noexcept nogil:
    tf_block_signals()
    pthread_setname_np(pthread_self(), b"cuda regions")
    close_all()
    return NULL


cdef void close(Region* region) noexcept nogil:
    global leaving, closing, n_open
    cdef pthread_t thread
    cdef bint first
    pthread_mutex_lock(&lock)
    region.later = leaving
    leaving = region
    n_open += 1
    first = not closing
    closing = True
    pthread_mutex_unlock(&lock)
    if not first:
        return
    if pthread_create(&thread, NULL, run_closing, NULL) == 0:
        pthread_detach(thread)
    else:
        close_all()


# Return when it is closed: here, unless somebody is at it.
cdef void finish(Region* region) noexcept nogil:
    global leaving
    cdef Region** link = &leaving
    pthread_mutex_lock(&lock)
    while link[0] != NULL and link[0] != region:
        link = &link[0].later
    if link[0] == region:
        link[0] = region.later
        pthread_mutex_unlock(&lock)
        close_now(region)
        return
    while not region.closed:
        pthread_cond_wait(&one_closed, &lock)
    pthread_mutex_unlock(&lock)


def settle(SharedRegions regions=None, str name=""):
    cdef bytes encoded = name.encode("utf-8", "surrogateescape")
    cdef const char* text = encoded
    cdef uint32_t n = <uint32_t>len(encoded)
    cdef Region* region
    if regions is not None:
        with nogil:
            while (region := region_closing(regions, text, n)) != NULL:
                finish(region)
                region_drop(region)
        return
    with nogil:
        pthread_mutex_lock(&lock)
        while n_open:
            pthread_cond_wait(&one_closed, &lock)
        pthread_mutex_unlock(&lock)


def register(SharedRegions regions not None, str name not None, bytes handle not None, int device, size_t byte_size):
    cdef const uint8_t* p = handle
    cdef void* data = NULL
    cdef size_t whole = 0
    cdef tf_error e
    cdef int status
    if len(handle) != IPC_BYTES:
        raise InvalidArg(f"a CUDA IPC handle has {IPC_BYTES} bytes, got {len(handle)}")
    regions.check_free(name)
    with nogil:
        status = cuda_enter(device, &e)
    if status != 0:
        raise cuda_error(&e)
    with nogil:
        status = ipc_open(device, p, &data, &whole, &e)
    if status != 0:
        return e.text[:e.len].decode("utf-8", "replace")
    try:
        if byte_size > whole:
            raise InvalidArg(f"failed to register shared memory region '{name}': invalid args")
        region_take(regions, name, data, byte_size, device, close)
    except BaseException:
        with nogil:
            ipc_close(device, data, &e)
        raise
    return ""
