# What the response caches of models share: entries by key, the least recently used evicted first, bytes exact; and the
# structs that its lock guards. What cache.pyx does with them is said there.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.request cimport Request
from triton_fast._native.sched.key cimport tf_digest_key
from triton_fast._native.sched.scheduler cimport Scheduler
from triton_fast._native.sched.tap cimport Tap

cdef enum:
    FLIGHT_SLOTS = 256
    DIGEST = 32             # bytes of a key in a cache elsewhere

# Under the store's lock, but for the last two, which are set before the request is given away.
cdef enum:
    SEAT_LOOKS = 0          # leads; another cache is being asked
    SEAT_TURNS = 1          # leads; is being handed to what is below
    SEAT_LEADS = 2          # leads; what is below has it
    SEAT_FOLLOWS = 3
    SEAT_LEFT = 4           # answered, taken back, or no longer ours

# A request that was not answered at once; in its arena, at Request.seat.
cdef struct Seat:
    Tap tap                 # first
    Flight* flight
    Seat* next              # those that follow, oldest first
    Seat* prev
    int32_t state
    int64_t looked_ns       # what looking it up took

# Equal requests under way: one leads, the others follow. Lives while there is one of them.
cdef struct Flight:
    uint64_t[2] key
    Flight* next            # same slot, or spare
    Layer* layer
    Request* leader         # NULL: the next is being chosen
    Seat* first
    Seat* last
    bint turning            # a thread is choosing
    bint over               # answered; nobody joins or leaves any more
    int32_t users           # threads that choose or answer; the last frees it
    Flight* asked_next      # of the cache elsewhere: the order of lookups
    int64_t asked_at
    uint8_t[32] digest      # its key there, zeros: not known

cdef struct Store:
    int32_t lock            # of everything here, of flights and of seats; held for a few instructions
    tf_digest_key secret
    Block** table           # NULL: keeps nothing
    size_t slots            # a power of two
    Block* newest           # by use
    Block* oldest
    int64_t budget          # bytes, for all that is counted in `used`
    int64_t used            # the table, and each entry's block with its header
    int64_t entries
    int64_t hits
    int64_t misses
    int64_t evictions
    int64_t lookup_ns
    int64_t insert_ns
    Flight* spare
    # A cache elsewhere (sched/remote.pyx), or NULL. ask, under the lock, takes the flight over until flight_looked:
    # True, and kick must be called without the lock; False: not now. keep takes a reference of the entry of its own.
    bint (*ask)(Store* s, Flight* f) noexcept nogil
    void (*kick)(Store* s) noexcept nogil
    void (*keep)(Store* s, Block* entry, const uint8_t* digest) noexcept nogil
    void* elsewhere

cdef struct Layer:
    Scheduler base          # first
    Store* store
    uint64_t owner          # of its entries: this load of this model version
    int32_t waiting         # atomic; requests that follow or are being looked up
    int32_t looking         # atomic; flights that the cache elsewhere has
    int32_t sleepers        # in join; see core/park.pxd
    void* made_by           # the CacheLayer
    Flight* flights[256]


# The lock must be held but for the last two. What is taken out comes as a list linked by EntryHead.chain.
cdef Block* store_find(Store* s, const uint64_t* key) noexcept nogil
cdef void unlink_use(Store* s, Block* entry) noexcept nogil
cdef void link_newest(Store* s, Block* entry) noexcept nogil
# Keep the entry, whose head has its key, if the budget allows it at all; the store takes a reference of its own. What
# had the key, and what must go for it, is put before `taken`.
cdef bint store_insert(Store* s, Block* entry, Block** taken) noexcept nogil
# Let go of what was taken out.
cdef void release(Block* taken) noexcept nogil
# Drop the entries of an owner, or all (0).
cdef void store_remove_all(Store* s, uint64_t owner) noexcept nogil


cdef class NativeCache:
    cdef Store* store
