/* Byte classes and scanners of HTTP/1.1 lines (RFC 9110 section 5.6, RFC 9112), with SSE2 where there is one; C only.
 * Knows nothing of heads, bodies or errors. No load leaves the buffer that the caller names.
 */
#ifndef TF_HTTP_SCAN_H
#define TF_HTTP_SCAN_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>
#if defined(__SSE2__) && !defined(TF_NO_SIMD)
#include <emmintrin.h>
#define TF_SSE2 1
#endif
#define TF_INLINE static inline __attribute__((always_inline))

enum { C_TOKEN = 1, C_TARGET = 2, C_VALUE = 4, C_HOST = 8 };
static const unsigned char tf_class[256] = {
  ['\t'] = 4, [' '] = 4, ['!'] = 15, ['"'] = 6, ['#'] = 7, ['$'] = 15, ['%'] = 15, ['&'] = 15, ['\''] = 15,
  ['('] = 14, [')'] = 14, ['*'] = 15, ['+'] = 15, [','] = 14, ['-'] = 15, ['.'] = 15, ['/'] = 6,
  ['0' ... '9'] = 15, [':'] = 14, [';'] = 14, ['<'] = 6, ['='] = 14, ['>'] = 6, ['?'] = 6, ['@'] = 6,
  ['A' ... 'Z'] = 15, ['['] = 14, ['\\'] = 6, [']'] = 14, ['^'] = 7, ['_'] = 15, ['`'] = 7,
  ['a' ... 'z'] = 15, ['{'] = 6, ['|'] = 7, ['}'] = 6, ['~'] = 15, [128 ... 255] = 4,
};
static const signed char tf_hex[256] = {
  [0 ... '0' - 1] = -1, ['0'] = 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, ['9' + 1 ... 'A' - 1] = -1,
  ['A'] = 10, 11, 12, 13, 14, 15, ['F' + 1 ... 'a' - 1] = -1,
  ['a'] = 10, 11, 12, 13, 14, 15, ['f' + 1 ... 255] = -1,
};

/* Scans of one line, 16 bytes at a time; each stops at the first byte that its part of the line cannot hold.
   S_NAME also stops at ':' and leaves the token rule to the caller (known names need no second look). */
enum { S_NAME, S_PATH, S_QUERY, S_VALUE };

TF_INLINE int tf_stops(unsigned char c, int kind) {
  if (kind == S_NAME) return c == ':' || c <= ' ' || c >= 128;
  if (kind == S_PATH) return c == '?' || !(tf_class[c] & C_TARGET);
  if (kind == S_QUERY) return !(tf_class[c] & C_TARGET);
  return !(tf_class[c] & C_VALUE);
}
#ifdef TF_SSE2
TF_INLINE unsigned tf_stop_mask(const char* p, int kind) {
  __m128i x = _mm_loadu_si128((const __m128i*)p), ok, bad;
  if (kind == S_VALUE) {
    bad = _mm_cmpeq_epi8(_mm_min_epu8(x, _mm_set1_epi8(0x1f)), x);
    bad = _mm_andnot_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8('\t')), bad);
    return (unsigned)_mm_movemask_epi8(_mm_or_si128(bad, _mm_cmpeq_epi8(x, _mm_set1_epi8(0x7f))));
  }
  ok = _mm_cmpgt_epi8(x, _mm_set1_epi8(' '));  /* signed: bytes from 128 are negative */
  if (kind == S_NAME) ok = _mm_andnot_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8(':')), ok);
  else ok = _mm_andnot_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8(0x7f)), ok);
  if (kind == S_PATH) ok = _mm_andnot_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8('?')), ok);
  return (unsigned)_mm_movemask_epi8(ok) ^ 0xffffu;
}
#endif
/* First stop in [p, end), or end. last is end - 16, or NULL when the whole buffer is shorter than 16 bytes: the
   tail is looked at through the last 16 bytes of the buffer, so that no load leaves it. */
TF_INLINE const char* tf_scan(const char* p, const char* end, const char* last, int kind) {
#ifdef TF_SSE2
  unsigned m;
  if (last != NULL) {
    for (; p <= last; p += 16)
      if ((m = tf_stop_mask(p, kind)) != 0) return p + (unsigned)__builtin_ctz(m);
    if (p >= end) return end;
    m = tf_stop_mask(last, kind) >> (p - last);
    return m ? p + (unsigned)__builtin_ctz(m) : end;
  }
#endif
  while (p < end && !tf_stops((unsigned char)*p, kind)) p++;
  return p;
}

/* 1: the n bytes are all letters, digits, '-', '.' or ':', which every name and nearly every host is.
   0: perhaps not (also near end, where 16 bytes cannot be loaded); ask tf_class. */
TF_INLINE int tf_plain(const char* p, size_t n, const char* end) {
#ifdef TF_SSE2
  for (; end - p >= 16; p += 16, n -= 16) {
    __m128i x = _mm_loadu_si128((const __m128i*)p);
    __m128i a = _mm_sub_epi8(_mm_or_si128(x, _mm_set1_epi8(0x20)), _mm_set1_epi8('a'));
    __m128i d = _mm_sub_epi8(x, _mm_set1_epi8('-'));
    a = _mm_cmpeq_epi8(_mm_min_epu8(a, _mm_set1_epi8(25)), a);
    d = _mm_cmpeq_epi8(_mm_min_epu8(d, _mm_set1_epi8(':' - '-')), d);
    d = _mm_andnot_si128(_mm_cmpeq_epi8(x, _mm_set1_epi8('/')), d);
    unsigned m = (unsigned)_mm_movemask_epi8(_mm_or_si128(a, d)) ^ 0xffffu;
    if (n <= 16) return (m & (0xffffu >> (16 - n))) == 0;
    if (m) return 0;
  }
#endif
  return 0;
}

/* Equal without regard to letter case; low is a lower-case literal of letters, digits and '-'. Only letters
   have bit 6, so only they may differ in bit 5: CR is not taken for '-'. */
TF_INLINE uint64_t tf_diff8(const char* p, const char* low) {
  uint64_t x, l; memcpy(&x, p, 8); memcpy(&l, low, 8);
  return (x | ((l & 0x4040404040404040ULL) >> 1)) ^ l;
}
TF_INLINE uint64_t tf_diff4(const char* p, const char* low) {
  uint32_t x, l; memcpy(&x, p, 4); memcpy(&l, low, 4);
  return (x | ((l & 0x40404040U) >> 1)) ^ l;
}
TF_INLINE int tf_ieq(const char* p, const char* low, size_t n) {  /* n >= 4, a constant */
  uint64_t d = 0;
  size_t i;
  if (n < 8) return (tf_diff4(p, low) | tf_diff4(p + n - 4, low + n - 4)) == 0;
  for (i = 0; i + 8 <= n; i += 8) d |= tf_diff8(p + i, low + i);
  return (d | tf_diff8(p + n - 8, low + n - 8)) == 0;
}

#endif
