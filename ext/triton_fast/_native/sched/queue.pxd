# The queue of one model version: submit from any thread, pull from instance threads, cancel from anywhere.
from libc.stdint cimport int32_t, int64_t, uint64_t

from triton_fast._native.core.native cimport tf_error
from triton_fast._native.core.pthread cimport pthread_cond_t, pthread_mutex_t
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.stats cimport Stats
from triton_fast._native.sched.due cimport Due
from triton_fast._native.sched.lanes cimport Lane, Shapes
from triton_fast._native.sched.order cimport Order
from triton_fast._native.sched.policy cimport Policy
from triton_fast._native.sched.scheduler cimport Scheduler

cdef enum:
    MAX_LEVELS = 1024

cdef struct Level:          # one priority; 0 is the highest
    int64_t max_size        # 0 = no limit
    int64_t timeout_ns      # 0 = none
    bint timeout_override   # a request's own timeout may shorten it
    bint delay              # who expires goes behind those that did not, else it is refused
    Lane* lane              # of those in time; the next one is that of those who expired and were delayed
    int32_t count           # of both

cdef struct Queue:
    Scheduler base          # first: a Queue* is a Scheduler*; its functions are below
    pthread_mutex_t lock
    pthread_cond_t wake
    pthread_cond_t watch    # the watcher sleeps on it until next_deadline
    int64_t next_deadline   # ns; no queued request is due before it; 0 = none has a deadline
    int32_t count           # atomic for readers without the lock
    int32_t idle            # instance threads waiting on `wake`
    int32_t spinning        # instance threads looking at `count`
    int32_t spin_luck       # how well looking has paid lately; below zero nobody looks
    Policy policy
    Level* levels
    int32_t n_levels
    int32_t default_level   # index
    bint limits             # of sizes, bytes or times; or an order: what submit has to look at
    bint refuses_late       # requests are refused for their time: there is work for a watcher
    bint several_lanes      # a request may overtake another of its shape
    uint64_t arrivals
    int64_t bytes           # of the inputs of what is queued, counted where there is a limit
    int64_t max_bytes       # 0 = no limit
    int32_t full_code       # TF_* of a request for which there is no place
    bint ordered            # responses leave in order of arrival
    Order order
    Due due
    Shapes shapes

# One level without limits.
cdef Queue* queue_new(Stats* stats) noexcept nogil
cdef void queue_free(Queue* q) noexcept nogil
# What submit looks at, before the first request. levels: (max_queue_size, timeout in us, timeout_override,
# timeout_delay) for each from the highest on.
cdef int queue_set(Queue* q, levels, default_level, bint ordered, int64_t max_bytes, int32_t full_code) except -1
# Refuse requests when their deadline comes, although every instance is busy. Returns when the queue is stopped; runs on
# a thread of its own, which only a model with a queue timeout needs.
cdef void queue_watch(Queue* q) noexcept nogil
# As take and as one look of the watcher, at a given time. take: the number, or 0 with *wait_until when to ask again.
cdef int32_t queue_take_at(Queue* q, Request** out, bint look, int64_t now, int64_t* wait_until) noexcept nogil
cdef void queue_expire_at(Queue* q, int64_t now) noexcept nogil
