# See execute.pxd. Requests of a decoupled model are the service thread's from the start; others are delivered by the
# runner at the end of the execution, but for those that the model has answered before.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.string cimport memcpy, strlen
from posix.time cimport nanosleep, timespec

from triton_fast._native.core.marks cimport T_INPUT
from triton_fast._native.core.native cimport (
    TF_CANCELLED, TF_INTERNAL, TF_OK, TF_UNAVAILABLE, now_ns, tf_error, tf_fail, tf_load32, tf_load64, tf_store32,
    tf_store64,
)
from triton_fast._native.core.pthread cimport (
    pthread_cond_broadcast, pthread_cond_timedwait, pthread_mutex_lock, pthread_mutex_unlock,
)
from triton_fast._native.core.request cimport Request, response_fail, response_fail_error
from triton_fast._native.pyworker.calls cimport call_runner
from triton_fast._native.pyworker.channel cimport (
    Channel, channel_published, channel_publish, channel_ref, channel_take, channel_taken, channel_unref,
    channel_wait,
)
from triton_fast._native.pyworker.decode cimport (
    Source, copy_out, copy_record, decode_response, source_begin, source_end,
)
from triton_fast._native.pyworker.encode cimport encoder_execution, encoder_place, put_request
from triton_fast._native.pyworker.layout cimport (
    DONE_EXECUTED, DoneRecord, Message, RECORD_BY_SENDER, RECORD_RESPONSE, RECORD_RESCHEDULED, RING_DONE, RING_EVENTS,
    RING_WORK, ResponseRecord, WORK_EXECUTE,
)
from triton_fast._native.pyworker.region cimport Chunk, inbound_drop, inbound_told
from triton_fast._native.pyworker.worker cimport (
    SLOT_INSTANCE, SLOT_NEW, SLOT_SERVICE, Worker, slot_drop, slot_find, slot_take,
)
from triton_fast._native.sched.ensemble_look cimport step_runner
from triton_fast._native.sched.inprocess cimport note_runner
from triton_fast._native.sched.instance cimport Batch, request_finish
from triton_fast._native.sched.scheduler cimport Scheduler

cdef enum:
    LOOK_NS = 100000000     # how often a thread that waits for a worker looks whether its model is stopped
    RETRY_NS = 200000
    ANSWERED = 0xFFFFFFFF   # in place of a slot: the request is the instance thread's alone


cdef void pause(int64_t ns) noexcept nogil:
    cdef timespec ts
    ts.tv_sec = 0
    ts.tv_nsec = ns
    nanosleep(&ts, NULL)


# The lock is held. Until there is a worker or it makes no sense to wait.
cdef void wait_for_worker(Worker* w, int32_t* stopping) noexcept nogil:
    cdef timespec ts
    cdef int64_t until
    while w.channel == NULL and not w.hopeless and not tf_load32(stopping):
        until = now_ns() + LOOK_NS
        ts.tv_sec = until // 1000000000
        ts.tv_nsec = until % 1000000000
        pthread_cond_timedwait(&w.changed, &w.lock, &ts)


cdef int before_pull(void* worker, int32_t* stopping) noexcept nogil:
    cdef Worker* w = <Worker*>worker
    cdef int status
    pthread_mutex_lock(&w.lock)
    wait_for_worker(w, stopping)
    status = w.channel == NULL and not w.hopeless
    pthread_mutex_unlock(&w.lock)
    return status


# The lock is held.
cdef void fail_rest(Worker* w, Batch* batch, int32_t code, const char* text, size_t n) noexcept nogil:
    cdef int32_t i, k
    for i in range(batch.n):
        if batch.requests[i] == NULL:
            continue
        if w.batch_slots[2 * i] == <uint32_t>ANSWERED:
            continue
        k = slot_find(w, w.batch_slots[2 * i], w.batch_slots[2 * i + 1])
        if k >= 0 and w.slots[k].state == SLOT_INSTANCE:
            slot_drop(w, k)
            response_fail(&batch.requests[i].response, code, text, n)
        else:
            batch.requests[i] = NULL        # the service thread's, or answered


# Lay the batch into the region and tell the worker. The lock is not held. 0; -1 with e filled: nothing was told, the
# slots are new; 1: the worker has gone, the slots are what they would be had it been told.
cdef int dispatch(Worker* w, Channel* c, Batch* batch, int32_t state, tf_error* e) noexcept nogil:
    cdef Message m
    cdef Chunk* chunk
    cdef int32_t i
    encoder_execution(&w.encoder, <uint32_t>batch.n)
    for i in range(batch.n):
        put_request(&w.encoder, batch.requests[i], w.batch_slots[2 * i], w.batch_slots[2 * i + 1])
    chunk = encoder_place(&w.encoder, c.region, &m)
    if chunk == NULL:
        return tf_fail(e, TF_UNAVAILABLE, b"not enough memory shared with the model's worker for its inputs; raise "
                       b"--backend-config=python,shm-max-byte-size")
    batch.t_input = now_ns()
    for i in range(batch.n):
        batch.requests[i].stamps[T_INPUT] = batch.t_input
    # Only now, for from here on the worker may answer, and whoever takes the answer may free the request.
    pthread_mutex_lock(&w.lock)
    for i in range(batch.n):
        w.slots[w.batch_slots[2 * i]].state = state
    pthread_mutex_unlock(&w.lock)
    m.kind = WORK_EXECUTE
    m.id = w.batch_no
    while channel_publish(c, RING_WORK, &m) != 0:
        if tf_load32(&c.dead):
            inbound_drop(chunk)
            return 1
        pause(RETRY_NS)
    inbound_told(chunk)
    return 0


# The model wants r executed again.
cdef void reschedule(Request* r) noexcept nogil:
    cdef const char* refused = (b"Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is "
                                b"not configured to handle such a flag.")
    if r.model.iterative:
        r.again = True
    else:
        response_fail(&r.response, TF_INTERNAL, refused, strlen(refused))


# The same for request i, which is the service thread's, once what it has sent before is on its way.
cdef void reschedule_kept(Worker* w, Batch* batch, int32_t i) noexcept nogil:
    cdef Request* r = NULL
    cdef int32_t k
    pthread_mutex_lock(&w.turn)
    pthread_mutex_lock(&w.lock)
    k = slot_find(w, w.batch_slots[2 * i], w.batch_slots[2 * i + 1])
    if k >= 0 and not w.slots[k].is_over:
        reschedule(w.slots[k].request)
        if w.slots[k].waiting == NULL:
            r = slot_drop(w, k)
        else:
            w.slots[k].is_over = True       # the service thread ends it after those that wait
    pthread_mutex_unlock(&w.lock)
    if r != NULL:
        request_finish(r)
    pthread_mutex_unlock(&w.turn)


# The answers of a batch, from its done message. -1: no worker writes that.
cdef int read_done(Worker* w, Channel* c, Message* m, Batch* batch, Source* s) noexcept nogil:
    cdef DoneRecord head
    cdef ResponseRecord record
    cdef uint64_t at = m.off, left = m.len
    cdef int32_t i, k
    cdef Request* r
    cdef int status
    cdef bint drained = False
    cdef const char* malformed = b"the worker's response is malformed"
    if copy_out(c.region, at, sizeof(DoneRecord), &w.scratch) != 0 or left < sizeof(DoneRecord):
        return -1
    memcpy(&head, w.scratch.data, sizeof(DoneRecord))
    at += sizeof(DoneRecord)
    left -= sizeof(DoneRecord)
    if head.code != TF_OK:
        if head.error_len > left or copy_out(c.region, at, head.error_len, &w.scratch) != 0 or head.code > TF_CANCELLED:
            return -1
        after_events(w, c)
        pthread_mutex_lock(&w.turn)
        for i in range(batch.n):
            fail_one(w, batch, i, head.code if head.code >= 0 else TF_INTERNAL, w.scratch.data, head.error_len)
        pthread_mutex_unlock(&w.turn)
        return 0
    if head.n != <uint32_t>batch.n:
        return -1 if head.n or not batch_is_kept(batch) else 0
    for i in range(batch.n):
        if copy_record(c.region, at, sizeof(ResponseRecord), left, &w.scratch) != 0:
            return -1
        memcpy(&record, w.scratch.data, sizeof(ResponseRecord))
        at += record.bytes
        left -= record.bytes
        if record.kind == RECORD_RESCHEDULED and batch.requests[i] == NULL:
            if not drained:
                after_events(w, c)          # what it has said before
                drained = True
            reschedule_kept(w, batch, i)
            continue
        pthread_mutex_lock(&w.lock)
        k = slot_find(w, w.batch_slots[2 * i], w.batch_slots[2 * i + 1])
        if k < 0 or w.slots[k].state != SLOT_INSTANCE:
            batch.requests[i] = NULL        # it was answered by its sender
        elif record.kind == RECORD_BY_SENDER:
            w.slots[k].state = SLOT_SERVICE
            w.slots[k].request.stamps[T_INPUT] = batch.t_input
            batch.requests[i] = NULL
        else:
            slot_drop(w, k)                 # before it is filled: a sender's response comes too late now
            w.batch_slots[2 * i] = <uint32_t>ANSWERED
        pthread_mutex_unlock(&w.lock)
        r = batch.requests[i]
        if r == NULL:
            continue
        status = -1
        if record.kind == RECORD_RESPONSE:
            status = decode_response(s, w.scratch.data, record.bytes, &r.response)
        elif record.kind == RECORD_RESCHEDULED:
            reschedule(r)
            status = 0
        if status != 0:
            response_fail(&r.response, TF_INTERNAL, malformed, strlen(malformed))
            return -1
    return 0


# It is the caller's turn. An execution has failed: so has request i, unless its final response is there.
cdef void fail_one(Worker* w, Batch* batch, int32_t i, int32_t code, const char* text, size_t n) noexcept nogil:
    cdef Request* r = NULL
    cdef int32_t k, state = SLOT_INSTANCE
    pthread_mutex_lock(&w.lock)
    k = slot_find(w, w.batch_slots[2 * i], w.batch_slots[2 * i + 1])
    if k >= 0:
        state = w.slots[k].state
        if state == SLOT_INSTANCE or (not w.slots[k].is_over and w.slots[k].waiting == NULL):
            r = slot_drop(w, k)
            w.batch_slots[2 * i] = <uint32_t>ANSWERED
        elif not w.slots[k].is_over:
            response_fail(&w.slots[k].request.response, code, text, n)
            w.slots[k].is_over = True
    pthread_mutex_unlock(&w.lock)
    if r != NULL:
        response_fail(&r.response, code, text, n)
    if r == NULL or state != SLOT_INSTANCE:
        batch.requests[i] = NULL
        if r != NULL:
            request_finish(r)


cdef bint batch_is_kept(Batch* batch) noexcept nogil:
    cdef int32_t i
    for i in range(batch.n):
        if batch.requests[i] != NULL:
            return False
    return True


# An error ends requests whose earlier responses may still lie in the other ring: those first.
cdef void after_events(Worker* w, Channel* c) noexcept nogil:
    cdef int64_t published = <int64_t>channel_published(c, RING_EVENTS)
    while published - tf_load64(&w.events_done) > 0 and not tf_load32(&c.dead) \
            and not tf_load32(&c.broken):
        pause(RETRY_NS)


# Wait for the worker and read what it says. 0, or -1: it has gone, or writes nonsense.
cdef int collect(Worker* w, Channel* c, Batch* batch) noexcept nogil:
    cdef Message m
    cdef Source s
    cdef int status
    while not tf_load32(&c.dead):
        if not channel_take(c, RING_DONE, &m):
            channel_wait(c, RING_DONE, w.spin_ns, 0)
            continue
        if m.kind != DONE_EXECUTED or m.id != w.batch_no:
            break
        batch.t_computed = now_ns()
        if m.len == 0:
            channel_taken(c, RING_DONE)
            return 0 if batch_is_kept(batch) else -1
        source_begin(&s, c.region, m.off)
        status = read_done(w, c, &m, batch, &s)
        if status != 0:
            s.off = 0       # what it points to may not be its memory
        source_end(&s)
        channel_taken(c, RING_DONE)
        return status
    return -1


cdef int execute_batch(void* worker, Batch* batch) noexcept nogil:
    cdef Worker* w = <Worker*>worker
    cdef Channel* c
    cdef Request* r
    cdef tf_error e
    cdef int32_t i, k = 0, state
    cdef int status = 0
    cdef bint decoupled = batch.requests[0].model.decoupled
    state = SLOT_SERVICE if decoupled else SLOT_INSTANCE
    pthread_mutex_lock(&w.lock)
    w.model = batch.requests[0].model
    wait_for_worker(w, &(<Scheduler*>w.model.scheduler).stopping)
    c = w.channel
    if c == NULL:
        for i in range(batch.n):
            response_fail(&batch.requests[i].response, w.code, w.reason, w.reason_len)
        pthread_mutex_unlock(&w.lock)
        return 0
    channel_ref(c)
    tf_store64(&w.execution_began, now_ns())
    w.batch_no += 1
    for i in range(batch.n):
        r = batch.requests[i]
        k = slot_take(w, r, SLOT_NEW)
        if k < 0:
            break
        w.batch_slots[2 * i] = <uint32_t>k
        w.batch_slots[2 * i + 1] = w.slots[k].generation
        call_runner(r, w)
        note_runner(r, w)
        step_runner(r, w)
    if k < 0:
        tf_fail(&e, TF_UNAVAILABLE, b"too many requests of one Python model instance are unfinished")
        while i > 0:
            i -= 1
            slot_drop(w, <int32_t>w.batch_slots[2 * i])
    pthread_mutex_unlock(&w.lock)
    if k >= 0:
        status = dispatch(w, c, batch, state, &e)
        if status < 0:
            k = -1
            pthread_mutex_lock(&w.lock)
            for i in range(batch.n):
                slot_drop(w, <int32_t>w.batch_slots[2 * i])
            pthread_mutex_unlock(&w.lock)
    if k < 0:
        for i in range(batch.n):
            response_fail_error(&batch.requests[i].response, &e)
    else:
        if decoupled:
            for i in range(batch.n):
                batch.requests[i] = NULL
        if status == 0:
            status = collect(w, c, batch)
        if status != 0:
            batch.t_computed = now_ns()
            if not tf_load32(&c.dead):
                tf_store32(&c.broken, 1)
                while not tf_load32(&c.dead):
                    channel_wait(c, RING_DONE, 0, 0)     # the supervisor kills it and says why
            pthread_mutex_lock(&w.lock)
            wait_for_reason(w, c)
            fail_rest(w, batch, w.code, w.reason, w.reason_len)
            pthread_mutex_unlock(&w.lock)
    pthread_mutex_lock(&w.lock)
    tf_store64(&w.execution_began, 0)
    pthread_cond_broadcast(&w.changed)
    pthread_mutex_unlock(&w.lock)
    channel_unref(c)
    return 0


# The lock is held. The channel is dead; who killed it says why in a moment, if it has not yet.
cdef void wait_for_reason(Worker* w, Channel* c) noexcept nogil:
    cdef timespec ts
    cdef int64_t until
    while w.channel == c:
        until = now_ns() + LOOK_NS
        ts.tv_sec = until // 1000000000
        ts.tv_nsec = until % 1000000000
        pthread_cond_timedwait(&w.changed, &w.lock, &ts)
