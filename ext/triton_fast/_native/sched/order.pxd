# preserve_ordering: responses leave in the order in which their requests came, however many instances make them. Each
# request has a place, a tap in its own memory; responses wait at their place until all before it have ended. Where they
# would be too many bytes, the request that holds most fails: to hold up an instance could keep the first from its end.
from libc.stdint cimport int32_t, int64_t

from triton_fast._native.core.request cimport Request, Response
from triton_fast._native.sched.tap cimport Tap


cdef struct Place:
    Tap tap                 # first
    Order* order
    Place* next
    Place* prev
    Response* first         # held back
    Response* last
    int32_t max_responses   # the request's own; it has no limit as long as its responses are held back
    int64_t held            # bytes held back
    bint done               # the final response is among them
    bint dropped            # it holds too much: nothing more of it is kept, and its end is an error

cdef struct Order:
    int32_t lock
    Place* head
    Place* tail
    bint passing            # a thread hands on what may go; others leave theirs to it
    int64_t held            # bytes, of all places
    int64_t max_held        # 0 = no limit
    int32_t full_code       # TF_* of who held too much


# Memory for the place of r; NULL when there is none. It is not in the order yet.
cdef Place* place_new(Request* r) noexcept nogil
# The last place is r's from now on. Call it in the order of arrival.
cdef void order_enter(Order* o, Place* p, Request* r) noexcept nogil
# r has no response to wait for: it gives up its place, and its sink is as before. Delivers what waited for it: no lock
# of the queue may be held.
cdef void order_leave(Request* r) noexcept nogil
