/* JSON scanner: whitespace, strings, literals, numbers, skipping of whole values; errors in rapidjson's words.
 * No recursion, no allocation, no document tree. Knows nothing of inference requests.
 *
 * Bounds: the text either ends in '}' (`end` is one past it), or was copied and ends in a NUL that `end` points to.
 * Every loop but the one inside strings stops at both, and only a '}' can move p to `end`, so that p is compared with
 * `end` after a '}' and nowhere else. Strings are bounded by `lim`, the end of the readable text.
 */
#ifndef TF_JSON_H
#define TF_JSON_H
#include <stdint.h>
#include <string.h>

enum {
    TFJ_OK = 0,
    TFJ_EMPTY,
    TFJ_ROOT,
    TFJ_VALUE,
    TFJ_NAME,
    TFJ_COLON,
    TFJ_CURLY,
    TFJ_SQUARE,
    TFJ_HEX,
    TFJ_SURROGATE,
    TFJ_ESCAPE,
    TFJ_QUOTE,
    TFJ_TOO_BIG,
    TFJ_FRACTION,
    TFJ_EXPONENT,
    TFJ_DEEP, /* not a syntax error: deeper than the caller allows */
    TFJ_REASONS
};

struct tf_json {
    const char *base; /* offset 0 of the error texts */
    const char *p;
    const char *end;
    const char *lim;
    int reason;
    size_t at;
};

/* A string between its quotes, as it stands in the text. */
struct tf_json_str {
    const char *ptr;
    uint32_t len;
    uint32_t escaped;
};

static const char *tf_json_reason(int reason) {
    static const char *const text[TFJ_REASONS] = {
        "",
        "The document is empty.",
        "The document root must not be followed by other values.",
        "Invalid value.",
        "Missing a name for object member.",
        "Missing a colon after a name of object member.",
        "Missing a comma or '}' after an object member.",
        "Missing a comma or ']' after an array element.",
        "Incorrect hex digit after \\u escape in string.",
        "The surrogate pair in string is invalid.",
        "Invalid escape character in string.",
        "Missing a closing quotation mark in string.",
        "Number too big to be stored in double.",
        "Miss fraction part in number.",
        "Miss exponent in number.",
        "",
    };
    return text[reason];
}

static void tf_json_note(tf_json *c, int reason, const char *at) __attribute__((cold, noinline));
static void tf_json_note(tf_json *c, int reason, const char *at) {
    c->reason = reason;
    c->at = (size_t)(at - c->base);
    c->p = at;
}
/* Inline, so that callers' compilers see the -1. */
static inline int tf_json_fail(tf_json *c, int reason, const char *at) {
    tf_json_note(c, reason, at);
    return -1;
}

static inline const char *tf_json_ws(const char *p) {
    if (__builtin_expect((unsigned char)*p > ' ', 1)) return p;
    while (*p == ' ' || *p == '\n' || *p == '\r' || *p == '\t') p++;
    return p;
}

/* The next character that is no whitespace, when the last one taken may have been a '}'. */
static inline char tf_json_after(tf_json *c) {
    if (__builtin_expect(c->p == c->end, 0)) {
        /* The text is over: an error, and its offset counts the white space that follows. */
        while (c->p < c->lim && (*c->p == ' ' || *c->p == '\n' || *c->p == '\r' || *c->p == '\t')) c->p++;
        return 0;
    }
    c->p = tf_json_ws(c->p);
    return *c->p;
}

static inline int tf_json_hex4(const char *p, const char *lim) {
    int v = 0;
    for (int i = 0; i < 4; i++) {
        if (p + i >= lim) return -1;
        unsigned ch = (unsigned char)p[i], d = ch - '0';
        if (d > 9) {
            d = (ch | 32) - 'a';
            if (d > 5) return -1;
            d += 10;
        }
        v = v * 16 + (int)d;
    }
    return v;
}

/* An escape at *p == '\\': its end, or NULL with the reason set. A lone low surrogate passes, as in the real server. */
static const char *tf_json_escape(tf_json *c, const char *p) __attribute__((noinline));
static const char *tf_json_escape(tf_json *c, const char *p) {
    const char *start = p++;
    char ch = p < c->lim ? *p : 0;
    switch (ch) {
        case '"': case '\\': case '/': case 'b': case 'f': case 'n': case 'r': case 't': return p + 1;
        case 'u': break;
        default: tf_json_fail(c, TFJ_ESCAPE, start); return NULL;
    }
    int code = tf_json_hex4(p + 1, c->lim);
    if (code < 0) { tf_json_fail(c, TFJ_HEX, start); return NULL; }
    p += 5;
    if (code < 0xD800 || code > 0xDBFF) return p;
    if (c->lim - p < 2 || p[0] != '\\' || p[1] != 'u') { tf_json_fail(c, TFJ_SURROGATE, start); return NULL; }
    code = tf_json_hex4(p + 2, c->lim);
    if (code < 0) { tf_json_fail(c, TFJ_HEX, start); return NULL; }
    if (code < 0xDC00 || code > 0xDFFF) { tf_json_fail(c, TFJ_SURROGATE, start); return NULL; }
    return p + 6;
}

#define TFJ_REPEAT(b) (UINT64_C(0x0101010101010101) * (b))

/* Take the string whose opening quote is at c->p; c->p is left past the closing one. Escapes are checked, not undone;
 * bytes above 0x1F pass as they are (the real server does not check for UTF-8 either). */
static inline int tf_json_string(tf_json *c, tf_json_str *out) {
    const char *p = c->p + 1, *lim = c->lim;
    out->ptr = p;
    out->escaped = 0;
    for (;;) {
#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
        /* Eight bytes at a time: the lowest flagged byte is a quote, a backslash or a control character. */
        while (lim - p >= 8) {
            uint64_t x, q, b, hit;
            memcpy(&x, p, 8);
            q = x ^ TFJ_REPEAT('"');
            b = x ^ TFJ_REPEAT('\\');
            hit = ((x - TFJ_REPEAT(0x20)) & ~x) | ((q - TFJ_REPEAT(1)) & ~q) | ((b - TFJ_REPEAT(1)) & ~b);
            hit &= TFJ_REPEAT(0x80);
            if (hit) {
                p += __builtin_ctzll(hit) >> 3;
                break;
            }
            p += 8;
        }
#endif
        while (p < lim && *p != '"' && *p != '\\' && (unsigned char)*p >= 0x20) p++;
        if (p >= lim) return tf_json_fail(c, TFJ_QUOTE, lim);
        if (__builtin_expect(*p == '"', 1)) {
            if (__builtin_expect(p - out->ptr > INT32_MAX, 0)) return tf_json_fail(c, TFJ_QUOTE, p);
            out->len = (uint32_t)(p - out->ptr);
            c->p = p + 1;
            return 0;
        }
        if (*p != '\\') return tf_json_fail(c, *p ? TFJ_ESCAPE : TFJ_QUOTE, p);
        out->escaped = 1;
        p = tf_json_escape(c, p);
        if (!p) return -1;
    }
}

/* Undo the escapes of a checked string into dst (room for len bytes: it never grows); the bytes written. */
static size_t tf_json_unescape(const tf_json_str *s, char *dst) {
    const char *p = s->ptr, *stop = p + s->len;
    char *o = dst;
    while (p < stop) {
        const char *slash = (const char *)memchr(p, '\\', (size_t)(stop - p));
        size_t plain = (size_t)((slash ? slash : stop) - p);
        memcpy(o, p, plain);
        o += plain;
        p += plain;
        if (!slash) break;
        switch (p[1]) {
            case 'b': *o++ = '\b'; p += 2; continue;
            case 'f': *o++ = '\f'; p += 2; continue;
            case 'n': *o++ = '\n'; p += 2; continue;
            case 'r': *o++ = '\r'; p += 2; continue;
            case 't': *o++ = '\t'; p += 2; continue;
            case 'u': break;
            default: *o++ = p[1]; p += 2; continue;
        }
        uint32_t code = (uint32_t)tf_json_hex4(p + 2, stop);
        p += 6;
        if (code >= 0xD800 && code <= 0xDBFF) {
            code = 0x10000 + ((code - 0xD800) << 10) + ((uint32_t)tf_json_hex4(p + 2, stop) - 0xDC00);
            p += 6;
        }
        if (code < 0x80) {
            *o++ = (char)code;
        } else if (code < 0x800) {
            *o++ = (char)(0xC0 | code >> 6);
            *o++ = (char)(0x80 | (code & 63));
        } else if (code < 0x10000) {
            *o++ = (char)(0xE0 | code >> 12);
            *o++ = (char)(0x80 | (code >> 6 & 63));
            *o++ = (char)(0x80 | (code & 63));
        } else {
            *o++ = (char)(0xF0 | code >> 18);
            *o++ = (char)(0x80 | (code >> 12 & 63));
            *o++ = (char)(0x80 | (code >> 6 & 63));
            *o++ = (char)(0x80 | (code & 63));
        }
    }
    return (size_t)(o - dst);
}

/* Take `word`, whose first character is at c->p; the error stands at the first character that differs. */
static inline int tf_json_literal(tf_json *c, const char *word) {
    const char *p = c->p;
    while (*word) {
        if (*p != *word) return tf_json_fail(c, TFJ_VALUE, p);
        p++;
        word++;
    }
    c->p = p;
    return 0;
}

/* The name of a member and its colon; c->p is left at the value. c->p must be at the first character of the name. */
static inline int tf_json_key(tf_json *c, tf_json_str *key) {
    if (*c->p != '"') return tf_json_fail(c, TFJ_NAME, c->p);
    if (tf_json_string(c, key)) return -1;
    c->p = tf_json_ws(c->p);
    if (*c->p != ':') return tf_json_fail(c, TFJ_COLON, c->p);
    c->p = tf_json_ws(c->p + 1);
    return 0;
}

/* Walk an object: 1 a key was read and c->p is at its value; 0 the object is over; -1 error. *first: start with 1.
 * c->p must be at the '{' at first, then just past the last value. */
static inline int tf_json_member(tf_json *c, int *first, tf_json_str *key) {
    if (*first) {
        *first = 0;
        c->p = tf_json_ws(c->p + 1);
        if (*c->p == '}') { c->p++; return 0; }
    } else {
        char ch = tf_json_after(c);
        if (ch == '}') { c->p++; return 0; }
        if (ch != ',') return tf_json_fail(c, TFJ_CURLY, c->p);
        c->p = tf_json_ws(c->p + 1);
    }
    return tf_json_key(c, key) ? -1 : 1;
}

/* The same for an array; 1: c->p is at the next element. */
static inline int tf_json_element(tf_json *c, int *first) {
    if (*first) {
        *first = 0;
        c->p = tf_json_ws(c->p + 1);
        if (*c->p == ']') { c->p++; return 0; }
        return 1;
    }
    char ch = tf_json_after(c);
    if (ch == ']') { c->p++; return 0; }
    if (ch != ',') return tf_json_fail(c, TFJ_SQUARE, c->p);
    c->p = tf_json_ws(c->p + 1);
    return 1;
}
#endif
