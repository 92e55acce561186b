# The response cache: a store that models share, and the layer of one model over it. A request whose answer is stored
# gets it at once, on the thread that submits it; one that equals a request under way waits for that one's answer; any
# other goes on, and its answer is stored on the thread that delivers it.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.request cimport Request
from triton_fast._native.sched.key cimport tf_digest_key
from triton_fast._native.sched.scheduler cimport NativeScheduler, Scheduler
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
    # A cache elsewhere (sched/remote.pyx). ask takes the flight over until flight_looked: True; False: not now. keep
    # takes a reference of the entry of its own.
    bint (*ask)(Store* s, Flight* f) noexcept nogil
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


# The cache elsewhere has answered: with an entry, of which the caller keeps its reference, or NULL.
cdef void flight_looked(Flight* f, Block* entry) noexcept nogil


cdef class NativeCache:
    cdef Store* store

cdef class CacheLayer(NativeScheduler):
    cdef Layer* layer
    cdef readonly NativeCache cache
    cdef readonly bytes identity
