# The queue of one model version: submit from any thread, pull from instance threads, cancel from anywhere.
from libc.stdint cimport int32_t, int64_t, uint64_t

from triton_fast._native.core.pthread cimport pthread_cond_t, pthread_mutex_t
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.stats cimport Stats
from triton_fast._native.sched.policy cimport Policy
from triton_fast._native.sched.scheduler cimport Scheduler


# Requests whose shapes agree, in order of arrival.
cdef struct Bucket:
    uint64_t key
    Request* head
    Request* tail
    int64_t rows
    Bucket* chain           # same hash slot
    Bucket* ready_next      # list of buckets that may hold a whole batch
    Bucket* ready_prev
    bint in_ready

cdef struct Queue:
    Scheduler base          # first: a Queue* is a Scheduler*; its functions are below
    pthread_mutex_t lock
    pthread_cond_t wake
    pthread_cond_t watch    # the watcher sleeps on it until next_deadline
    int64_t next_deadline   # ns; no queued request is due before it; 0 = none has a deadline
    Request* head           # all buckets' requests, in order of arrival
    Request* tail
    int32_t count           # atomic for readers without the lock
    int32_t idle            # instance threads waiting on `wake`
    int32_t spinning        # instance threads looking at `count`
    int32_t spin_luck       # how well looking has paid lately; below zero nobody looks
    Policy policy
    int64_t max_size        # 0 = no limit
    int64_t timeout_ns      # 0 = none
    bint timeout_override   # a request's own timeout may shorten it
    Bucket fixed            # the bucket of key 0
    Bucket** table
    uint64_t table_size     # power of two
    uint64_t n_buckets
    Bucket* ready_head
    Bucket* ready_tail
    Bucket* spare

cdef Queue* queue_new(Stats* stats) noexcept nogil
cdef void queue_free(Queue* q) noexcept nogil
# Refuse requests when their deadline comes, although every instance is busy. Returns when the queue is stopped; runs on
# a thread of its own, which only a model with a queue timeout needs.
cdef void queue_watch(Queue* q) noexcept nogil
