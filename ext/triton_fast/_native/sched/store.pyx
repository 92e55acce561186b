# The response cache's table and order of use. See store.pxd.
import os

from libc.stdint cimport int64_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy

from triton_fast._native.core.memory cimport Block, block_ref, block_unref
from triton_fast._native.core.native cimport tf_lock, tf_unlock
from triton_fast._native.sched.entry cimport head_of
from triton_fast._native.sched.key cimport tf_digest_key

cdef enum:
    MIN_SLOTS = 64
    MAX_SLOTS = 1 << 20
    BYTES_A_SLOT = 4096     # of the budget


cdef inline int64_t charge(Block* entry) noexcept nogil:
    return <int64_t>(entry.cap + sizeof(Block))


cdef inline Block** slot_of(Store* s, const uint64_t* key) noexcept nogil:
    return &s.table[key[0] & (s.slots - 1)]


cdef Block* store_find(Store* s, const uint64_t* key) noexcept nogil:
    cdef Block* entry
    if s.table == NULL:
        return NULL
    entry = slot_of(s, key)[0]
    while entry != NULL and (head_of(entry).key[0] != key[0] or head_of(entry).key[1] != key[1]):
        entry = head_of(entry).chain
    return entry


cdef void unlink_use(Store* s, Block* entry) noexcept nogil:
    cdef Block* newer = head_of(entry).newer
    cdef Block* older = head_of(entry).older
    if newer != NULL:
        head_of(newer).older = older
    else:
        s.newest = older
    if older != NULL:
        head_of(older).newer = newer
    else:
        s.oldest = newer


cdef void link_newest(Store* s, Block* entry) noexcept nogil:
    head_of(entry).newer = NULL
    head_of(entry).older = s.newest
    if s.newest != NULL:
        head_of(s.newest).newer = entry
    else:
        s.oldest = entry
    s.newest = entry


# Take an entry out and put it before `taken`, whose blocks are released when the lock is free.
cdef void store_remove(Store* s, Block* entry, Block** taken) noexcept nogil:
    cdef Block** link = slot_of(s, head_of(entry).key)
    while link[0] != entry:
        link = &head_of(link[0]).chain
    link[0] = head_of(entry).chain
    unlink_use(s, entry)
    s.used -= charge(entry)
    s.entries -= 1
    head_of(entry).chain = taken[0]
    taken[0] = entry


# Whether it was kept; then the store has a reference of its own.
cdef bint store_insert(Store* s, Block* entry, Block** taken) noexcept nogil:
    cdef int64_t cost = charge(entry)
    cdef Block* other
    if s.table == NULL or cost > s.budget - <int64_t>(s.slots * sizeof(Block*)):
        return False
    other = store_find(s, head_of(entry).key)
    if other != NULL:
        store_remove(s, other, taken)
    while s.used > s.budget - cost:
        store_remove(s, s.oldest, taken)
        s.evictions += 1
    block_ref(entry)
    head_of(entry).chain = slot_of(s, head_of(entry).key)[0]
    slot_of(s, head_of(entry).key)[0] = entry
    link_newest(s, entry)
    s.used += cost
    s.entries += 1
    return True


cdef void release(Block* taken) noexcept nogil:
    cdef Block* after
    while taken != NULL:
        after = head_of(taken).chain
        block_unref(taken)
        taken = after


cdef void store_remove_all(Store* s, uint64_t owner) noexcept nogil:
    cdef Block* entry
    cdef Block* after
    cdef Block* taken = NULL
    tf_lock(&s.lock)
    entry = s.oldest
    while entry != NULL:
        after = head_of(entry).newer
        if owner == 0 or head_of(entry).owner == owner:
            store_remove(s, entry, &taken)
        entry = after
    tf_unlock(&s.lock)
    release(taken)


cdef class NativeCache:
    """Responses of all models that a layer was made for, the least recently used evicted first.

    Parameters
    ----------
    size : int
        Bytes for entries and table together. 0 keeps nothing: equal requests under way still share one execution.
    """

    def __cinit__(self, int64_t size=0, **_):
        cdef size_t slots = MIN_SLOTS
        self.store = <Store*>calloc(1, sizeof(Store))
        if self.store == NULL:
            raise MemoryError
        secret = os.urandom(sizeof(tf_digest_key))
        memcpy(&self.store.secret, <const char*>secret, sizeof(tf_digest_key))
        if size <= 0:
            return
        while slots < MAX_SLOTS and slots * BYTES_A_SLOT < <size_t>size:
            slots *= 2
        if size < <int64_t>(slots * sizeof(Block*)):
            raise ValueError(f"a response cache needs at least {slots * sizeof(Block*)} bytes, got {size}")
        self.store.table = <Block**>calloc(slots, sizeof(Block*))
        if self.store.table == NULL:
            raise MemoryError
        self.store.slots = slots
        self.store.budget = size
        self.store.used = <int64_t>(slots * sizeof(Block*))

    def __dealloc__(self):
        cdef Flight* f
        if self.store == NULL:
            return
        store_remove_all(self.store, 0)
        while self.store.spare != NULL:
            f = self.store.spare
            self.store.spare = f.next
            free(f)
        free(self.store.table)
        free(self.store)

    def clear(self):
        """Drop every entry; responses on their way keep what they were given."""
        store_remove_all(self.store, 0)

    def stats(self):
        """Return the counters: budget, used, entries, hits, misses, evictions, lookup_ns, insert_ns.

        Those that waited for an equal request are misses here, and hits of their model.
        """
        cdef Store* s = self.store
        cdef Store copy
        tf_lock(&s.lock)
        memcpy(&copy, s, sizeof(Store))
        tf_unlock(&s.lock)
        return {
            "budget": copy.budget, "used": copy.used, "entries": copy.entries, "hits": copy.hits,
            "misses": copy.misses, "evictions": copy.evictions, "lookup_ns": copy.lookup_ns,
            "insert_ns": copy.insert_ns,
        }
