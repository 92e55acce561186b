# Threads, mutexes and condition variables of POSIX: declarations only, those used here.
from posix.time cimport CLOCK_MONOTONIC, timespec


cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef struct pthread_condattr_t:
        pass
    int pthread_create(pthread_t* t, void* attr, void* (*run)(void*) noexcept nogil, void* arg)
    int pthread_detach(pthread_t t)
    int pthread_join(pthread_t t, void** result)
    int pthread_setname_np(pthread_t t, const char* name)
    pthread_t pthread_self()
    bint pthread_equal(pthread_t a, pthread_t b)
    int pthread_mutex_init(pthread_mutex_t* m, void* attr)
    int pthread_mutex_destroy(pthread_mutex_t* m)
    int pthread_mutex_lock(pthread_mutex_t* m)
    int pthread_mutex_unlock(pthread_mutex_t* m)
    int pthread_cond_init(pthread_cond_t* c, pthread_condattr_t* attr)
    int pthread_cond_destroy(pthread_cond_t* c)
    int pthread_cond_wait(pthread_cond_t* c, pthread_mutex_t* m)
    int pthread_cond_timedwait(pthread_cond_t* c, pthread_mutex_t* m, const timespec* until)
    int pthread_cond_signal(pthread_cond_t* c)
    int pthread_cond_broadcast(pthread_cond_t* c)
    int pthread_condattr_init(pthread_condattr_t* a)
    int pthread_condattr_setclock(pthread_condattr_t* a, int clock)
    int pthread_condattr_destroy(pthread_condattr_t* a)


# A condition variable whose timed waits are in now_ns() time.
cdef inline void cond_init_monotonic(pthread_cond_t* c) noexcept nogil:
    cdef pthread_condattr_t attr
    pthread_condattr_init(&attr)
    pthread_condattr_setclock(&attr, CLOCK_MONOTONIC)
    pthread_cond_init(c, &attr)
    pthread_condattr_destroy(&attr)
