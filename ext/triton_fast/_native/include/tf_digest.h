/* A keyed 128-bit digest of framed fields, fast on long ones. Fields go through SipHash-2-4 with 128 bits of output, word
 * by word; of a long field, only two NH hashes of each kilobyte do (NH: a sum of products, each of two words with key
 * added). Two messages made without knowing the key agree with a chance of about 2^-128, whoever made them. The key is
 * random and stays in the process. */
#ifndef TF_DIGEST_H
#define TF_DIGEST_H
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { TF_NH_WORDS = 128, TF_NH_BYTES = TF_NH_WORDS * 8, TF_NH_FROM = 64 };

typedef struct {
    uint64_t sip[2];
    uint64_t nh[TF_NH_WORDS + 2]; /* the second hash uses the same words, two further on */
} tf_digest_key;

typedef struct {
    const tf_digest_key *key;
    uint64_t v0, v1, v2, v3;
    uint64_t words;
} tf_digest;

#define TF_ROTL(x, b) (((x) << (b)) | ((x) >> (64 - (b))))

static inline void tf_sip_round(tf_digest *d) {
    d->v0 += d->v1; d->v1 = TF_ROTL(d->v1, 13); d->v1 ^= d->v0; d->v0 = TF_ROTL(d->v0, 32);
    d->v2 += d->v3; d->v3 = TF_ROTL(d->v3, 16); d->v3 ^= d->v2;
    d->v0 += d->v3; d->v3 = TF_ROTL(d->v3, 21); d->v3 ^= d->v0;
    d->v2 += d->v1; d->v1 = TF_ROTL(d->v1, 17); d->v1 ^= d->v2; d->v2 = TF_ROTL(d->v2, 32);
}

static inline void tf_digest_begin(tf_digest *d, const tf_digest_key *key) {
    d->key = key;
    d->v0 = key->sip[0] ^ 0x736f6d6570736575ULL;
    d->v1 = key->sip[1] ^ 0x646f72616e646f6dULL ^ 0xee;
    d->v2 = key->sip[0] ^ 0x6c7967656e657261ULL;
    d->v3 = key->sip[1] ^ 0x7465646279746573ULL;
    d->words = 0;
}

static inline void tf_digest_word(tf_digest *d, uint64_t w) {
    d->v3 ^= w;
    tf_sip_round(d);
    tf_sip_round(d);
    d->v0 ^= w;
    d->words++;
}

/* The last n bytes of a field, n < 16, as two words filled up with zeros. */
static inline void tf_tail_words(const uint8_t *p, size_t n, uint64_t w[2]) {
    uint8_t last[16] = {0};
    if (n) memcpy(last, p, n);
    memcpy(w, last, 16);
}

/* Two NH hashes of n bytes, n <= TF_NH_BYTES. */
static inline void tf_nh(const tf_digest_key *key, const uint8_t *p, size_t n, uint64_t out[4]) {
    unsigned __int128 a = 0, b = 0;
    const uint64_t *k = key->nh;
    uint64_t w[2];
    size_t i, whole = n / 16;
    for (i = 0; i < whole; i++, p += 16, k += 2) {
        memcpy(w, p, 16);
        a += (unsigned __int128)(w[0] + k[0]) * (w[1] + k[1]);
        b += (unsigned __int128)(w[0] + k[2]) * (w[1] + k[3]);
    }
    if (n % 16) {
        tf_tail_words(p, n % 16, w);
        a += (unsigned __int128)(w[0] + k[0]) * (w[1] + k[1]);
        b += (unsigned __int128)(w[0] + k[2]) * (w[1] + k[3]);
    }
    out[0] = (uint64_t)a;
    out[1] = (uint64_t)(a >> 64);
    out[2] = (uint64_t)b;
    out[3] = (uint64_t)(b >> 64);
}

/* One field: its length and its bytes, so that fields can not run into each other. */
static inline void tf_digest_bytes(tf_digest *d, const void *data, size_t n) {
    const uint8_t *p = (const uint8_t *)data;
    uint64_t w[4];
    size_t take;
    int i;
    tf_digest_word(d, n);
    if (n >= TF_NH_FROM) {
        while (n) {
            take = n < TF_NH_BYTES ? n : TF_NH_BYTES;
            tf_nh(d->key, p, take, w);
            for (i = 0; i < 4; i++) tf_digest_word(d, w[i]);
            p += take;
            n -= take;
        }
        return;
    }
    for (; n >= 8; n -= 8, p += 8) {
        memcpy(w, p, 8);
        tf_digest_word(d, w[0]);
    }
    if (n) {
        tf_tail_words(p, n, w);
        tf_digest_word(d, w[0]);
    }
}

static inline void tf_digest_end(tf_digest *d, uint64_t out[2]) {
    int i;
    tf_digest_word(d, d->words * 8 << 56);
    d->v2 ^= 0xee;
    for (i = 0; i < 4; i++) tf_sip_round(d);
    out[0] = d->v0 ^ d->v1 ^ d->v2 ^ d->v3;
    d->v1 ^= 0xdd;
    for (i = 0; i < 4; i++) tf_sip_round(d);
    out[1] = d->v0 ^ d->v1 ^ d->v2 ^ d->v3;
}
#endif
