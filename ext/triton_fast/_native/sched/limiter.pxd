# The rate limiter: one for all models of a server. An instance with a place in it executes only while it holds all that
# its place needs. Who is served next is a rule of its own (limiter.pyx); the engine only asks, waits and gives back.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

from triton_fast._native.core.native cimport tf_load32
from triton_fast._native.core.pthread cimport pthread_cond_t, pthread_mutex_t

cdef enum:
    PLACE_IDLE = 0
    PLACE_WAITING = 1
    PLACE_HOLDING = 2


# One resource of one device, or a global one. All is under the lock of its Limits.
cdef struct Resource:
    Resource* next
    int64_t total
    Resource* root          # one for all resources that places tie together, directly or by others
    int64_t used            # above total for a while, when the model that needed most has gone
    uint64_t served         # of a root: the highest value at which somebody was served
    uint64_t round          # when `reserved` was counted
    int64_t reserved        # what places want that wait before the one that is looked at
    int64_t next_total      # written outside of the lock: what holds from now on
    Resource* next_root

cdef struct Need:
    Resource* resource
    int64_t count

cdef struct Limits:
    pthread_mutex_t lock
    Place* first            # places that wait, in the order in which they are served
    Place* all              # that have joined and not left
    Resource* resources
    uint64_t round

# Of one instance, whose thread alone asks, waits and releases.
cdef struct Place:
    Limits* limits
    pthread_cond_t turn
    Place* next
    Place* prev
    int32_t state           # PLACE_*; atomic
    bint interrupted
    uint32_t priority       # at least 1
    uint64_t value          # executions x priority, see limiter.pyx
    uint64_t executions
    int32_t n
    Need* needs
    Place* other            # in Limits.all
    size_t instance         # whose it is, and of which model: for who looks on (Limiter.places)
    size_t model


# Ask, unless that was done before, and wait until all is held: 0. -1: interrupted, nothing is held or asked for.
cdef int place_acquire(Place* p) noexcept nogil
# Give all back. `executed`: it counts. `again`: ask anew at once, so that this place has its turn against those that
# wait.
cdef void place_release(Place* p, bint executed, bint again) noexcept nogil
# Have the next or the present place_acquire return -1, once. From any thread.
cdef void place_interrupt(Place* p) noexcept nogil


# Whether p asked, and maybe holds already. For the instance's own thread.
cdef inline bint place_asked(Place* p) noexcept nogil:
    return tf_load32(&p.state) != PLACE_IDLE


cdef class Limiter:
    cdef Limits* ptr
    cdef dict explicit      # device, or None for every device -> {name: amount}
    cdef dict resources     # (name, device or None) -> address of its Resource
    cdef dict wanted        # key of a place -> {(name, device or None): amount}
    cdef dict models        # key of a place -> (key of its model, the model's name)
    cdef list gone          # keys of places that were dropped without leaving
    cdef object guard       # of the dicts
    cdef object __weakref__
    cdef object keys
    cdef dict totals(self, dict wanted)
    cdef int apply(self, dict totals, dict wanted) except -1


cdef class LimiterPlace:
    cdef Place* ptr
    cdef Limiter limiter    # None until it has joined
    cdef bint left
    cdef object key
    cdef Place* alive(self) except NULL
