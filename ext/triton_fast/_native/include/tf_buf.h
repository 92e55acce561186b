/* A growable byte buffer for encoders. A failed growth sets `failed`, and later writes are ignored: check once, last. */
#ifndef TF_BUF_H
#define TF_BUF_H
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef struct {
    char *data;
    size_t len;
    size_t cap;
    int failed;
} tf_buf;

/* Make room for `more` bytes after len; 0, or -1 when memory ran out. */
static inline int tf_buf_reserve(tf_buf *b, size_t more) {
    if (__builtin_expect(more <= b->cap - b->len, 1)) return 0;
    size_t cap = b->cap ? b->cap : 256;
    if (more > SIZE_MAX / 4 - b->len) { b->failed = 1; return -1; }
    while (cap - b->len < more) cap *= 2;
    char *data = (char *)realloc(b->data, cap);
    if (!data) { b->failed = 1; return -1; }
    b->data = data;
    b->cap = cap;
    return 0;
}
static inline void tf_buf_put(tf_buf *b, const void *src, size_t n) {
    if (tf_buf_reserve(b, n)) return;
    memcpy(b->data + b->len, src, n);
    b->len += n;
}
static inline void tf_buf_char(tf_buf *b, char c) {
    if (tf_buf_reserve(b, 1)) return;
    b->data[b->len++] = c;
}
static inline void tf_buf_free(tf_buf *b) {
    free(b->data);
    b->data = 0;
    b->len = b->cap = 0;
    b->failed = 0;
}
#endif
