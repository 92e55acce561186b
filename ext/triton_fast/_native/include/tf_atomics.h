/* Atomics and a processor pause, as plain inline functions that Cython can call without the GIL. */
#ifndef TF_ATOMICS_H
#define TF_ATOMICS_H
#include <stdint.h>

static inline int32_t tf_load32(const int32_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void tf_store32(int32_t *p, int32_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline int32_t tf_add32(int32_t *p, int32_t v) { return __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL); }
static inline int32_t tf_swap32(int32_t *p, int32_t v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
static inline int tf_cas32(int32_t *p, int32_t expected, int32_t wanted) {
    return __atomic_compare_exchange_n(p, &expected, wanted, 0, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
static inline int64_t tf_load64(const int64_t *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void tf_store64(int64_t *p, int64_t v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline int64_t tf_add64(int64_t *p, int64_t v) { return __atomic_add_fetch(p, v, __ATOMIC_ACQ_REL); }
static inline void *tf_load_ptr(void *const *p) { return __atomic_load_n(p, __ATOMIC_ACQUIRE); }
static inline void tf_store_ptr(void **p, void *v) { __atomic_store_n(p, v, __ATOMIC_RELEASE); }
static inline void *tf_swap_ptr(void **p, void *v) { return __atomic_exchange_n(p, v, __ATOMIC_ACQ_REL); }
static inline int tf_cas_ptr(void **p, void *expected, void *wanted) {
    return __atomic_compare_exchange_n(p, &expected, wanted, 1, __ATOMIC_ACQ_REL, __ATOMIC_ACQUIRE);
}
/* Orders a store before a later load, for two sides that each write one flag and then read the other's. */
static inline void tf_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }
static inline void tf_pause(void) {
#if defined(__x86_64__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("yield");
#endif
}
/* Spin lock for critical sections of a few instructions; never held across a call that may block. */
static inline void tf_lock(int32_t *p) {
    while (__atomic_exchange_n(p, 1, __ATOMIC_ACQUIRE))
        while (__atomic_load_n(p, __ATOMIC_RELAXED)) tf_pause();
}
static inline void tf_unlock(int32_t *p) { __atomic_store_n(p, 0, __ATOMIC_RELEASE); }
#endif
