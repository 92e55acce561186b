# Memory of GPUs that clients register by its IPC handle. It is listed beside the other regions (core/regions.pxd) and
# lent like them; this file only opens and closes it. A handle is a secret of its client's: it is in no text.
from libc.stdint cimport uint8_t
from libc.stdlib cimport free, malloc

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.pthread cimport (
    pthread_cond_broadcast, pthread_cond_init, pthread_cond_t, pthread_cond_wait, pthread_create, pthread_detach,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_t, pthread_mutex_unlock, pthread_self, pthread_setname_np,
    pthread_t,
)
from triton_fast._native.core.regions cimport SharedRegions, region_take
from triton_fast._native.cuda.driver cimport cuda_current, cuda_enter, cuda_error, cuda_restore, tf_cu_handle
from triton_fast._native.cuda.ipc cimport IPC_BYTES, ipc_close, ipc_open

from triton_fast.errors import InvalidArg

cdef extern from "tf_signals.h" nogil:
    int tf_block_signals()


# Memory that nothing uses any more. The driver may wait for the GPU before it unmaps it, and the last to let go is
# mostly the thread of the event loop: a thread that is there while there are any closes them.
cdef struct Leaving:
    Leaving* next
    void* data
    int device

cdef pthread_mutex_t lock   # of the two below
cdef pthread_cond_t closed
cdef Leaving* leaving = NULL
cdef bint closing = False   # somebody closes them

pthread_mutex_init(&lock, NULL)
pthread_cond_init(&closed, NULL)


# A client that has ended, or a context that is broken: there is nobody to tell.
cdef void close_now(int device, void* data) noexcept nogil:
    cdef tf_cu_handle before = cuda_current()
    cdef tf_error e
    ipc_close(device, data, &e)
    cuda_restore(before)


cdef void close_all() noexcept nogil:
    global leaving, closing
    cdef Leaving* one
    while True:
        pthread_mutex_lock(&lock)
        one = leaving
        if one == NULL:
            closing = False
            pthread_cond_broadcast(&closed)
            pthread_mutex_unlock(&lock)
            return
        leaving = one.next
        pthread_mutex_unlock(&lock)
        close_now(one.device, one.data)
        free(one)


cdef void* run_closing(void* arg) noexcept nogil:
    tf_block_signals()
    pthread_setname_np(pthread_self(), b"cuda regions")
    close_all()
    return NULL


cdef void close(Block* block) noexcept nogil:
    global leaving, closing
    cdef Leaving* one = <Leaving*>malloc(sizeof(Leaving))
    cdef pthread_t thread
    cdef bint first
    if one == NULL:
        close_now(block.device, block.data)
        return
    one.data = block.data
    one.device = block.device
    pthread_mutex_lock(&lock)
    one.next = leaving
    leaving = one
    first = not closing
    closing = True
    pthread_mutex_unlock(&lock)
    if not first:
        return
    if pthread_create(&thread, NULL, run_closing, NULL) == 0:
        pthread_detach(thread)
    else:
        close_all()


def settle():
    with nogil:
        pthread_mutex_lock(&lock)
        while closing:
            pthread_cond_wait(&closed, &lock)
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
    if byte_size > whole:
        with nogil:
            ipc_close(device, data, &e)
        raise InvalidArg(f"failed to register shared memory region '{name}': invalid args")
    try:
        region_take(regions, name, data, byte_size, device, close)
    except BaseException:
        settle()        # the client may free the memory as soon as it is told
        raise
    return ""
