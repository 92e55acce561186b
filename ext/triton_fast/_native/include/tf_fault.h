/* Pages of other processes' files that go away while they are read: a handler of SIGBUS and the mappings it knows.
 * A client may make a file smaller that this process has mapped; who then touches a page behind its new end gets the
 * signal. The handler puts zeroed memory of this process there, up to the mapping's end, and says so in a word. What
 * it does not know goes to whoever handled the signal before. For one extension only: the state below is static. */
#ifndef TF_FAULT_H
#define TF_FAULT_H
#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#define TF_FAULT_SLOTS 4096

/* start == 0: free. Written by one thread at a time (the caller's lock), read by any at any moment. A slot changes only
 * while nobody touches its mapping, so that whoever faults sees it whole. */
typedef struct {
    uintptr_t start;
    uintptr_t end;
    int32_t *broken;
} tf_fault_slot;

static tf_fault_slot tf_fault_slots[TF_FAULT_SLOTS];
static int32_t tf_fault_used; /* slots from here on were never taken */
static struct sigaction tf_fault_before;
static int64_t tf_fault_count;
static uintptr_t tf_fault_page; /* bytes of a page, less one */

/* To the handler there was before. It gets the fault as it came; the default ends the process as it always did. */
static void tf_fault_pass(int number, siginfo_t *info, void *context) {
    if (tf_fault_before.sa_flags & SA_SIGINFO) {
        tf_fault_before.sa_sigaction(number, info, context);
    } else if (tf_fault_before.sa_handler != SIG_DFL && tf_fault_before.sa_handler != SIG_IGN) {
        tf_fault_before.sa_handler(number);
    } else {
        struct sigaction plain;
        memset(&plain, 0, sizeof plain);
        plain.sa_handler = SIG_DFL;
        sigaction(number, &plain, NULL);
        if (info->si_code <= 0) raise(number); /* sent, not faulted: it would not come again by itself */
    }
}

/* Async-signal-safe: atomics and system calls only; errno is the interrupted code's. */
static void tf_fault_handle(int number, siginfo_t *info, void *context) {
    uintptr_t at = (uintptr_t)info->si_addr;
    int32_t i, n = __atomic_load_n(&tf_fault_used, __ATOMIC_ACQUIRE);
    int saved = errno;
    for (i = 0; info->si_code > 0 && i < n; i++) {
        tf_fault_slot *s = &tf_fault_slots[i];
        uintptr_t start = __atomic_load_n(&s->start, __ATOMIC_ACQUIRE);
        uintptr_t end = __atomic_load_n(&s->end, __ATOMIC_ACQUIRE);
        int32_t *broken = __atomic_load_n(&s->broken, __ATOMIC_ACQUIRE);
        uintptr_t page = at & ~tf_fault_page;
        if (start == 0 || at < start || at >= end) continue;
        /* Of another mapping's slot, which may be changing hands right now, all three must be of one mapping. */
        if (__atomic_load_n(&s->start, __ATOMIC_ACQUIRE) != start) continue;
        /* All behind this page lies behind the file's end too, unless it has grown again: then it is lost, as is the
         * mapping, which nobody uses any more. */
        if (syscall(SYS_mmap, page, end - page, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0L)
            == -1)
            break;
        __atomic_store_n(broken, 1, __ATOMIC_RELEASE);
        __atomic_add_fetch(&tf_fault_count, 1, __ATOMIC_RELAXED);
        errno = saved;
        return;
    }
    errno = saved;
    tf_fault_pass(number, info, context);
}

/* Make sure that the handler is in place: somebody may have taken it away since. 0, or -1. Hold the lock. */
static int tf_fault_install(void) {
    struct sigaction now, ours;
    if (sigaction(SIGBUS, NULL, &now) != 0) return -1;
    if (now.sa_flags & SA_SIGINFO && now.sa_sigaction == tf_fault_handle) return 0;
    tf_fault_before = now;
    tf_fault_page = (uintptr_t)sysconf(_SC_PAGESIZE) - 1;
    memset(&ours, 0, sizeof ours);
    ours.sa_sigaction = tf_fault_handle;
    sigemptyset(&ours.sa_mask);
    ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_RESTART;
    return sigaction(SIGBUS, &ours, NULL);
}

/* Guard [start, start + n); n is a multiple of the page size. Returns the slot, -1 when all are taken. Hold the lock. */
static int32_t tf_fault_guard(void *start, size_t n, int32_t *broken) {
    int32_t i;
    for (i = 0; i < TF_FAULT_SLOTS; i++) {
        tf_fault_slot *s = &tf_fault_slots[i];
        if (s->start != 0) continue;
        __atomic_store_n(&s->end, (uintptr_t)start + n, __ATOMIC_RELEASE);
        __atomic_store_n(&s->broken, broken, __ATOMIC_RELEASE);
        __atomic_store_n(&s->start, (uintptr_t)start, __ATOMIC_RELEASE);
        if (i >= tf_fault_used) __atomic_store_n(&tf_fault_used, i + 1, __ATOMIC_RELEASE);
        return i;
    }
    return -1;
}

/* Nobody touches the mapping any more; it is still mapped. Hold the lock. */
static void tf_fault_forget(int32_t slot) { __atomic_store_n(&tf_fault_slots[slot].start, 0, __ATOMIC_RELEASE); }

static int64_t tf_fault_seen(void) { return __atomic_load_n(&tf_fault_count, __ATOMIC_RELAXED); }
#endif
