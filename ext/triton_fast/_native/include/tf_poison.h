/* Memory that a pool keeps for reuse: poisoned in a build with AddressSanitizer, which then sees a use after it was given
   back as if it had been freed. Nothing in other builds. */
#ifndef TF_POISON_H
#define TF_POISON_H
#include <stddef.h>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
static inline void tf_poison(const void *p, size_t n) { ASAN_POISON_MEMORY_REGION(p, n); }
static inline void tf_unpoison(const void *p, size_t n) { ASAN_UNPOISON_MEMORY_REGION(p, n); }
#else
static inline void tf_poison(const void *p, size_t n) { (void)p; (void)n; }
static inline void tf_unpoison(const void *p, size_t n) { (void)p; (void)n; }
#endif
#endif
