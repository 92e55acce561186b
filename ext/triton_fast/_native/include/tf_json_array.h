/* The "data" member of a JSON tensor, nested or flat, straight into typed memory. Also the set of names seen so far.
 * Knows datatypes by size and kind only; nothing of requests.
 */
#ifndef TF_JSON_ARRAY_H
#define TF_JSON_ARRAY_H
#include "tf_json_num.h"
#include <stdlib.h>

/* Why an array was refused when no syntax error stands in c->reason. */
enum { TFJ_A_OK = 0, TFJ_A_TYPE, TFJ_A_MORE, TFJ_A_DEEP, TFJ_A_ROOM };
enum { TFJ_MAX_NESTING = 100 };

/* The element readers: the character after the element at p, or NULL with c->reason set (syntax) or not (wrong type).
 * safe: c->lim - 8. */
template <typename T, bool Signed>
static inline const char *tf_json_take_int(tf_json *c, const char *p, const char *safe, T *out) {
    const char *start = p;
    bool minus = *p == '-';
    p += minus;
    uint64_t w = (uint64_t)(unsigned char)*p - '0';
    if (__builtin_expect(w <= 9, 1)) {
        const char *digits = p++;
        unsigned digit;
        if (w)
            while ((digit = (unsigned)(unsigned char)*p - '0') <= 9) {
                w = w * 10 + digit;
                p++;
            }
        bool whole = *p == ',' || (*p != '.' && (*p | 32) != 'e');
        if (__builtin_expect(whole && p - digits <= 18 && (Signed || !minus), 1)) {
            *out = (T)(Signed && minus ? 0 - w : w); /* narrowing is silent, as in the real server */
            return p;
        }
    }
    tf_json_num n;
    if ((unsigned char)*start > '9' || *start == '"') return NULL;
    c->p = start;
    if (tf_json_number(c, &n)) return NULL;
    if (n.kind == 2 || (Signed ? n.kind == 1 : n.kind == 0 && (int64_t)n.u < 0)) return NULL;
    *out = (T)n.u;
    return c->p;
}

static const double tf_json_sign[2] = {1.0, -1.0};

/* Floats go by way of double, as in the real server; a double out of a float's range becomes infinite. */
template <typename T>
static inline const char *tf_json_take_float(tf_json *c, const char *p, const char *safe, T *out) {
    const char *start = p;
    bool minus = *p == '-';
    p += minus;
    uint64_t w = (uint64_t)(unsigned char)*p - '0';
    if (__builtin_expect(w <= 9, 1)) {
        const char *digits = p++;
        unsigned digit;
        double d;
        if (w)
            while ((digit = (unsigned)(unsigned char)*p - '0') <= 9) {
                w = w * 10 + digit;
                p++;
            }
        if (__builtin_expect(*p == '.', 1)) {
            const char *point = ++p;
#ifdef TFJ_SWAR
            /* At most 7 digits follow, at most 15 in all, and a comma: no check but these. */
            if (__builtin_expect(p <= safe, 1)) {
                uint64_t other, x = tf_json_load(p, &other), bits, n;
                if (other) {
                    bits = (uint64_t)__builtin_ctzll(other);
                    n = bits >> 3;
                    if (__builtin_expect(n && point[n] == ',' && p + n - digits <= 16, 1)) {
                        w = w * tf_json_tens[n] + tf_json_eight(x << (71 - bits));
                        *out = (T)((double)(int64_t)w / tf_json_pow10[n] * tf_json_sign[minus]);
                        return p + n;
                    }
                }
            }
#endif
            p = tf_json_digits(p, safe, &w);
            if (__builtin_expect(p == point || p - digits > 20 || (*p != ',' && (*p | 32) == 'e'), 0))
                goto slow; /* no digit, more than 19 of them, or an exponent */
            if (__builtin_expect(w <= UINT64_C(1) << 53, 1)) {
                d = (double)(int64_t)w / tf_json_pow10[p - point];
            } else if (!tf_json_lemire(w, (int)(point - p), &d)) {
                goto slow;
            }
            *out = (T)(d * tf_json_sign[minus]);
            return p;
        }
        if (__builtin_expect(p - digits <= 18 && (*p | 32) != 'e', 1)) {
            *out = (T)(double)(int64_t)(minus ? 0 - w : w); /* -0 is the integer 0 */
            return p;
        }
    }
slow:
    tf_json_num n;
    if (((unsigned char)*start > '9' && *start != 'N' && *start != 'I') || *start == '"') return NULL;
    c->p = start;
    if (tf_json_number(c, &n)) return NULL;
    *out = (T)n.d;
    return c->p;
}

static inline const char *tf_json_take_bool(tf_json *c, const char *p, const char *safe, uint8_t *out) {
    const char *word = *p == 't' ? "true" : "false";
    *out = *p == 't';
    for (; *word; word++, p++)
        if (*p != *word) return NULL;
    return p;
}

/* An array of at most n elements at c->p into out; *count: those found. 0, or -1 with c->reason or *why set. */
template <typename T, const char *(*Take)(tf_json *, const char *, const char *, T *)>
static int tf_json_typed(tf_json *c, T *out, size_t n, size_t *count, int *why) {
    const char *p = c->p, *safe = c->lim - 8, *after;
    T *o = out, *stop = out + n;
    int depth = 0;
    *why = TFJ_A_OK;
open:
    p = tf_json_ws(p + 1);
    depth++;
    if (*p == ']') goto close;
    if (depth == TFJ_MAX_NESTING) {
        *why = TFJ_A_DEEP;
        goto refuse;
    }
value:
    if (__builtin_expect(o == stop, 0)) {
        if (*p == '[') goto open;
        *why = TFJ_A_MORE;
        goto refuse;
    }
    after = Take(c, p, safe, o);
    if (__builtin_expect(!after, 0)) {
        if (*p == '[') goto open;
        *why = TFJ_A_TYPE;
        goto refuse;
    }
    p = after;
    o++;
next:
    if (__builtin_expect(*p != ',', 0)) {
        p = tf_json_ws(p);
        if (*p == ']') goto close;
        if (*p != ',') {
            tf_json_note(c, TFJ_SQUARE, p);
            goto refuse;
        }
    }
    p++;
    if (__builtin_expect((unsigned char)*p <= ' ', 0)) p = tf_json_ws(p + (*p == ' '));
    goto value;
close:
    p++;
    if (--depth) goto next;
    c->p = p;
    *count = (size_t)(o - out);
    return 0;
refuse:
    *count = (size_t)(o - out);
    return -1;
}

/* kind: 'b' bool, 'u' unsigned, 'i' signed, 'f' float; size: bytes of one element. */
static int tf_json_numbers(tf_json *c, char kind, int size, void *out, size_t n, size_t *count, int *why) {
#define TFJ_CASE(k, s, T, take) \
    if (kind == k && size == s) return tf_json_typed<T, take>(c, (T *)out, n, count, why)
    TFJ_CASE('f', 4, float, tf_json_take_float<float>);
    TFJ_CASE('f', 8, double, tf_json_take_float<double>);
    TFJ_CASE('i', 8, int64_t, (tf_json_take_int<int64_t, true>));
    TFJ_CASE('i', 4, int32_t, (tf_json_take_int<int32_t, true>));
    TFJ_CASE('i', 2, int16_t, (tf_json_take_int<int16_t, true>));
    TFJ_CASE('i', 1, int8_t, (tf_json_take_int<int8_t, true>));
    TFJ_CASE('u', 8, uint64_t, (tf_json_take_int<uint64_t, false>));
    TFJ_CASE('u', 4, uint32_t, (tf_json_take_int<uint32_t, false>));
    TFJ_CASE('u', 2, uint16_t, (tf_json_take_int<uint16_t, false>));
    TFJ_CASE('u', 1, uint8_t, (tf_json_take_int<uint8_t, false>));
    TFJ_CASE('b', 1, uint8_t, tf_json_take_bool);
#undef TFJ_CASE
    *why = TFJ_A_TYPE;
    return -1;
}

/* BYTES elements: uint32 LE length + bytes each. Start zeroed but for out and cap. When *why is TFJ_A_ROOM, give more
 * memory (len + need at least), keep the first len bytes, and call again. */
struct tf_json_bytes {
    uint8_t *out;
    size_t cap, len, need, count;
    int depth;
};

static int tf_json_strings(tf_json *c, tf_json_bytes *b, int *why) {
    tf_json_str s;
    const char *at;
    uint32_t n;
    *why = TFJ_A_OK;
    if (b->depth) goto value; /* resumed */
open:
    c->p = tf_json_ws(c->p + 1);
    b->depth++;
    if (*c->p == ']') goto close;
    if (b->depth == TFJ_MAX_NESTING) {
        *why = TFJ_A_DEEP;
        return -1;
    }
value:
    if (*c->p == '[') goto open;
    if (*c->p != '"') {
        *why = TFJ_A_TYPE;
        return -1;
    }
    at = c->p;
    if (tf_json_string(c, &s)) return -1;
    if (s.len > b->cap - b->len || b->cap - b->len - s.len < 4) {
        c->p = at;
        b->need = (size_t)s.len + 4;
        *why = TFJ_A_ROOM;
        return -1;
    }
    n = s.len;
    if (s.escaped)
        n = (uint32_t)tf_json_unescape(&s, (char *)b->out + b->len + 4);
    else
        memcpy(b->out + b->len + 4, s.ptr, n);
    b->out[b->len] = (uint8_t)n;
    b->out[b->len + 1] = (uint8_t)(n >> 8);
    b->out[b->len + 2] = (uint8_t)(n >> 16);
    b->out[b->len + 3] = (uint8_t)(n >> 24);
    b->len += (size_t)n + 4;
    b->count++;
next:
    c->p = tf_json_ws(c->p);
    if (*c->p == ',') {
        c->p = tf_json_ws(c->p + 1);
        goto value;
    }
    if (*c->p != ']') return tf_json_fail(c, TFJ_SQUARE, c->p);
close:
    c->p++;
    if (--b->depth) goto next;
    return 0;
}

/* Names seen so far: compared one by one up to 16, by a seeded hash table beyond, so that no choice of names makes the
 * check quadratic. Start zeroed; tf_json_names_free when done. */
struct tf_json_name {
    const char *ptr;
    uint32_t len, hash;
};
enum { TFJ_NAMES_PLAIN = 16 };
struct tf_json_names {
    tf_json_name plain[TFJ_NAMES_PLAIN];
    tf_json_name *table; /* open addressing; ptr NULL: free */
    uint32_t count, mask;
};

static uint64_t tf_json_seed[2];

static inline uint64_t tf_json_mix(uint64_t a, uint64_t b) {
    unsigned __int128 m = (unsigned __int128)a * b;
    return (uint64_t)m ^ (uint64_t)(m >> 64);
}

static uint32_t tf_json_hash(const char *p, uint32_t len) {
    uint64_t h = tf_json_seed[0] ^ len, x;
    for (; len >= 8; len -= 8, p += 8) {
        memcpy(&x, p, 8);
        h = tf_json_mix(h ^ x, tf_json_seed[1]);
    }
    x = 0;
    memcpy(&x, p, len);
    h = tf_json_mix(h ^ x, tf_json_seed[1]);
    return (uint32_t)(h ^ h >> 32);
}

static inline void tf_json_names_free(tf_json_names *s) {
    free(s->table);
    s->table = NULL;
    s->count = 0;
}

static void tf_json_names_place(tf_json_names *s, tf_json_name name) {
    uint32_t i = name.hash & s->mask;
    while (s->table[i].ptr) i = (i + 1) & s->mask;
    s->table[i] = name;
}

/* 1 the name is new, 0 it was seen before, -1 memory ran out. The text is borrowed. */
static int tf_json_names_add(tf_json_names *s, const char *ptr, uint32_t len) {
    if (!s->table) {
        for (uint32_t i = 0; i < s->count; i++)
            if (s->plain[i].len == len && !memcmp(s->plain[i].ptr, ptr, len)) return 0;
        if (s->count < TFJ_NAMES_PLAIN) {
            s->plain[s->count].ptr = ptr;
            s->plain[s->count++].len = len;
            return 1;
        }
    }
    if (!s->table || s->count * 2 > s->mask) {
        uint32_t old_mask = s->table ? s->mask : 0;
        tf_json_name *old = s->table;
        uint32_t size = old ? (old_mask + 1) * 2 : 64;
        tf_json_name *table = (tf_json_name *)calloc(size, sizeof(tf_json_name));
        if (!table) return -1;
        s->table = table;
        s->mask = size - 1;
        if (old) {
            for (uint32_t i = 0; i <= old_mask; i++)
                if (old[i].ptr) tf_json_names_place(s, old[i]);
            free(old);
        } else {
            for (uint32_t i = 0; i < s->count; i++) {
                s->plain[i].hash = tf_json_hash(s->plain[i].ptr, s->plain[i].len);
                tf_json_names_place(s, s->plain[i]);
            }
        }
    }
    tf_json_name name = {ptr, len, tf_json_hash(ptr, len)};
    for (uint32_t i = name.hash & s->mask; s->table[i].ptr; i = (i + 1) & s->mask)
        if (s->table[i].hash == name.hash && s->table[i].len == len && !memcmp(s->table[i].ptr, ptr, len)) return 0;
    tf_json_names_place(s, name);
    s->count++;
    return 1;
}
#endif
