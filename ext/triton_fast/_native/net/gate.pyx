# See gate.pxd. A table with open addressing under a keyed hash: where a key lies tells nothing about it, and the bytes
# are compared in a time that depends on their number only. All of it runs under the GIL.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t, uint8_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memset

from triton_fast._native.core.native cimport now_ns
from triton_fast._native.sched.key cimport tf_digest, tf_digest_begin, tf_digest_bytes, tf_digest_end

import os

cdef enum:
    SECOND = 1000000000
    MAX_KEYS = 65536


cdef bint is_word(const char* p, const char* word, size_t n) noexcept:
    cdef size_t k
    cdef char c
    for k in range(n):
        c = p[k]
        if (c + 32 if c"A" <= c <= c"Z" else c) != word[k]:
            return False
    return True


cdef int32_t key_field(const char* name, size_t n, const char* value, size_t m, const char** key,
                       size_t* key_len) noexcept:
    cdef size_t at = 7
    key[0] = value
    key_len[0] = m
    if n == 9 and is_word(name, b"x-api-key", 9):
        return KEY_OWN
    if n != 13 or not is_word(name, b"authorization", 13):
        return KEY_NONE
    if m < 7 or not is_word(value, b"bearer ", 7):
        return KEY_OTHER
    while at < m and value[at] == c" ":
        at += 1
    key[0] = value + at
    key_len[0] = m - at
    return KEY_BEARER


cdef class KeyGate:
    """Keys found good. ``judge(key, counts)`` is asked about all others; see ``refusal`` in gate.pxd."""

    def __cinit__(self):
        cdef bytes seed = os.urandom(sizeof(self.seed))
        memcpy(&self.seed, <const char*>seed, sizeof(self.seed))

    def __init__(self):
        self.reset(0)

    def __dealloc__(self):
        free(self.entries)

    def reset(self, int32_t keys):
        """Forget every key, and make room for this many."""
        cdef size_t slots = 4
        cdef KeyEntry* fresh
        if not 0 <= keys <= MAX_KEYS:
            raise ValueError("too many keys")
        while slots < 2 * (<size_t>keys + 1):
            slots *= 2
        fresh = <KeyEntry*>calloc(slots, sizeof(KeyEntry))
        if fresh == NULL:
            raise MemoryError
        if self.entries != NULL:
            memset(self.entries, 0, (self.mask + 1) * sizeof(KeyEntry))
            free(self.entries)
        self.entries = fresh
        self.mask = slots - 1
        self.room = keys
        self.generation += 1

    cdef uint64_t hash_of(self, const char* key, size_t n) noexcept:
        cdef tf_digest d
        cdef uint64_t[2] out
        tf_digest_begin(&d, &self.seed)
        tf_digest_bytes(&d, key, n)
        tf_digest_end(&d, out)
        return out[0]

    # Where the key lies, or ~ the free slot where it would.
    cdef int32_t place(self, const char* key, size_t n, uint64_t hashed) noexcept:
        cdef size_t at = <size_t>hashed & self.mask, k
        cdef KeyEntry* entry
        cdef uint8_t differs
        while True:             # ends: half of the slots are free
            entry = self.entries + at
            if entry.len == 0:
                return ~<int32_t>at
            if entry.hash == hashed and <size_t>entry.len == n:
                differs = 0
                for k in range(n):
                    differs |= <uint8_t>(entry.text[k] ^ key[k])
                if differs == 0:
                    return <int32_t>at
            at = (at + 1) & self.mask

    cdef int32_t find(self, const char* key, size_t n) noexcept:
        cdef int32_t at
        if n == 0 or n > KEY_MAX:
            return -1
        at = self.place(key, n, self.hash_of(key, n))
        return at if at >= 0 else -1

    cdef bint count(self, KeyEntry* entry) noexcept:
        cdef int64_t now, due
        if entry.period_ns == 0:
            return True
        now = self.now if self.now else now_ns()
        due = max(entry.due_ns, now)
        # A second's worth may come at once.
        if due - now > max(<int64_t>0, SECOND - entry.period_ns):
            return False
        entry.due_ns = due + entry.period_ns
        return True

    cdef bint holds(self, KeyHold* hold) noexcept:
        return hold.generation == self.generation and self.count(self.entries + hold.at)

    cdef object refusal(self, const char* key, size_t n, KeyHold* hold, bint counts):
        cdef int32_t at = hold.at if hold.generation == self.generation else self.find(key, n)
        hold.generation = 0
        if at < 0 or not self.entries[at].scopes & self.infer or (counts and not self.count(self.entries + at)):
            refused = self.judge(key[:min(n, <size_t>KEY_MAX + 1)], counts)
            if refused is not None:
                return refused
            at = self.find(key, n)
            if at < 0:
                return None
        hold.at = at
        hold.generation = self.generation
        return None

    # ---- for Python

    def remember(self, bytes key not None, uint32_t scopes, double rate=0):
        """Take a key that was found good. ``rate``: requests a second, 0 for any number."""
        cdef size_t n = len(key)
        cdef uint64_t hashed
        cdef int32_t at
        cdef KeyEntry* entry
        if not 0 < n <= KEY_MAX:
            raise ValueError("not a key")
        hashed = self.hash_of(key, n)
        at = self.place(key, n, hashed)
        if at < 0:
            if self.room == 0:
                raise ValueError("no room")
            self.room -= 1
            at = ~at
        entry = self.entries + at
        entry.hash = hashed
        entry.scopes = scopes
        entry.period_ns = max(<int64_t>1, <int64_t>min(SECOND / rate, 1e17)) if rate > 0 else 0
        entry.due_ns = 0
        memcpy(entry.text, <const char*>key, n)
        entry.len = <int32_t>n

    def scopes(self, bytes key not None):
        """Return the scopes of a key that was found good, None of any other."""
        cdef int32_t at = self.find(key, len(key))
        return None if at < 0 else self.entries[at].scopes

    def take(self, bytes key not None):
        """Count one request of a key that was found good; False when it has used up its rate."""
        cdef int32_t at = self.find(key, len(key))
        return at >= 0 and self.count(self.entries + at)
