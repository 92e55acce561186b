/* The signals that a native thread leaves to others: all but those that tell a thread of its own fault. Blocked, those
 * would end the process before any handler is asked (include/tf_fault.h). */
#ifndef TF_SIGNALS_H
#define TF_SIGNALS_H
#include <pthread.h>
#include <signal.h>

static inline int tf_block_signals(void) {
    sigset_t all;
    sigfillset(&all);
    sigdelset(&all, SIGBUS);
    sigdelset(&all, SIGSEGV);
    sigdelset(&all, SIGFPE);
    sigdelset(&all, SIGILL);
    return pthread_sigmask(SIG_SETMASK, &all, NULL);
}
#endif
