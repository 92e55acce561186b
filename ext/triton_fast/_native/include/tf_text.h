/* Text that comes from another process: what is not UTF-8 in it becomes U+FFFD, as Python's "replace" has it. */
#ifndef TF_TEXT_H
#define TF_TEXT_H
#include <stdint.h>
#include <string.h>

/* Bytes of the character at p; if it is none, minus the bytes that one U+FFFD stands for: what could have begun one. */
static inline int tf_text_step(const uint8_t *p, size_t left) {
    uint32_t a = p[0], low = 0x80, high = 0xbf;
    int n = a < 0x80 ? 1 : a < 0xc2 ? 0 : a < 0xe0 ? 2 : a < 0xf0 ? 3 : a < 0xf5 ? 4 : 0, k;
    if (n == 1) return 1;
    if (n == 0) return -1;
    if (a == 0xe0) low = 0xa0;
    if (a == 0xed) high = 0x9f;
    if (a == 0xf0) low = 0x90;
    if (a == 0xf4) high = 0x8f;
    for (k = 1; k < n; k++) {
        if ((size_t)k >= left || p[k] < low || p[k] > high) return -k;
        low = 0x80;
        high = 0xbf;
    }
    return n;
}

/* Write p[0:n] made UTF-8 to out, which may be NULL, and return its size: n when it is UTF-8, at most 3n. */
static __attribute__((unused)) size_t tf_text_clean(const char *text, size_t n, char *out) {
    const uint8_t *p = (const uint8_t *)text, *end = p + n;
    size_t size = 0;
    uint64_t w;
    while (p < end) {
        const uint8_t *from = p;
        int step = 1;
        while (end - p >= 8 && (memcpy(&w, p, 8), !(w & UINT64_C(0x8080808080808080)))) p += 8;
        while (p < end && (step = tf_text_step(p, (size_t)(end - p))) > 0) p += step;
        if (out && p > from) memcpy(out + size, from, (size_t)(p - from));
        size += (size_t)(p - from);
        if (p < end && step < 0) {
            if (out) memcpy(out + size, "\xef\xbf\xbd", 3);
            size += 3;
            p += -step;
        }
    }
    return size;
}

/* How many of n bytes to keep, of a text with more, so that no character is cut. */
static __attribute__((unused)) size_t tf_text_cut(const char *text, size_t n) {
    size_t k = n;
    while (k && n - k < 3 && ((uint8_t)text[k] & 0xc0) == 0x80) k--;
    return ((uint8_t)text[k] & 0xc0) == 0x80 ? n : k;
}

/* The same where the n bytes are all there is, cut anywhere. */
static __attribute__((unused)) size_t tf_text_whole(const char *text, size_t n) {
    size_t k;
    for (k = 1; k <= 3 && k <= n; k++)
        if (((uint8_t)text[n - k] & 0xc0) != 0x80) return tf_text_step((const uint8_t *)text + n - k, k) < 0 ? n - k : n;
    return n;
}
#endif
