/* An error that native code hands to its caller: a Triton code and a finished text. No interpreter needed. */
#ifndef TF_ERROR_H
#define TF_ERROR_H
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>

#include "tf_text.h"

#define TF_ERROR_TEXT 2048

typedef struct {
    int32_t code; /* TF_* of core/native.pxd, or TF_OK (-1) */
    uint32_t len;
    char text[TF_ERROR_TEXT];
} tf_error;

/* Fill e and return -1, so that a caller may write `return tf_fail(...)`. Texts past the room are cut. */
static int tf_fail(tf_error *e, int32_t code, const char *format, ...) __attribute__((format(printf, 3, 4), unused, cold));
static int tf_fail(tf_error *e, int32_t code, const char *format, ...) {
    va_list args;
    int n;
    va_start(args, format);
    n = vsnprintf(e->text, TF_ERROR_TEXT, format, args);
    va_end(args);
    e->code = code;
    e->len = n < 0 ? 0 : n >= TF_ERROR_TEXT ? (uint32_t)tf_text_whole(e->text, TF_ERROR_TEXT - 1) : (uint32_t)n;
    return -1;
}
#endif
