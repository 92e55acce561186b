# The order of responses. One thread at a time hands on, without the lock, so that a sink may submit again and two
# chains of one sink can not overtake each other; who comes meanwhile leaves its responses at their place.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.marks cimport FLAG_ORDERED
from triton_fast._native.core.native cimport tf_add32, tf_error, tf_fail, tf_lock, tf_unlock
from triton_fast._native.core.request cimport (
    Request, Response, Sink, request_alloc, request_free, response_fail_error,
)
from triton_fast._native.core.respond cimport request_cancel
from triton_fast._native.sched.full cimport FULL
from triton_fast._native.sched.instance cimport request_count_late
from triton_fast._native.sched.tap cimport tap_begin

cdef enum:
    CARRIER = 4096          # what a response takes besides its tensors


cdef Place* place_new(Request* r) noexcept nogil:
    return <Place*>request_alloc(r, sizeof(Place))


cdef void order_enter(Order* o, Place* p, Request* r) noexcept nogil:
    tap_begin(&p.tap, r, order_deliver)
    p.order = o
    p.first = NULL
    p.last = NULL
    p.held = 0
    p.done = False
    p.dropped = False
    p.max_responses = 0
    p.next = NULL
    r.flags |= FLAG_ORDERED     # what was counted as answered could not be taken back
    tf_lock(&o.lock)
    if o.head != NULL:
        # An instance that answers several requests by turns must not wait at the limit of a later one, whose client
        # gets nothing before the earlier one ends.
        p.max_responses = r.max_responses
        r.max_responses = 0
    p.prev = o.tail
    if o.tail != NULL:
        o.tail.next = p
    else:
        o.head = p
    o.tail = p
    tf_unlock(&o.lock)


# The limit holds again: p is the first, and what was held back counts. Under the lock.
cdef inline void promote(Order* o, Place* p) noexcept nogil:
    cdef Response* each = p.first
    cdef int32_t n = 0
    o.held -= p.held
    p.held = 0
    if p.max_responses == 0 or p.done:
        return
    while each != NULL:
        n += each.request != p.tap.request
        if each == p.last:
            break
        each = each.next
    tf_add32(&p.tap.request.unsent, n)
    p.tap.request.max_responses = p.max_responses
    p.max_responses = 0


cdef inline void unlink(Order* o, Place* p) noexcept nogil:
    o.held -= p.held
    if p.prev != NULL:
        p.prev.next = p.next
    else:
        o.head = p.next
        if p.next != NULL:
            promote(o, p.next)
    if p.next != NULL:
        p.next.prev = p.prev
    else:
        o.tail = p.prev


# p has nothing to wait for: its request's sink is as before.
cdef inline void leave(Order* o, Place* p) noexcept nogil:
    cdef Sink** link = &p.tap.request.sink
    while link[0] != &p.tap.sink:       # another tap may lie over this one
        link = &link[0].outer
    link[0] = p.tap.sink.outer
    unlink(o, p)


# Hand on whatever may go. Takes the lock locked, and gives it back.
cdef void pass_on(Order* o) noexcept nogil:
    cdef Place* p
    cdef Sink* sink
    cdef Response* first
    cdef Response* last
    if o.passing:
        tf_unlock(&o.lock)
        return
    o.passing = True
    while o.head != NULL and o.head.first != NULL:
        # Those of one sink go as one chain: one wake-up of a loop, not one for each request.
        sink = o.head.tap.sink.outer
        first = NULL
        last = NULL
        while True:
            p = o.head
            if p == NULL or p.first == NULL or p.tap.sink.outer != sink:
                break
            if first == NULL:
                first = p.first
            else:
                last.next = p.first
            last = p.last
            p.first = NULL
            p.last = NULL
            if not p.done:
                break
            request_count_late(p.tap.request, False)
            unlink(o, p)
        last.next = NULL
        tf_unlock(&o.lock)
        sink.deliver(sink, first, last)     # what was done may be gone now, with its place
        tf_lock(&o.lock)
    o.passing = False
    tf_unlock(&o.lock)


# ---- more than may be held

# One that can not be handed on yet counts.
cdef int64_t bytes_held(Response* first, Response* last) noexcept nogil:
    cdef int64_t n = 0
    cdef int32_t i
    while True:
        n += CARRIER
        for i in range(first.n_outputs):
            n += <int64_t>first.outputs[i].nbytes
        if first == last:
            return n
        first = first.next


cdef Place* largest(Order* o) noexcept nogil:
    cdef Place* p = o.head.next
    cdef Place* found = p
    while p != NULL:
        if p.held > found.held:
            found = p
        p = p.next
    return found


# Free responses that nobody gets, and end their request with an error, told to `sink`, where its end is among them. No
# lock is held.
cdef void drop(Order* o, Sink* sink, Response* first) noexcept nogil:
    cdef tf_error e
    cdef Response* after
    while first != NULL:
        after = first.next
        if first.is_final:
            tf_fail(&e, o.full_code, "%s: responses of %lld bytes wait for an earlier request (max_held_bytes: %lld)",
                    FULL, <long long>o.max_held, <long long>o.max_held)
            response_fail_error(first, &e)
            request_count_late(first.request, True)
            first.next = NULL
            sink.deliver(sink, first, first)
        else:
            request_free(first.request)
        first = after


# The place that holds most is to hold nothing; returns what it held, and whose sink that was for. *told, which the
# caller lets go, is its request if it goes on. Under the lock.
cdef Response* make_room(Order* o, Sink** outer, Request** told) noexcept nogil:
    cdef Place* p = largest(o)
    cdef Response* first = p.first
    outer[0] = p.tap.sink.outer
    p.last.next = NULL
    p.first = NULL
    p.last = NULL
    p.dropped = True
    if p.done:
        leave(o, p)
    else:
        o.held -= p.held
        p.held = 0
        told[0] = p.tap.request
        tf_add32(&told[0].holds, 1)
    return first


cdef void order_deliver(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Place* p = <Place*>sink
    cdef Order* o = p.order
    cdef Sink* outer = p.tap.sink.outer
    cdef Request* told = NULL
    cdef Response* dropped = NULL
    cdef int64_t n
    tf_lock(&o.lock)
    last.next = NULL
    if last.is_final:
        p.done = True
    if p.dropped:
        dropped = first
        if p.done:
            leave(o, p)
    else:
        if p.first == NULL:
            p.first = first
        else:
            p.last.next = first
        p.last = last
        if o.max_held and p != o.head:
            n = bytes_held(first, last)
            p.held += n
            o.held += n
            if o.held > o.max_held:
                dropped = make_room(o, &outer, &told)
    if dropped != NULL:
        tf_unlock(&o.lock)
        drop(o, outer, dropped)
        tf_lock(&o.lock)
    pass_on(o)
    if told != NULL:
        request_cancel(told)
        request_free(told)


cdef void order_leave(Request* r) noexcept nogil:
    cdef Sink* sink = r.sink
    cdef Place* p
    cdef Order* o
    while sink.deliver != order_deliver:
        sink = sink.outer
    p = <Place*>sink
    o = p.order
    tf_lock(&o.lock)
    if p.max_responses:
        r.max_responses = p.max_responses
    leave(o, p)
    pass_on(o)
