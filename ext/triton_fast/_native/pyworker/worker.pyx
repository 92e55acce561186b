# See worker.pxd: the slots of requests in flight, and the life of the struct itself.
from libc.stdint cimport int32_t, uint32_t
from libc.stdlib cimport calloc, free, malloc

from triton_fast._native.core.native cimport tf_add32, tf_buf_free
from triton_fast._native.core.pthread cimport (
    cond_init_monotonic, pthread_cond_destroy, pthread_mutex_destroy, pthread_mutex_init,
)
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.respond cimport request_cancel_word
from triton_fast._native.pyworker.encode cimport encoder_free
from triton_fast._native.pyworker.layout cimport CANCEL_AT, MAX_SLOTS
from triton_fast._native.sched.policy cimport MAX_TAKE


cdef Worker* worker_new() noexcept nogil:
    cdef Worker* w = <Worker*>calloc(1, sizeof(Worker))
    if w == NULL:
        return NULL
    w.slots = <Slot*>calloc(MAX_SLOTS, sizeof(Slot))
    w.batch_slots = <uint32_t*>malloc(2 * MAX_TAKE * sizeof(uint32_t))
    if w.slots == NULL or w.batch_slots == NULL:
        free(w.slots)
        free(w.batch_slots)
        free(w)
        return NULL
    w.refs = 1
    w.free_slot = -1
    w.waiting_slot = -1
    pthread_mutex_init(&w.lock, NULL)
    pthread_mutex_init(&w.turn, NULL)
    cond_init_monotonic(&w.changed)
    return w


cdef void worker_unref(Worker* w) noexcept nogil:
    if w == NULL or tf_add32(&w.refs, -1) != 0:
        return
    encoder_free(&w.encoder)
    encoder_free(&w.answers)
    tf_buf_free(&w.scratch)
    tf_buf_free(&w.record)
    free(w.slots)
    free(w.batch_slots)
    pthread_cond_destroy(&w.changed)
    pthread_mutex_destroy(&w.lock)
    pthread_mutex_destroy(&w.turn)
    free(w)


cdef int32_t slot_take(Worker* w, Request* r, int32_t state) noexcept nogil:
    cdef int32_t k = w.free_slot
    cdef Slot* s
    if k >= 0:
        w.free_slot = w.slots[k].next
    elif w.n_slots < MAX_SLOTS:
        k = w.n_slots
        w.n_slots += 1
    else:
        return -1
    s = &w.slots[k]
    s.generation += 1
    if s.generation == 0:
        s.generation = 1        # words that nobody wrote are 0
    s.request = r
    s.state = state
    s.waiting = NULL
    s.waiting_last = NULL
    s.n_waiting = 0
    s.is_over = False
    w.in_flight += 1
    request_cancel_word(r, <uint32_t*>(w.channel.region.base + CANCEL_AT) + k, s.generation)
    return k


cdef Request* slot_drop(Worker* w, int32_t slot) noexcept nogil:
    cdef Slot* s = &w.slots[slot]
    cdef Request* r = s.request
    request_cancel_word(r, NULL, 0)
    s.request = NULL
    s.state = SLOT_FREE
    s.next = w.free_slot
    w.free_slot = slot
    w.in_flight -= 1
    return r


cdef int32_t slot_find(Worker* w, uint32_t slot, uint32_t generation) noexcept nogil:
    if slot >= <uint32_t>w.n_slots or w.slots[slot].generation != generation:
        return -1
    if w.slots[slot].state != SLOT_INSTANCE and w.slots[slot].state != SLOT_SERVICE:
        return -1
    return <int32_t>slot
