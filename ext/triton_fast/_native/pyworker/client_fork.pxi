# Part of client.pyx: a process that starts others by a copy of itself (docs/python_worker.md). What it makes is its
# sibling, a child of the server like a worker that the server starts itself. Knows nothing of regions.

cdef extern from "Python.h":
    void PyOS_BeforeFork()
    void PyOS_AfterFork_Parent()
    void PyOS_AfterFork_Child()

cdef extern from * nogil:
    """
    #include <errno.h>
    #include <sched.h>
    #include <signal.h>
    #include <sys/prctl.h>
    #include <sys/syscall.h>
    #include <unistd.h>
    /* The C library's fork makes children only. What it does for a copy with one thread is done here: the library keeps
       the thread's number at the address that the kernel clears at the thread's end, and a copy has to name its list of
       robust locks again. */
    static long tf_clone_sibling(void) {
    #if defined(PR_GET_TID_ADDRESS) && (defined(__x86_64__) || defined(__aarch64__))
        unsigned long flags = CLONE_PARENT | CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID | SIGCHLD;
        int *tid = NULL;
        void *locks = NULL;
        size_t size = 0;
        long pid;
        if (prctl(PR_GET_TID_ADDRESS, &tid, 0, 0, 0) != 0)
            return -1;
        if (tid == NULL || *tid != (int)syscall(SYS_gettid)) {
            errno = ENOSYS;     /* a library that keeps it elsewhere */
            return -1;
        }
        if (syscall(SYS_get_robust_list, 0, &locks, &size) != 0)
            size = 0;
    #if defined(__x86_64__)
        pid = syscall(SYS_clone, flags, NULL, NULL, tid, NULL);
    #else
        pid = syscall(SYS_clone, flags, NULL, NULL, NULL, tid);
    #endif
        if (pid == 0 && size != 0)
            syscall(SYS_set_robust_list, locks, size);
        return pid;
    #else
        errno = ENOSYS;
        return -1;
    #endif
    }
    """
    long tf_clone_sibling()


def fork_sibling():
    """Copy this process, which must have one thread; return 0 in the copy, else its number. See client.pyi."""
    cdef long pid
    cdef int reason = 0
    if len(os.listdir("/proc/self/task")) != 1:
        raise RuntimeError("a process with other threads can not be copied")
    PyOS_BeforeFork()
    pid = tf_clone_sibling()
    if pid == 0:
        PyOS_AfterFork_Child()
        return 0
    reason = errno
    PyOS_AfterFork_Parent()
    if pid < 0:
        raise OSError(reason, f"can not copy this process: {os.strerror(reason)}")
    return pid
