# Store, flights and the layer of the response cache; see cache.pxd. Nothing here takes the GIL, waits or copies what a
# hit hands out. Knows packed entries (entry.pxd), no model and no protocol.
import itertools
import os

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset, strlen

from triton_fast._native.core.memory cimport Block, block_ref, block_unref
from triton_fast._native.core.native cimport (
    TF_CANCELLED, TF_OK, TF_UNAVAILABLE, now_ns, tf_add32, tf_error, tf_fail, tf_load32, tf_lock, tf_store32, tf_unlock,
)
from triton_fast._native.core.park cimport park_begin, park_end, park_wait, park_wake
from triton_fast._native.core.request cimport (
    FLAG_PADDING, FLAG_PART, REQ_CANCELLED, REQ_DONE, REQ_NEW, REQ_QUEUED, Request, Response, Sink, T_COMPUTED, T_INPUT,
    T_OUTPUT, T_QUEUED, T_STARTED, request_alloc, response_fail_error,
)
from triton_fast._native.core.respond cimport request_cancel
from triton_fast._native.core.stats cimport (
    FAIL_CANCELED, FAIL_REJECTED, N_PHASES, PHASE_QUEUE, PHASE_REQUEST, stats_cached, stats_failure, stats_missed,
)
from triton_fast._native.sched.entry cimport entry_answer, entry_pack, head_of
from triton_fast._native.sched.key cimport request_key, tf_digest_key
from triton_fast._native.sched.scheduler cimport (
    SUBMIT_OK, SUBMIT_REFUSED, SUBMIT_STOPPED, NativeScheduler, Scheduler, layer_begin,
)
from triton_fast._native.sched.tap cimport tap_begin, tap_end, tap_pass

cdef enum:
    MIN_SLOTS = 64
    MAX_SLOTS = 1 << 20
    BYTES_A_SLOT = 4096     # of the budget

cdef const char* STOPPING = b"Server is stopping, scheduler for model has stopped accepting new inference requests"
cdef const char* CANCELLED = b"the request was cancelled"

_owners = itertools.count(1)


# ---- the store; all under its lock

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


# ---- flights; all under the lock

cdef inline Flight** flight_slot(Layer* l, const uint64_t* key) noexcept nogil:
    return &l.flights[key[1] & (FLIGHT_SLOTS - 1)]


cdef Flight* flight_find(Layer* l, const uint64_t* key) noexcept nogil:
    cdef Flight* f = flight_slot(l, key)[0]
    while f != NULL and (f.key[0] != key[0] or f.key[1] != key[1]):
        f = f.next
    return f


# Takes the store's spare one, which there must be.
cdef Flight* flight_begin(Layer* l, const uint64_t* key, Request* leader) noexcept nogil:
    cdef Flight* f = l.store.spare
    l.store.spare = f.next
    memset(f, 0, sizeof(Flight))
    memcpy(f.key, key, sizeof(f.key))
    f.layer = l
    f.leader = leader
    f.next = flight_slot(l, key)[0]
    flight_slot(l, key)[0] = f
    return f


cdef void flight_unlink(Flight* f) noexcept nogil:
    cdef Flight** link = flight_slot(f.layer, f.key)
    while link[0] != f:
        link = &link[0].next
    link[0] = f.next


cdef void flight_spare(Store* s, Flight* f) noexcept nogil:
    f.next = s.spare
    s.spare = f


# A thread no longer works on f; the last one frees it when it is over.
cdef inline void flight_let_go(Store* s, Flight* f) noexcept nogil:
    f.users -= 1
    if f.over and f.users == 0:
        flight_spare(s, f)


cdef void follow(Flight* f, Seat* seat) noexcept nogil:
    seat.next = NULL
    seat.prev = f.last
    if f.last != NULL:
        f.last.next = seat
    else:
        f.first = seat
    f.last = seat
    seat.flight = f
    seat.state = SEAT_FOLLOWS


cdef void unfollow(Flight* f, Seat* seat) noexcept nogil:
    if seat.prev != NULL:
        seat.prev.next = seat.next
    else:
        f.first = seat.next
    if seat.next != NULL:
        seat.next.prev = seat.prev
    else:
        f.last = seat.prev


# ---- answers

# Fill r from the entry, stamp and count it as a hit. queue_ns: how long it waited for it.
cdef void answer(Layer* l, Request* r, Block* entry, int64_t queue_ns, int64_t began) noexcept nogil:
    cdef int64_t[N_PHASES] phase
    cdef tf_error e
    cdef int64_t done
    cdef bint filled = entry_answer(entry, &r.response) == 0
    done = now_ns()
    r.stamps[T_STARTED] = done
    r.stamps[T_INPUT] = done
    r.stamps[T_COMPUTED] = done
    r.stamps[T_OUTPUT] = done
    r.response.next = NULL
    tf_store32(&r.state, REQ_DONE)
    if not filled:
        tf_fail(&e, TF_UNAVAILABLE, "out of memory")
        response_fail_error(&r.response, &e)
        stats_failure(l.base.stats, FAIL_REJECTED, done - r.stamps[T_QUEUED])
        return
    memset(phase, 0, sizeof(phase))
    phase[PHASE_REQUEST] = done - r.stamps[T_QUEUED]
    phase[PHASE_QUEUE] = queue_ns
    stats_cached(l.base.stats, phase, done - began)


# Answer all that followed. Responses of one sink travel as one chain.
cdef void answer_all(Layer* l, Seat* seat, Block* entry) noexcept nogil:
    cdef Request* r
    cdef Seat* after
    cdef Sink* sink = NULL
    cdef Response* first = NULL
    cdef Response* last = NULL
    cdef int64_t began
    while seat != NULL:
        after = seat.next
        r = seat.tap.request
        began = now_ns()
        answer(l, r, entry, began - r.stamps[T_QUEUED], began - seat.looked_ns)
        tf_add32(&l.waiting, -1)
        tap_end(&seat.tap)
        tf_store32(&seat.state, SEAT_LEFT)
        if r.sink != sink:
            if sink != NULL:
                sink.deliver(sink, first, last)
            sink = r.sink
            first = NULL
        if first == NULL:
            first = &r.response
        else:
            last.next = &r.response
        last = &r.response
        seat = after
    if sink != NULL:
        sink.deliver(sink, first, last)


# Answer a request that nothing has with an error.
cdef void answer_error(Layer* l, Seat* seat, tf_error* e, int reason) noexcept nogil:
    cdef Request* r = seat.tap.request
    tap_end(&seat.tap)
    tf_store32(&seat.state, SEAT_LEFT)
    response_fail_error(&r.response, e)
    if reason >= 0:
        stats_failure(l.base.stats, reason, now_ns() - r.stamps[T_QUEUED])
    tf_store32(&r.state, REQ_DONE)
    r.response.next = NULL
    r.sink.deliver(r.sink, &r.response, &r.response)


# Hand r to what is below, from a thread that did not bring it; a refusal is its answer. False: it was refused.
cdef bint hand_down(Layer* l, Seat* seat) noexcept nogil:
    cdef Request* r = seat.tap.request
    cdef Scheduler* inner = l.base.inner
    cdef tf_error e
    cdef bint wake = False
    cdef int status
    if tf_load32(&r.cancelled):
        tf_fail(&e, TF_CANCELLED, "%s", CANCELLED)
        answer_error(l, seat, &e, FAIL_CANCELED)
        return False
    stats_missed(l.base.stats, 1, seat.looked_ns)
    status = inner.submit(inner, r, &wake, &e)
    if wake:
        inner.wake(inner)
    if status != SUBMIT_OK:
        # A full queue has counted it.
        answer_error(l, seat, &e, FAIL_REJECTED if status == SUBMIT_STOPPED else -1)
    return status == SUBMIT_OK


# Each of those that followed goes its own way: their answer can not be shared.
cdef void part_ways(Layer* l, Seat* seat) noexcept nogil:
    cdef Seat* after
    cdef Request* r
    while seat != NULL:
        after = seat.next
        r = seat.tap.request
        tf_add32(&l.waiting, -1)
        tf_store32(&r.state, REQ_NEW)
        tf_store32(&seat.state, SEAT_TURNS)
        seat.tap.sink.deliver = pass_on
        hand_down(l, seat)
        seat = after


# The last of a request's responses, as if it had never been here.
cdef inline void hand_back(Seat* seat, Response* first, Response* last) noexcept nogil:
    cdef Sink* sink = seat.tap.sink.outer
    tap_end(&seat.tap)
    sink.deliver(sink, first, last)


cdef void pass_on(Sink* sink, Response* first, Response* last) noexcept nogil:
    hand_back(<Seat*>sink, first, last)


# Make followers lead, one after the other, until one is taken. The caller has set f.turning, and is a user of f.
cdef void turn(Layer* l, Flight* f) noexcept nogil:
    cdef Store* s = l.store
    cdef Seat* seat
    cdef bint taken
    while True:
        tf_lock(&s.lock)
        if f.over or f.leader != NULL:
            f.turning = False
            flight_let_go(s, f)
            tf_unlock(&s.lock)
            return
        seat = f.first
        if seat == NULL:
            flight_unlink(f)
            flight_spare(s, f)
            tf_unlock(&s.lock)
            return
        unfollow(f, seat)
        f.leader = seat.tap.request
        seat.state = SEAT_TURNS
        tf_store32(&f.leader.state, REQ_NEW)    # what is below has not seen it yet
        tf_unlock(&s.lock)
        tf_add32(&l.waiting, -1)
        taken = hand_down(l, seat)
        tf_lock(&s.lock)
        if not taken:
            f.leader = NULL
        elif f.leader != NULL and not f.over:
            seat.state = SEAT_LEADS             # it lives: it would have passed cache_deliver
        tf_unlock(&s.lock)


# The leader is gone without an answer to share. True: the caller must turn().
cdef inline bint leave(Flight* f, Seat* seat) noexcept nogil:
    cdef bint mine = not f.turning
    f.leader = NULL
    seat.state = SEAT_LEFT
    if mine:
        f.turning = True
        f.users += 1
    return mine


# The flight is over: what followed is the caller's, a user of f until all of it is answered.
cdef Seat* flight_over(Flight* f) noexcept nogil:
    cdef Seat* followers = f.first
    flight_unlink(f)
    f.over = True
    f.leader = NULL
    f.first = NULL
    f.last = NULL
    f.users += 1
    return followers


cdef void finish(Layer* l, Flight* f, Seat* followers, Block* entry) noexcept nogil:
    if entry != NULL:
        answer_all(l, followers, entry)
    else:
        part_ways(l, followers)
    tf_lock(&l.store.lock)
    flight_let_go(l.store, f)
    tf_unlock(&l.store.lock)


cdef void cache_deliver(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Seat* seat = <Seat*>sink
    cdef Flight* f = seat.flight
    cdef Layer* l = f.layer
    cdef Store* s = l.store
    cdef Block* entry = NULL
    cdef Block* taken = NULL
    cdef Seat* followers
    cdef uint8_t[DIGEST] digest
    cdef bint unfit = False, mine
    cdef int64_t began
    if not last.is_final:
        tap_pass(&seat.tap, first, last)
        return
    if last.code != TF_OK:
        tf_lock(&s.lock)
        mine = leave(f, seat)
        tf_unlock(&s.lock)
        hand_back(seat, first, last)
        if mine:
            turn(l, f)
        return
    began = now_ns()
    entry = entry_pack(last, &unfit)
    if entry != NULL:
        memcpy(head_of(entry).key, f.key, sizeof(f.key))
        head_of(entry).owner = l.owner
    tf_lock(&s.lock)
    followers = flight_over(f)
    seat.state = SEAT_LEFT
    memcpy(digest, f.digest, DIGEST)
    if entry != NULL:
        store_insert(s, entry, &taken)
        s.insert_ns += now_ns() - began
    tf_unlock(&s.lock)
    release(taken)
    if entry != NULL:
        stats_missed(l.base.stats, 0, now_ns() - began)
        if s.keep != NULL:
            s.keep(s, entry, digest)
    hand_back(seat, first, last)
    finish(l, f, followers, entry)
    block_unref(entry)


# ---- the layer

# What a request finds, under the lock: an entry, with a reference, or a flight: one to follow, or a new one that it
# leads. Neither: a flight could not be had.
cdef Block* look(Layer* l, Request* r, const uint64_t* key, Flight** flight, bint* leads) noexcept nogil:
    cdef Store* s = l.store
    cdef Block* entry
    flight[0] = NULL
    leads[0] = False
    entry = store_find(s, key)
    if entry != NULL:
        block_ref(entry)
        unlink_use(s, entry)
        link_newest(s, entry)
        return entry
    flight[0] = flight_find(l, key)
    if flight[0] == NULL and s.spare != NULL:
        flight[0] = flight_begin(l, key, r)
        leads[0] = True
    return NULL


# One more to spare. True: and the lock is held.
cdef bint more_flights(Store* s) noexcept nogil:
    cdef Flight* f = <Flight*>malloc(sizeof(Flight))
    if f == NULL:
        return False
    tf_lock(&s.lock)
    flight_spare(s, f)
    return True


cdef int cache_submit(Scheduler* sched, Request* r, bint* wake, tf_error* e) noexcept nogil:
    cdef Layer* l = <Layer*>sched
    cdef Store* s = l.store
    cdef Scheduler* inner = sched.inner
    cdef int64_t began = now_ns()
    cdef uint64_t[2] key
    cdef Block* entry
    cdef Flight* f = NULL
    cdef Seat* seat
    cdef bint leads = False, asks = False
    wake[0] = False
    r.seat = NULL
    if (tf_load32(&sched.stopping) or r.flags & (FLAG_PART | FLAG_PADDING)
            or request_key(r, &s.secret, l.owner, key) != 0):
        return inner.submit(inner, r, wake, e)
    seat = <Seat*>request_alloc(r, sizeof(Seat))
    if seat == NULL:
        return inner.submit(inner, r, wake, e)
    memset(seat, 0, sizeof(Seat))
    if r.stamps[T_QUEUED] == 0:
        r.stamps[T_QUEUED] = began
    tf_lock(&s.lock)
    entry = look(l, r, key, &f, &leads)
    if entry == NULL and f == NULL:
        tf_unlock(&s.lock)
        if not more_flights(s):
            return inner.submit(inner, r, wake, e)
        entry = look(l, r, key, &f, &leads)     # locked again
    seat.looked_ns = now_ns() - began
    s.lookup_ns += seat.looked_ns
    if entry != NULL:
        s.hits += 1
        tf_unlock(&s.lock)
        answer(l, r, entry, 0, began)
        block_unref(entry)
        r.sink.deliver(r.sink, &r.response, &r.response)
        return SUBMIT_OK
    s.misses += 1
    r.seat = seat
    tap_begin(&seat.tap, r, cache_deliver)
    if not leads:
        tf_store32(&r.state, REQ_QUEUED)
        follow(f, seat)
        tf_add32(&l.waiting, 1)
        tf_unlock(&s.lock)
        return SUBMIT_OK
    seat.flight = f
    seat.state = SEAT_LEADS
    if s.ask != NULL:
        seat.state = SEAT_LOOKS
        tf_add32(&l.looking, 1)
        asks = s.ask(s, f)
        if asks:
            tf_store32(&r.state, REQ_QUEUED)
            tf_add32(&l.waiting, 1)
        else:
            seat.state = SEAT_LEADS
            tf_add32(&l.looking, -1)
    tf_unlock(&s.lock)
    if asks:
        return SUBMIT_OK
    return lead(l, f, seat, wake, e)


# The first leader, on the thread that brought it: a refusal is the caller's to tell.
cdef int lead(Layer* l, Flight* f, Seat* seat, bint* wake, tf_error* e) noexcept nogil:
    cdef Scheduler* inner = l.base.inner
    cdef Request* r = seat.tap.request
    cdef int status
    stats_missed(l.base.stats, 1, seat.looked_ns)
    status = inner.submit(inner, r, wake, e)
    if status == SUBMIT_OK:
        return status
    tf_lock(&l.store.lock)
    leave(f, seat)
    tf_unlock(&l.store.lock)
    tap_end(&seat.tap)
    r.seat = NULL
    turn(l, f)
    return status


cdef void flight_looked(Flight* f, Block* entry) noexcept nogil:
    cdef Layer* l = f.layer
    cdef Store* s = l.store
    cdef Seat* seat
    tf_lock(&s.lock)
    seat = <Seat*>f.leader.seat
    f.leader = NULL
    # As the first of those that follow: all are answered, or it is the first to lead.
    follow_first(f, seat)
    if entry != NULL:
        seat = flight_over(f)
    else:
        f.turning = True
        f.users += 1
    tf_unlock(&s.lock)
    if entry != NULL:
        finish(l, f, seat, entry)
    else:
        turn(l, f)
    tf_add32(&l.looking, -1)
    park_wake(&l.sleepers)


cdef void follow_first(Flight* f, Seat* seat) noexcept nogil:
    seat.prev = NULL
    seat.next = f.first
    if f.first != NULL:
        f.first.prev = seat
    else:
        f.last = seat
    f.first = seat
    seat.state = SEAT_FOLLOWS


cdef bint cache_cancel(Scheduler* sched, Request* r, bint tell) noexcept nogil:
    cdef Layer* l = <Layer*>sched
    cdef Store* s = l.store
    cdef Seat* seat = <Seat*>r.seat
    cdef Flight* f
    cdef bint shared, mine
    if seat == NULL:
        return sched.inner.cancel(sched.inner, r, tell)
    tf_lock(&s.lock)
    f = seat.flight
    if seat.state == SEAT_FOLLOWS and not f.over:
        unfollow(f, seat)
        seat.state = SEAT_LEFT
        tf_store32(&r.state, REQ_CANCELLED)
        tf_unlock(&s.lock)
        tf_add32(&l.waiting, -1)
        tap_end(&seat.tap)
        stats_failure(l.base.stats, FAIL_CANCELED, now_ns() - r.stamps[T_QUEUED])
        return True
    if seat.state != SEAT_LEADS:
        tf_unlock(&s.lock)
        if tell:
            request_cancel(r)
        return False
    shared = f.first != NULL
    tf_unlock(&s.lock)
    # Others want its answer: one that runs is not told to stop.
    if not sched.inner.cancel(sched.inner, r, tell and not shared):
        return False
    tf_lock(&s.lock)
    mine = leave(f, seat)
    tf_unlock(&s.lock)
    tap_end(&seat.tap)
    if mine:
        turn(l, f)
    return True


# Answer all that follow with an error. Their leaders are the business of what is below.
cdef void abort_followers(Layer* l) noexcept nogil:
    cdef Store* s = l.store
    cdef Flight* f
    cdef Seat* seat
    cdef Seat* left = NULL
    cdef tf_error e
    cdef int k
    tf_fail(&e, TF_UNAVAILABLE, "%s", STOPPING)
    tf_lock(&s.lock)
    for k in range(FLIGHT_SLOTS):
        f = l.flights[k]
        while f != NULL:
            while f.first != NULL:
                seat = f.first
                unfollow(f, seat)
                seat.state = SEAT_LEFT
                seat.next = left
                left = seat
            f = f.next
    tf_unlock(&s.lock)
    while left != NULL:
        seat = left
        left = seat.next
        tf_add32(&l.waiting, -1)
        answer_error(l, seat, &e, FAIL_REJECTED)


cdef void cache_stop(Scheduler* sched, bint abort) noexcept nogil:
    tf_store32(&sched.stopping, True)
    sched.inner.stop(sched.inner, abort)
    if abort:
        abort_followers(<Layer*>sched)


cdef void cache_join(Scheduler* sched) noexcept nogil:
    cdef Layer* l = <Layer*>sched
    park_begin(&l.sleepers)
    while tf_load32(&l.looking):
        park_wait(&l.sleepers, 0)
    park_end(&l.sleepers)
    if sched.inner.join != NULL:
        sched.inner.join(sched.inner)


cdef int32_t cache_pending(Scheduler* sched) noexcept nogil:
    return sched.inner.pending(sched.inner) + tf_load32(&(<Layer*>sched).waiting)


# ---- Python's side

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
        remove_all(self.store, 0)
        while self.store.spare != NULL:
            f = self.store.spare
            self.store.spare = f.next
            free(f)
        free(self.store.table)
        free(self.store)

    def clear(self):
        """Drop every entry; responses on their way keep what they were given."""
        remove_all(self.store, 0)

    def layer(self, bytes identity=b""):
        """Return a layer for one model version, to be given to ``NativeModel.add_layer``.

        identity: what names this model version, and what it computes, to other servers that use the same cache.
        """
        return CacheLayer(self, identity)

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


cdef void remove_all(Store* s, uint64_t owner) noexcept nogil:
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


cdef class CacheLayer(NativeScheduler):
    """The response cache before one model version. Made by ``NativeCache.layer``; its entries end with it."""

    def __cinit__(self, NativeCache cache not None, bytes identity=b""):
        self.cache = cache
        self.identity = identity
        self.layer = <Layer*>calloc(1, sizeof(Layer))
        if self.layer == NULL:
            raise MemoryError
        layer_begin(&self.layer.base)
        self.layer.base.submit = cache_submit
        self.layer.base.cancel = cache_cancel
        self.layer.base.stop = cache_stop
        self.layer.base.join = cache_join
        self.layer.base.pending = cache_pending
        self.layer.store = cache.store
        self.layer.owner = next(_owners)
        self.layer.made_by = <void*>self
        self.ptr = &self.layer.base

    def __dealloc__(self):
        if self.layer != NULL:
            remove_all(self.layer.store, self.layer.owner)
            free(self.layer)
