# The order of responses. One thread at a time hands on, without the lock, so that a sink may submit again and two
# chains of one sink can not overtake each other; who comes meanwhile leaves its responses at their place.
from libc.stdint cimport int32_t

from triton_fast._native.core.native cimport tf_add32, tf_lock, tf_unlock
from triton_fast._native.core.request cimport Request, Response, Sink, request_alloc
from triton_fast._native.sched.tap cimport tap_begin


cdef Place* place_new(Request* r) noexcept nogil:
    return <Place*>request_alloc(r, sizeof(Place))


cdef void order_enter(Order* o, Place* p, Request* r) noexcept nogil:
    tap_begin(&p.tap, r, order_deliver)
    p.order = o
    p.first = NULL
    p.last = NULL
    p.done = False
    p.max_responses = 0
    p.next = NULL
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
cdef inline void promote(Place* p) noexcept nogil:
    cdef Response* each = p.first
    cdef int32_t n = 0
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
    if p.prev != NULL:
        p.prev.next = p.next
    else:
        o.head = p.next
        if p.next != NULL:
            promote(p.next)
    if p.next != NULL:
        p.next.prev = p.prev
    else:
        o.tail = p.prev


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
            unlink(o, p)
        last.next = NULL
        tf_unlock(&o.lock)
        sink.deliver(sink, first, last)     # what was done may be gone now, with its place
        tf_lock(&o.lock)
    o.passing = False
    tf_unlock(&o.lock)


cdef void order_deliver(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Place* p = <Place*>sink
    cdef Order* o = p.order
    tf_lock(&o.lock)
    last.next = NULL
    if p.first == NULL:
        p.first = first
    else:
        p.last.next = first
    p.last = last
    if last.is_final:
        p.done = True
    pass_on(o)


cdef void order_leave(Request* r) noexcept nogil:
    cdef Sink** link = &r.sink
    cdef Place* p
    cdef Order* o
    while link[0].deliver != order_deliver:     # another tap may lie over this one
        link = &link[0].outer
    p = <Place*>link[0]
    o = p.order
    link[0] = p.tap.sink.outer
    tf_lock(&o.lock)
    if p.max_responses:
        r.max_responses = p.max_responses
    unlink(o, p)
    pass_on(o)
