# Flights and the layer of the response cache; see cache.pxd. Nothing here takes the GIL, waits or copies what a
# hit hands out. Knows packed entries (entry.pxd), no model and no protocol.
import itertools

from libc.stdint cimport int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy, memset

from triton_fast._native.core.marks cimport (
    FLAG_DEVICE, FLAG_LENT, FLAG_PADDING, FLAG_PART, REQ_CANCELLED, REQ_DONE, REQ_NEW, REQ_QUEUED, T_COMPUTED, T_INPUT,
    T_OUTPUT, T_QUEUED, T_STARTED,
)
from triton_fast._native.core.memory cimport Block, block_ref, block_unref
from triton_fast._native.core.native cimport (
    TF_CANCELLED, TF_OK, TF_UNAVAILABLE, now_ns, tf_add32, tf_error, tf_fail, tf_load32, tf_lock, tf_store32, tf_unlock,
)
from triton_fast._native.core.park cimport park_begin, park_end, park_wait, park_wake
from triton_fast._native.core.regions cimport lent_settle_all
from triton_fast._native.core.request cimport Request, Response, Sink, request_alloc, response_fail_error
from triton_fast._native.core.respond cimport request_cancel
from triton_fast._native.core.stats cimport (
    FAIL_CANCELED, FAIL_REJECTED, N_PHASES, PHASE_QUEUE, PHASE_REQUEST, stats_cached, stats_failure, stats_miss_took,
    stats_missed,
)
from triton_fast._native.sched.entry cimport entry_answer, entry_pack, head_of
from triton_fast._native.sched.key cimport request_key
from triton_fast._native.sched.scheduler cimport (
    SUBMIT_OK, SUBMIT_STOPPED, NativeScheduler, Scheduler, layer_begin,
)
from triton_fast._native.sched.stopping cimport STOPPING
from triton_fast._native.sched.store cimport (
    DIGEST, FLIGHT_SLOTS, SEAT_FOLLOWS, SEAT_LEADS, SEAT_LEFT, SEAT_LOOKS, SEAT_TURNS, Flight, Layer, NativeCache, Seat,
    Store, link_newest, release, store_find, store_insert, store_remove_all, unlink_use,
)
from triton_fast._native.sched.tap cimport tap_begin, tap_end, tap_pass

cdef const char* CANCELLED = b"the request was cancelled"

_owners = itertools.count(1)


# ---- flights; all under the lock

cdef inline Flight** flight_slot(Layer* layer, const uint64_t* key) noexcept nogil:
    return &layer.flights[key[1] & (FLIGHT_SLOTS - 1)]


cdef Flight* flight_find(Layer* layer, const uint64_t* key) noexcept nogil:
    cdef Flight* f = flight_slot(layer, key)[0]
    while f != NULL and (f.key[0] != key[0] or f.key[1] != key[1]):
        f = f.next
    return f


# Takes the store's spare one, which there must be.
cdef Flight* flight_begin(Layer* layer, const uint64_t* key, Request* leader) noexcept nogil:
    cdef Flight* f = layer.store.spare
    layer.store.spare = f.next
    memset(f, 0, sizeof(Flight))
    memcpy(f.key, key, sizeof(f.key))
    f.layer = layer
    f.leader = leader
    f.next = flight_slot(layer, key)[0]
    flight_slot(layer, key)[0] = f
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
cdef void answer(Layer* layer, Request* r, Block* entry, int64_t queue_ns, int64_t began) noexcept nogil:
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
        stats_failure(layer.base.stats, FAIL_REJECTED, done - r.stamps[T_QUEUED])
        return
    memset(phase, 0, sizeof(phase))
    phase[PHASE_REQUEST] = done - r.stamps[T_QUEUED]
    phase[PHASE_QUEUE] = queue_ns
    stats_cached(layer.base.stats, phase, done - began)


# Answer all that followed. Responses of one sink travel as one chain.
cdef void answer_all(Layer* layer, Seat* seat, Block* entry) noexcept nogil:
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
        answer(layer, r, entry, began - r.stamps[T_QUEUED], began - seat.looked_ns)
        tf_add32(&layer.waiting, -1)
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
cdef void answer_error(Layer* layer, Seat* seat, tf_error* e, int reason) noexcept nogil:
    cdef Request* r = seat.tap.request
    tap_end(&seat.tap)
    tf_store32(&seat.state, SEAT_LEFT)
    response_fail_error(&r.response, e)
    if reason >= 0:
        stats_failure(layer.base.stats, reason, now_ns() - r.stamps[T_QUEUED])
    tf_store32(&r.state, REQ_DONE)
    r.response.next = NULL
    r.sink.deliver(r.sink, &r.response, &r.response)


# Hand r to what is below, from a thread that did not bring it; a refusal is its answer. False: it was refused.
cdef bint hand_down(Layer* layer, Seat* seat) noexcept nogil:
    cdef Request* r = seat.tap.request
    cdef Scheduler* inner = layer.base.inner
    cdef tf_error e
    cdef bint wake = False
    cdef int status
    if tf_load32(&r.cancelled):
        tf_fail(&e, TF_CANCELLED, "%s", CANCELLED)
        answer_error(layer, seat, &e, FAIL_CANCELED)
        return False
    stats_missed(layer.base.stats, 1, seat.looked_ns)
    status = inner.submit(inner, r, &wake, &e)
    if wake:
        inner.wake(inner)
    if status != SUBMIT_OK:
        # A full queue has counted it.
        answer_error(layer, seat, &e, FAIL_REJECTED if status == SUBMIT_STOPPED else -1)
    return status == SUBMIT_OK


# Each of those that followed goes its own way: their answer can not be shared.
cdef void part_ways(Layer* layer, Seat* seat) noexcept nogil:
    cdef Seat* after
    cdef Request* r
    while seat != NULL:
        after = seat.next
        r = seat.tap.request
        tf_add32(&layer.waiting, -1)
        tf_store32(&r.state, REQ_NEW)
        tf_store32(&seat.state, SEAT_TURNS)
        seat.tap.sink.deliver = pass_on
        hand_down(layer, seat)
        seat = after


# The last of a request's responses, as if it had never been here.
cdef inline void hand_back(Seat* seat, Response* first, Response* last) noexcept nogil:
    cdef Sink* sink = seat.tap.sink.outer
    tap_end(&seat.tap)
    sink.deliver(sink, first, last)


cdef void pass_on(Sink* sink, Response* first, Response* last) noexcept nogil:
    hand_back(<Seat*>sink, first, last)


# Make followers lead, one after the other, until one is taken. The caller has set f.turning, and is a user of f.
cdef void turn(Layer* layer, Flight* f) noexcept nogil:
    cdef Store* s = layer.store
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
        tf_add32(&layer.waiting, -1)
        taken = hand_down(layer, seat)
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


cdef void finish(Layer* layer, Flight* f, Seat* followers, Block* entry) noexcept nogil:
    if entry != NULL:
        answer_all(layer, followers, entry)
    else:
        part_ways(layer, followers)
    tf_lock(&layer.store.lock)
    flight_let_go(layer.store, f)
    tf_unlock(&layer.store.lock)


cdef void cache_deliver(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Seat* seat = <Seat*>sink
    cdef Flight* f = seat.flight
    cdef Layer* layer = f.layer
    cdef Store* s = layer.store
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
            turn(layer, f)
        return
    began = now_ns()
    entry = entry_pack(last, &unfit)
    if entry != NULL:
        memcpy(head_of(entry).key, f.key, sizeof(f.key))
        head_of(entry).owner = layer.owner
    tf_lock(&s.lock)
    followers = flight_over(f)
    seat.state = SEAT_LEFT
    memcpy(digest, f.digest, DIGEST)
    if entry != NULL:
        store_insert(s, entry, &taken)
        s.insert_ns += now_ns() - began
    tf_unlock(&s.lock)
    release(taken)
    stats_miss_took(layer.base.stats, seat.looked_ns + now_ns() - began)
    if entry != NULL:
        stats_missed(layer.base.stats, 0, now_ns() - began)
        if s.keep != NULL:
            s.keep(s, entry, digest)
    hand_back(seat, first, last)
    finish(layer, f, followers, entry)
    block_unref(entry)


# ---- the layer

# What a request finds, under the lock: an entry, with a reference, or a flight: one to follow, or a new one that it
# leads. Neither: a flight could not be had.
cdef Block* look(Layer* layer, Request* r, const uint64_t* key, Flight** flight, bint* leads) noexcept nogil:
    cdef Store* s = layer.store
    cdef Block* entry
    flight[0] = NULL
    leads[0] = False
    entry = store_find(s, key)
    if entry != NULL:
        block_ref(entry)
        unlink_use(s, entry)
        link_newest(s, entry)
        return entry
    flight[0] = flight_find(layer, key)
    if flight[0] == NULL and s.spare != NULL:
        flight[0] = flight_begin(layer, key, r)
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


# What is looked up and what is executed must be the same, whatever the client does meanwhile; else it could file its
# own answer under the inputs of others. -1: it can not be had, so the request is not looked up.
cdef int settle(Request* r) noexcept nogil:
    cdef tf_error e
    # Its memory is a GPU's, and whoever submits must not wait for that. Triton's cache too knows host memory only.
    if r.flags & FLAG_DEVICE:
        return -1
    return lent_settle_all(r, &e)


cdef int cache_submit(Scheduler* sched, Request* r, bint* wake, tf_error* e) noexcept nogil:
    cdef Layer* layer = <Layer*>sched
    cdef Store* s = layer.store
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
            or (r.flags & (FLAG_DEVICE | FLAG_LENT) and settle(r) != 0)
            or request_key(r, &s.secret, layer.owner, key) != 0):
        return inner.submit(inner, r, wake, e)
    seat = <Seat*>request_alloc(r, sizeof(Seat))
    if seat == NULL:
        return inner.submit(inner, r, wake, e)
    memset(seat, 0, sizeof(Seat))
    if r.stamps[T_QUEUED] == 0:
        r.stamps[T_QUEUED] = began
    tf_lock(&s.lock)
    entry = look(layer, r, key, &f, &leads)
    if entry == NULL and f == NULL:
        tf_unlock(&s.lock)
        if not more_flights(s):
            return inner.submit(inner, r, wake, e)
        entry = look(layer, r, key, &f, &leads)     # locked again
    seat.looked_ns = now_ns() - began
    s.lookup_ns += seat.looked_ns
    if entry != NULL:
        s.hits += 1
        tf_unlock(&s.lock)
        answer(layer, r, entry, 0, began)
        block_unref(entry)
        r.sink.deliver(r.sink, &r.response, &r.response)
        return SUBMIT_OK
    s.misses += 1
    r.seat = seat
    tap_begin(&seat.tap, r, cache_deliver)
    if not leads:
        tf_store32(&r.state, REQ_QUEUED)
        follow(f, seat)
        tf_add32(&layer.waiting, 1)
        tf_unlock(&s.lock)
        return SUBMIT_OK
    seat.flight = f
    seat.state = SEAT_LEADS
    if s.ask != NULL:
        seat.state = SEAT_LOOKS
        tf_add32(&layer.looking, 1)
        asks = s.ask(s, f)
        if asks:
            tf_store32(&r.state, REQ_QUEUED)
            tf_add32(&layer.waiting, 1)
        else:
            seat.state = SEAT_LEADS
            tf_add32(&layer.looking, -1)
    tf_unlock(&s.lock)
    if asks:
        s.kick(s)
        return SUBMIT_OK
    return lead(layer, f, seat, wake, e)


# The first leader, on the thread that brought it: a refusal is the caller's to tell.
cdef int lead(Layer* layer, Flight* f, Seat* seat, bint* wake, tf_error* e) noexcept nogil:
    cdef Scheduler* inner = layer.base.inner
    cdef Request* r = seat.tap.request
    cdef int status
    stats_missed(layer.base.stats, 1, seat.looked_ns)
    status = inner.submit(inner, r, wake, e)
    if status == SUBMIT_OK:
        return status
    tf_lock(&layer.store.lock)
    leave(f, seat)
    tf_unlock(&layer.store.lock)
    tap_end(&seat.tap)
    r.seat = NULL
    turn(layer, f)
    return status


cdef void flight_looked(Flight* f, Block* entry) noexcept nogil:
    cdef Layer* layer = f.layer
    cdef Store* s = layer.store
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
        finish(layer, f, seat, entry)
    else:
        turn(layer, f)
    tf_add32(&layer.looking, -1)
    park_wake(&layer.sleepers)


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
    cdef Layer* layer = <Layer*>sched
    cdef Store* s = layer.store
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
        tf_add32(&layer.waiting, -1)
        tap_end(&seat.tap)
        stats_failure(layer.base.stats, FAIL_CANCELED, now_ns() - r.stamps[T_QUEUED])
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
        turn(layer, f)
    return True


# Answer all that follow with an error. Their leaders are the business of what is below.
cdef void abort_followers(Layer* layer) noexcept nogil:
    cdef Store* s = layer.store
    cdef Flight* f
    cdef Seat* seat
    cdef Seat* left = NULL
    cdef tf_error e
    cdef int k
    tf_fail(&e, TF_UNAVAILABLE, "%s", STOPPING)
    tf_lock(&s.lock)
    for k in range(FLIGHT_SLOTS):
        f = layer.flights[k]
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
        tf_add32(&layer.waiting, -1)
        answer_error(layer, seat, &e, FAIL_REJECTED)


cdef void cache_stop(Scheduler* sched, bint abort) noexcept nogil:
    tf_store32(&sched.stopping, True)
    sched.inner.stop(sched.inner, abort)
    if abort:
        abort_followers(<Layer*>sched)


cdef void cache_join(Scheduler* sched) noexcept nogil:
    cdef Layer* layer = <Layer*>sched
    park_begin(&layer.sleepers)
    while tf_load32(&layer.looking):
        park_wait(&layer.sleepers, 0)
    park_end(&layer.sleepers)
    if sched.inner.join != NULL:
        sched.inner.join(sched.inner)


cdef int32_t cache_pending(Scheduler* sched) noexcept nogil:
    return sched.inner.pending(sched.inner) + tf_load32(&(<Layer*>sched).waiting)


# ---- Python's side

cdef class CacheLayer(NativeScheduler):
    """The response cache before one model version, for ``NativeModel.add_layer``. Its entries end with it.

    identity: what names this model version, and what it computes, to other servers that use the same cache.
    """

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
            store_remove_all(self.layer.store, self.layer.owner)
            free(self.layer)
