# API keys that were found good, remembered so that a request's key is looked up without the interpreter. What a key is
# good for is decided in Python (frontends/keys.py), once for each key after each change of the keys.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from triton_fast._native.sched.key cimport tf_digest_key

cdef enum:
    KEY_MAX = 96            # bytes of a key; a longer one is none
    # Which header a key came in; what is no such header is KEY_NONE.
    KEY_NONE = 0
    KEY_BEARER = 1          # Authorization: Bearer <key>
    KEY_OWN = 2             # X-Api-Key: <key>, which goes before the other
    KEY_OTHER = 3           # Authorization of another kind


# Where a request's key was found, so that the next one with the same bytes need not look. generation 0: nowhere.
cdef struct KeyHold:
    int64_t generation
    int32_t at


cdef struct KeyEntry:
    uint64_t hash
    uint32_t scopes         # bits; what they mean is the caller's
    int32_t len             # 0: free
    int64_t period_ns       # between requests at the key's rate; 0 = any rate
    int64_t due_ns          # when the next one is due, had all come at that rate
    char[KEY_MAX] text


cdef class KeyGate:
    cdef KeyEntry* entries
    cdef size_t mask        # slots - 1
    cdef int32_t room       # keys that may still be remembered
    cdef tf_digest_key seed
    cdef readonly int64_t generation
    cdef public uint32_t infer      # scopes of which one lets infer
    cdef public object judge        # (key, counts) -> refusal or None
    cdef public int64_t now         # ns, for tests; 0 = the clock's

    cdef uint64_t hash_of(self, const char* key, size_t n) noexcept
    cdef int32_t place(self, const char* key, size_t n, uint64_t hashed) noexcept
    # Its entry, or -1.
    cdef int32_t find(self, const char* key, size_t n) noexcept
    # Count one request of the key; False: it has used up its rate.
    cdef bint count(self, KeyEntry* entry) noexcept
    # Whether what the last request with these bytes found still holds; counts this one.
    cdef bint holds(self, KeyHold* hold) noexcept
    # None when this key lets infer, else what to refuse with. counts: the request is one of its rate. hold: empty,
    # or left by an earlier call with the same key.
    cdef object refusal(self, const char* key, size_t n, KeyHold* hold, bint counts)


# KEY_* of a header field, and the key in it.
cdef int32_t key_field(const char* name, size_t n, const char* value, size_t m, const char** key,
                       size_t* key_len) noexcept
