/* The protobuf wire format: a reader that never looks past its end, and the pieces of a writer.
   Knows no message. Readers return 0 or a negative reason and leave p at what could not be read. */
#ifndef TF_PB_H
#define TF_PB_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#define TF_PB_MAX_GROUPS 64 /* nesting of unknown groups */
#define TF_PB_MAX_LENGTH 0x7fffffff

#define TF_PB_FAST static inline __attribute__((always_inline, unused))
#define TF_PB_SLOW static __attribute__((noinline, unused))
#define TF_PB_LIKELY(x) __builtin_expect(!!(x), 1)

enum {
    TF_PB_SHORT = -1,
    TF_PB_VARINT = -2,
    TF_PB_TAG = -3,
    TF_PB_LENGTH = -4,
    TF_PB_GROUP = -5,
    TF_PB_DEEP = -6,
    TF_PB_UTF8 = -7,
    TF_PB_PACKED = -8
};

typedef struct {
    const uint8_t *p;
    const uint8_t *end;
} tf_pb;

/* A varint and what follows it; p is NULL on failure, with the reason in v. */
typedef struct {
    const uint8_t *p;
    uint64_t v;
} tf_pb_int;

static inline const char *tf_pb_reason(int reason) {
    switch (reason) {
    case TF_PB_SHORT: return "it ends too early";
    case TF_PB_VARINT: return "a varint of more than 10 bytes";
    case TF_PB_TAG: return "an invalid tag";
    case TF_PB_LENGTH: return "a length past the end";
    case TF_PB_GROUP: return "an end of a group that was not started";
    case TF_PB_DEEP: return "groups nested deeper than 64";
    case TF_PB_UTF8: return "a string that is not UTF-8";
    default: return "a packed field of a wrong size";
    }
}

/* Up to `most` bytes; the bits of the tenth past 2^64 are dropped, as protobuf does. */
TF_PB_SLOW tf_pb_int tf_pb_long(const uint8_t *p, const uint8_t *end, int most) {
    tf_pb_int got = {NULL, 0};
    uint64_t v = 0;
    int i;
    for (i = 0; i < most; i++) {
        if (p == end) {
            got.v = (uint64_t)(int64_t)TF_PB_SHORT;
            return got;
        }
        v |= (uint64_t)(*p & 0x7f) << (7 * i);
        if (*p++ < 0x80) {
            got.p = p;
            got.v = v;
            return got;
        }
    }
    got.v = (uint64_t)(int64_t)TF_PB_VARINT;
    return got;
}

TF_PB_FAST int tf_pb_varint(tf_pb *c, uint64_t *v) {
    tf_pb_int got;
    if (TF_PB_LIKELY(c->p < c->end && *c->p < 0x80)) {
        *v = *c->p++;
        return 0;
    }
    got = tf_pb_long(c->p, c->end, 10);
    if (!got.p) return (int)(int64_t)got.v;
    c->p = got.p;
    *v = got.v;
    return 0;
}

/* The tag at p, which the caller knows to lie before the end. */
TF_PB_FAST int tf_pb_tag(tf_pb *c, uint32_t *tag) {
    tf_pb_int got;
    uint32_t t = *c->p;
    if (TF_PB_LIKELY(t < 0x80)) {
        if (t < 8) return TF_PB_TAG;
        c->p++;
        *tag = t;
        return 0;
    }
    got = tf_pb_long(c->p, c->end, 5);
    if (!got.p) return (int64_t)got.v == TF_PB_SHORT ? TF_PB_SHORT : TF_PB_TAG;
    if (got.v < 8 || got.v > UINT32_MAX) return TF_PB_TAG;
    c->p = got.p;
    *tag = (uint32_t)got.v;
    return 0;
}

/* A length and the bytes that it announces; p is then behind them. */
TF_PB_FAST int tf_pb_span(tf_pb *c, const uint8_t **data, uint32_t *n) {
    const uint8_t *p = c->p;
    uint64_t len;
    if (TF_PB_LIKELY(p < c->end && *p < 0x80)) {
        len = *p++;
    } else {
        tf_pb_int got = tf_pb_long(p, c->end, 5);
        if (!got.p) return (int64_t)got.v == TF_PB_SHORT ? TF_PB_SHORT : TF_PB_LENGTH;
        if (got.v > TF_PB_MAX_LENGTH) return TF_PB_LENGTH;
        p = got.p;
        len = got.v;
    }
    if (len > (uint64_t)(c->end - p)) return TF_PB_LENGTH;
    *data = p;
    *n = (uint32_t)len;
    c->p = p + len;
    return 0;
}

TF_PB_FAST int tf_pb_fixed(tf_pb *c, void *dst, size_t size) {
    if ((size_t)(c->end - c->p) < size) return TF_PB_SHORT;
    memcpy(dst, c->p, size);
    c->p += size;
    return 0;
}

/* Skip the value of an unknown field, whose tag was read. Groups are walked with a stack of their numbers. */
TF_PB_SLOW int tf_pb_skip_value(tf_pb *c, uint32_t tag) {
    uint32_t open[TF_PB_MAX_GROUPS];
    uint32_t n, depth = 0;
    uint64_t v;
    const uint8_t *data;
    int rc;
    for (;;) {
        switch (tag & 7) {
        case 0: rc = tf_pb_varint(c, &v); break;
        case 1: rc = tf_pb_fixed(c, &v, 8); break;
        case 2: rc = tf_pb_span(c, &data, &n); break;
        case 3:
            if (depth == TF_PB_MAX_GROUPS) return TF_PB_DEEP;
            open[depth++] = tag >> 3;
            rc = 0;
            break;
        case 4:
            if (depth == 0 || open[depth - 1] != tag >> 3) return TF_PB_GROUP;
            depth--;
            rc = 0;
            break;
        case 5: rc = tf_pb_fixed(c, &v, 4); break;
        default: return TF_PB_TAG;
        }
        if (rc || !depth) return rc;
        if (c->p == c->end) return TF_PB_SHORT;
        rc = tf_pb_tag(c, &tag);
        if (rc) return rc;
    }
}

/* A copy of the cursor, so that the caller's may stay in registers. */
TF_PB_FAST int tf_pb_skip(tf_pb *c, uint32_t tag) {
    tf_pb copy = *c;
    int rc = tf_pb_skip_value(&copy, tag);
    *c = copy;
    return rc;
}

/* ---- text ---- */

/* Bytes of the character at p, which is no ASCII; 0 when it is none of UTF-8 (surrogates and overlong forms are none). */
TF_PB_FAST int tf_utf8_char(const uint8_t *p, const uint8_t *end) {
    uint32_t a = p[0];
    size_t left = (size_t)(end - p);
    if (a < 0xc2 || a > 0xf4 || left < 2 || (p[1] & 0xc0) != 0x80) return 0;
    if (a < 0xe0) return 2;
    if (left < 3 || (p[2] & 0xc0) != 0x80) return 0;
    if (a < 0xf0) return (a == 0xe0 && p[1] < 0xa0) || (a == 0xed && p[1] > 0x9f) ? 0 : 3;
    if (left < 4 || (p[3] & 0xc0) != 0x80) return 0;
    return (a == 0xf0 && p[1] < 0x90) || (a == 0xf4 && p[1] > 0x8f) ? 0 : 4;
}

TF_PB_SLOW int tf_utf8_check(const uint8_t *p, const uint8_t *end) {
    uint64_t w;
    int n;
    while (p < end) {
        if (*p < 0x80) {
            if (end - p >= 8 && (memcpy(&w, p, 8), !(w & UINT64_C(0x8080808080808080)))) p += 8;
            else p++;
            continue;
        }
        n = tf_utf8_char(p, end);
        if (!n) return TF_PB_UTF8;
        p += n;
    }
    return 0;
}

/* 0 when the n bytes are UTF-8. Short ASCII, which names are, takes two loads that may overlap. */
TF_PB_FAST int tf_utf8(const uint8_t *p, uint32_t n) {
    uint64_t a, b;
    uint32_t c, d;
    if (n > 16) return tf_utf8_check(p, p + n);
    if (n >= 8) {
        memcpy(&a, p, 8);
        memcpy(&b, p + n - 8, 8);
        a = (a | b) & UINT64_C(0x8080808080808080);
    } else if (n >= 4) {
        memcpy(&c, p, 4);
        memcpy(&d, p + n - 4, 4);
        a = (c | d) & 0x80808080u;
    } else if (n) {
        a = (p[0] | p[n >> 1] | p[n - 1]) & 0x80;
    } else {
        return 0;
    }
    return TF_PB_LIKELY(!a) ? 0 : tf_utf8_check(p, p + n);
}

/* ---- packed numbers ---- */

/* How many varints p[0:n] holds, or a reason; *at is then where it stopped. */
TF_PB_SLOW int64_t tf_pb_count(const uint8_t *p, uint32_t n, const uint8_t **at) {
    const uint8_t *end = p + n;
    int64_t count = 0;
    uint64_t w;
    tf_pb_int got;
    while (p < end) {
        if (end - p >= 8 && (memcpy(&w, p, 8), !(w & UINT64_C(0x8080808080808080)))) {
            p += 8;
            count += 8;
            continue;
        }
        got = tf_pb_long(p, end, 10);
        if (!got.p) {
            *at = p;
            return (int64_t)got.v;
        }
        p = got.p;
        count++;
    }
    return count;
}

#define TF_PB_UNPACK(name, type, value)                                             \
    TF_PB_SLOW uint8_t *name(const uint8_t *p, const uint8_t *end, uint8_t *dst) {  \
        while (p < end) {                                                           \
            uint64_t v = *p++;                                                      \
            type out;                                                               \
            if (v >= 0x80) {                                                        \
                tf_pb_int got = tf_pb_long(p - 1, end, 10);                         \
                if (!got.p) break;                                                  \
                p = got.p;                                                          \
                v = got.v;                                                          \
            }                                                                       \
            out = (type)(value);                                                    \
            memcpy(dst, &out, sizeof(out));                                         \
            dst += sizeof(out);                                                     \
        }                                                                           \
        return dst;                                                                 \
    }
TF_PB_UNPACK(tf_pb_unpack_bool, uint8_t, v != 0)
TF_PB_UNPACK(tf_pb_unpack_8, uint8_t, v)
TF_PB_UNPACK(tf_pb_unpack_16, uint16_t, v)
TF_PB_UNPACK(tf_pb_unpack_32, uint32_t, v)
TF_PB_UNPACK(tf_pb_unpack_64, uint64_t, v)

/* Write the low bytes of the varints p[0:n], which tf_pb_count took; size 0 makes bools. Returns the end of dst. */
static inline uint8_t *tf_pb_unpack(const uint8_t *p, uint32_t n, uint8_t *dst, int size) {
    switch (size) {
    case 0: return tf_pb_unpack_bool(p, p + n, dst);
    case 1: return tf_pb_unpack_8(p, p + n, dst);
    case 2: return tf_pb_unpack_16(p, p + n, dst);
    case 4: return tf_pb_unpack_32(p, p + n, dst);
    default: return tf_pb_unpack_64(p, p + n, dst);
    }
}

/* ---- writing: the caller has made room ---- */

TF_PB_FAST uint32_t tf_pb_varint_size(uint64_t v) {
    return (uint32_t)(70 - __builtin_clzll(v | 1)) / 7;
}

TF_PB_FAST char *tf_pb_put_varint(char *p, uint64_t v) {
    while (v >= 0x80) {
        *p++ = (char)(v | 0x80);
        v >>= 7;
    }
    *p++ = (char)v;
    return p;
}

TF_PB_FAST char *tf_pb_put_bytes(char *p, uint8_t tag, const void *src, size_t n) {
    *p++ = (char)tag;
    p = tf_pb_put_varint(p, n);
    if (n) memcpy(p, src, n);
    return p + n;
}

/* A string field, which proto3 leaves out when it is empty. */
TF_PB_FAST char *tf_pb_put_text(char *p, uint8_t tag, const char *src, size_t n) {
    return n ? tf_pb_put_bytes(p, tag, src, n) : p;
}
#endif
