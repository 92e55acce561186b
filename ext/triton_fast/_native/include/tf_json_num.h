/* JSON numbers: a decimal scanner, and its conversion to double. Most numbers take the exact path (53-bit integer and a
 * power of ten that is a double) or one 64x128-bit multiplication with a power of five (Eisel-Lemire); the few that
 * neither decides go to std::from_chars. All three round to nearest even. Knows nothing of arrays or requests.
 */
#ifndef TF_JSON_NUM_H
#define TF_JSON_NUM_H
#include "tf_json.h"
#include <charconv>
#include <limits>
#include <system_error>

enum { TFJ_POW_MIN = -64, TFJ_POW_MAX = 64 };

/* 5^q as a 128-bit fraction with its top bit set; filled once by the importing module (tf_json_set_power). */
static uint64_t tf_json_pow5[TFJ_POW_MAX - TFJ_POW_MIN + 1][2];

static void tf_json_set_power(int q, uint64_t high, uint64_t low) {
    tf_json_pow5[q - TFJ_POW_MIN][0] = high;
    tf_json_pow5[q - TFJ_POW_MIN][1] = low;
}

static const double tf_json_pow10[23] = {1e0,  1e1,  1e2,  1e3,  1e4,  1e5,  1e6,  1e7,  1e8,  1e9,  1e10, 1e11,
                                         1e12, 1e13, 1e14, 1e15, 1e16, 1e17, 1e18, 1e19, 1e20, 1e21, 1e22};

/* w * 10^q for w != 0 within the table; false when the product does not decide the rounding, or for subnormals. */
static inline bool tf_json_lemire(uint64_t w, int q, double *out) {
    const uint64_t *power = tf_json_pow5[q - TFJ_POW_MIN];
    int zeros = __builtin_clzll(w);
    w <<= zeros;
    unsigned __int128 product = (unsigned __int128)w * power[0];
    uint64_t high = (uint64_t)(product >> 64), low = (uint64_t)product;
    if ((high & 0x1FF) == 0x1FF) {
        uint64_t more = (uint64_t)(((unsigned __int128)w * power[1]) >> 64);
        low += more;
        if (low < more) high++;
        if (low == UINT64_MAX && (q < -27 || q > 55)) return false;
    }
    int top = (int)(high >> 63);
    int shift = top + 9; /* keep 54 bits: 53 and one to round by */
    uint64_t mantissa = high >> shift;
    int exponent = ((217706 * q) >> 16) + 63 + top - zeros + 1023;
    if (exponent <= 0) return false;
    /* Exactly half way between two doubles: only possible where 5^q is small. Let the rounding below go to even. */
    if (low <= 1 && q >= -4 && q <= 23 && (mantissa & 3) == 1 && (mantissa << shift) == high) mantissa &= ~UINT64_C(1);
    mantissa += mantissa & 1;
    mantissa >>= 1;
    if (mantissa >> 53) {
        mantissa >>= 1;
        exponent++;
    }
    if (exponent >= 0x7FF) return false;
    uint64_t bits = (mantissa & ((UINT64_C(1) << 52) - 1)) | (uint64_t)exponent << 52;
    memcpy(out, &bits, 8);
    return true;
}

static const uint64_t tf_json_tens[8] = {1, 10, 100, 1000, 10000, 100000, 1000000, 10000000};

/* Eight digits 0..9, the first in the lowest byte: pairs, then fours, then all of them. */
static inline uint64_t tf_json_eight(uint64_t x) {
    x = x * 2561 >> 8;
    x = (x & UINT64_C(0x00FF00FF00FF00FF)) * 6553601 >> 16;
    return (x & UINT64_C(0x0000FFFF0000FFFF)) * UINT64_C(42949672960001) >> 32;
}

#if __BYTE_ORDER__ == __ORDER_LITTLE_ENDIAN__
#define TFJ_SWAR 1
/* Eight characters at p; digits become 0..9 by the xor. *other: the top bit of each byte that is no digit (exact for
 * the lowest of them only). */
static inline uint64_t tf_json_load(const char *p, uint64_t *other) {
    uint64_t x;
    memcpy(&x, p, 8);
    x ^= TFJ_REPEAT('0');
    *other = ((x + TFJ_REPEAT(0x76)) | x) & TFJ_REPEAT(0x80);
    return x;
}
#endif

/* The digits at p, appended to w (which may wrap round): the first character after them. safe: lim - 8. */
static inline const char *tf_json_digits(const char *p, const char *safe, uint64_t *w) {
#ifdef TFJ_SWAR
    while (p <= safe) {
        uint64_t other, x = tf_json_load(p, &other);
        if (other) {
            /* 8 n + 7 for n digits; the shift puts leading zeros in place of what is no digit. */
            uint64_t bits = (uint64_t)__builtin_ctzll(other);
            if (bits > 7) *w = *w * tf_json_tens[bits >> 3] + tf_json_eight(x << (71 - bits));
            return p + (bits >> 3);
        }
        *w = *w * 100000000 + tf_json_eight(x);
        p += 8;
    }
#endif
    for (unsigned digit; (digit = (unsigned)(unsigned char)*p - '0') <= 9; p++) *w = *w * 10 + digit;
    return p;
}

struct tf_json_num {
    int kind;   /* 0 an integer that fits int64, 1 one that only fits uint64, 2 a double */
    uint64_t u; /* kinds 0 (two's complement) and 1 */
    double d;   /* every kind */
};

static inline bool tf_json_digit(char ch) { return (unsigned char)(ch - '0') <= 9; }

/* NaN, Inf or Infinity after an optional sign. */
static int tf_json_word(tf_json *c, bool minus, tf_json_num *n) __attribute__((cold, noinline));
static int tf_json_word(tf_json *c, bool minus, tf_json_num *n) {
    n->kind = 2;
    if (*c->p == 'N') {
        n->d = std::numeric_limits<double>::quiet_NaN();
        return tf_json_literal(c, "NaN");
    }
    if (*c->p != 'I') return tf_json_fail(c, TFJ_VALUE, c->p);
    n->d = minus ? -std::numeric_limits<double>::infinity() : std::numeric_limits<double>::infinity();
    if (tf_json_literal(c, "Inf")) return -1;
    return *c->p == 'i' ? tf_json_literal(c, "inity") : 0;
}

/* Numbers that the two fast conversions leave: start..p is a well-formed token. */
static int tf_json_slow_double(tf_json *c, const char *start, const char *p, int64_t exp, int64_t frac, double *out)
    __attribute__((cold, noinline));
static int tf_json_slow_double(tf_json *c, const char *start, const char *p, int64_t exp, int64_t frac, double *out) {
    /* rapidjson's limit on a written exponent, which refuses 0e400 too. */
    if (exp > 308 + frac) return tf_json_fail(c, TFJ_TOO_BIG, start);
    double d = 0;
    std::from_chars_result r = std::from_chars(start, p, d);
    if (r.ec == std::errc::result_out_of_range) {
        /* Too large or too small: from_chars does not say. The first digit's decimal place does. */
        const char *q = start + (*start == '-');
        int64_t place = exp;
        if (*q == '0') {
            if (q + 1 < p && q[1] == '.')
                for (q += 2; q < p && *q == '0'; q++) place--;
        } else {
            while (q < p && tf_json_digit(*q)) { q++; place++; }
        }
        if (place > 0 && exp == 0) return tf_json_fail(c, TFJ_TOO_BIG, start);
        d = place > 0 ? std::numeric_limits<double>::infinity() : 0.0;
        if (*start == '-') d = -d;
    }
    *out = d;
    return 0;
}

/* Take the number at c->p. */
static int tf_json_number(tf_json *c, tf_json_num *n) __attribute__((noinline));
static int tf_json_number(tf_json *c, tf_json_num *n) {
    const char *start = c->p, *p = start, *safe = c->lim - 8;
    bool minus = *p == '-';
    p += minus;
    const char *digits = p;
    uint64_t w = (uint64_t)(unsigned char)*p - '0';
    if (__builtin_expect(w > 9, 0)) {
        c->p = p;
        return tf_json_word(c, minus, n);
    }
    p++;
    if (w) p = tf_json_digits(p, safe, &w);
    int64_t n_digits = p - digits, frac = 0, exp = 0;
    bool whole = true;
    if (*p == '.') {
        const char *point = ++p;
        whole = false;
        p = tf_json_digits(p, safe, &w);
        frac = p - point;
        if (__builtin_expect(!frac, 0)) return tf_json_fail(c, TFJ_FRACTION, p);
        n_digits += frac;
    }
    if (__builtin_expect((*p | 32) == 'e', 0)) {
        whole = false;
        p++;
        bool down = *p == '-';
        p += *p == '-' || *p == '+';
        if (!tf_json_digit(*p)) return tf_json_fail(c, TFJ_EXPONENT, p);
        for (; tf_json_digit(*p); p++)
            if (exp < 100000000) exp = exp * 10 + (*p - '0');
        if (down) exp = -exp;
    }
    c->p = p;
    if (__builtin_expect(n_digits > 19, 0)) {
        /* w has wrapped round unless the excess is leading zeros. */
        const char *q = digits;
        while (*q == '0' || *q == '.') q++;
        int64_t significant = 0;
        for (; tf_json_digit(*q) || *q == '.'; q++) significant += *q != '.';
        if (whole && !minus && significant == 20 && *digits == '1' && w >= UINT64_C(10000000000000000000)) {
            n->kind = 1; /* 10^19 .. 2^64 - 1; beyond that w would be small */
            n->u = w;
            n->d = (double)w;
            return 0;
        }
        if (significant > 19) {
            n->kind = 2;
            return tf_json_slow_double(c, start, p, exp, frac, &n->d);
        }
    }
    if (whole) {
        if (w <= (uint64_t)INT64_MAX + minus) {
            n->kind = 0;
            n->u = minus ? 0 - w : w;
            n->d = (double)(int64_t)n->u;
        } else if (!minus) {
            n->kind = 1;
            n->u = w;
            n->d = (double)w;
        } else {
            n->kind = 2;
            n->d = -(double)w;
        }
        return 0;
    }
    n->kind = 2;
    int64_t q = exp - frac;
    double d;
    if (w <= (UINT64_C(1) << 53) && q >= -22 && q <= 22) {
        d = q < 0 ? (double)w / tf_json_pow10[-q] : (double)w * tf_json_pow10[q];
    } else if (q < TFJ_POW_MIN || q > TFJ_POW_MAX || w == 0 || !tf_json_lemire(w, (int)q, &d)) {
        return tf_json_slow_double(c, start, p, exp, frac, &n->d);
    }
    n->d = minus ? -d : d;
    return 0;
}

/* A plain unsigned integer of at most 18 digits at c->p is taken; else false (then tf_json_number decides). */
static inline bool tf_json_plain(tf_json *c, uint64_t *out) {
    const char *p = c->p;
    uint64_t w = (uint64_t)(unsigned char)*p - '0';
    if (w > 9) return false;
    p++;
    if (w)
        for (unsigned digit; (digit = (unsigned)(unsigned char)*p - '0') <= 9; p++) w = w * 10 + digit;
    if (p - c->p > 18 || *p == '.' || (*p | 32) == 'e') return false;
    c->p = p;
    *out = w;
    return true;
}

/* Skip the value at c->p, checking its syntax; containers nested deeper than max_depth (<= 128) are refused. */
static int tf_json_skip(tf_json *c, int max_depth) __attribute__((noinline));
static int tf_json_skip(tf_json *c, int max_depth) {
    uint64_t objects[2] = {0, 0}; /* one bit a level: an object, else an array */
    int depth = 0;
    tf_json_str s;
    tf_json_num n;
    char ch;
value:
    switch (*c->p) {
        case '{':
        case '[':
            ch = *c->p;
            if (depth == max_depth) return tf_json_fail(c, TFJ_DEEP, c->p);
            if (ch == '{')
                objects[depth >> 6] |= UINT64_C(1) << (depth & 63);
            else
                objects[depth >> 6] &= ~(UINT64_C(1) << (depth & 63));
            depth++;
            c->p = tf_json_ws(c->p + 1);
            if (*c->p == ch + 2) { /* '{' + 2 == '}', '[' + 2 == ']' */
                c->p++;
                depth--;
                break;
            }
            if (ch == '{' && tf_json_key(c, &s)) return -1;
            goto value;
        case '"': if (tf_json_string(c, &s)) return -1; break;
        case 't': if (tf_json_literal(c, "true")) return -1; break;
        case 'f': if (tf_json_literal(c, "false")) return -1; break;
        case 'n': if (tf_json_literal(c, "null")) return -1; break;
        default: if (tf_json_number(c, &n)) return -1;
    }
    while (depth) {
        bool object = objects[(depth - 1) >> 6] >> ((depth - 1) & 63) & 1;
        ch = tf_json_after(c);
        if (ch == ',') {
            c->p = tf_json_ws(c->p + 1);
            if (object && tf_json_key(c, &s)) return -1;
            goto value;
        }
        if (ch != (object ? '}' : ']')) return tf_json_fail(c, object ? TFJ_CURLY : TFJ_SQUARE, c->p);
        c->p++;
        depth--;
    }
    return 0;
}
#endif
