# See calls.pxd. A call has its own sink. What is delivered there is pushed on the worker's stack and answered by the
# service thread, so that the model called never waits for the caller. The GIL is taken to look a model's name up, once
# for each change of what names mean.
from cpython.ref cimport Py_DECREF, Py_INCREF, PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcmp, memcpy, strlen

from triton_fast._native.core.native cimport (
    TF_CANCELLED, TF_INTERNAL, TF_OK, now_ns, tf_add32, tf_error, tf_fail,
)
from triton_fast._native.core.pthread cimport pthread_mutex_lock, pthread_mutex_unlock
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport (
    Request, Response, Sink, request_free, request_new, response_fail, sink_end,
)
from triton_fast._native.core.tracing cimport trace_adopt, trace_detach, trace_drop
from triton_fast._native.pyworker.channel cimport Channel, channel_kick, channel_publish
from triton_fast._native.pyworker.decode cimport (
    Source, bls_model, copy_record, decode_bls, source_begin, source_end,
)
from triton_fast._native.pyworker.encode cimport encoder_answer, encoder_place, encoder_size
from triton_fast._native.pyworker.layout cimport (
    ANSWER_RESPONSE, BLS_STREAM, BLS_WAITS, BlsRecord, Message, RING_ANSWERS,
)
from triton_fast._native.pyworker.region cimport Chunk, inbound_drop, inbound_fits, inbound_told
from triton_fast._native.pyworker.worker cimport Call, Target, Worker, worker_unref
from triton_fast._native.sched.ensemble_look cimport ensemble_refuse
from triton_fast._native.sched.model cimport NativeModel
from triton_fast._native.sched.scheduler cimport (
    SUBMIT_OK, SUBMIT_STOPPED, scheduler_cancel, scheduler_submit, scheduler_wake, scheduler_withdraw,
)

cdef enum:
    REFUSED_PLAINLY = -3    # beside scheduler_submit's: the error is said as it is
    MAX_CALLS = 65536       # of one worker, not answered yet
    MAX_UNREAD = 1024       # responses of one call that may wait for room
    MAX_STUCK = 16          # calls without room that are tried in one round

cdef enum:                  # of an answer
    ANSWERED = 0
    NO_MEMORY = -1          # the worker has not given enough back yet
    RING_FULL = -2


# --- what arrives -----------------------------------------------------------------------------------------------------

cdef void free_response(Response* p) noexcept nogil:
    request_free(p.request)


# The lock is held. The call has had its last response.
cdef void call_unlink(Worker* w, Call* call) noexcept nogil:
    w.n_calls -= 1
    if call.prev != NULL:
        call.prev.next = call.next
    else:
        w.calls = call.next
    if call.next != NULL:
        call.next.prev = call.prev
    call.target.refs -= 1
    if call.target.owner == NULL and call.target.refs == 0:
        free(call.target)       # the one of refuse_new
    free(call)


cdef void call_deliver(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Call* call = <Call*>sink
    cdef Worker* w = call.worker
    cdef Response* p = first
    cdef Response* after
    cdef bint was_empty, over = last.is_final, gone
    last.next = NULL
    pthread_mutex_lock(&w.lock)
    gone = not w.serving
    if gone:
        if over:
            call.child = NULL
            call_unlink(w, call)
    else:
        # Of a closed call too: earlier responses that still wait for the service thread refer to it, so that thread,
        # which takes them in order, sees it to its end.
        was_empty = w.arrived == NULL
        while p != NULL:
            after = p.next
            p.next = w.arrived
            w.arrived = p
            p = after
        if was_empty:
            channel_kick(w.channel)
    pthread_mutex_unlock(&w.lock)
    if gone:
        while first != NULL:
            after = first.next
            free_response(first)
            first = after
        if over:
            with gil:
                targets_drop(w)     # its worker has gone: nobody else comes to do it
            worker_unref(w)


cdef void call_runner(Request* r, Worker* w) noexcept nogil:
    cdef Sink* sink = sink_end(r.sink)
    if sink != NULL and sink.deliver == call_deliver:
        (<Call*>sink).runner = w


# Write one response to the worker. What does not fit between what the worker still has waits for it to give that back,
# but not for ever: it may be the model that waits for the response while it holds its own inputs.
cdef int answer(Worker* w, Channel* c, Call* call, Response* p, bint is_final) noexcept nogil:
    cdef Message m
    cdef Chunk* chunk
    cdef size_t size
    cdef const char* text
    encoder_answer(&w.answers, p, TF_OK, NULL, 0, is_final)
    chunk = encoder_place(&w.answers, c.region, &m)
    if chunk == NULL and p.n_outputs > 0:
        size = encoder_size(&w.answers)
        if size and inbound_fits(c.region, size):
            if call.stuck == 0:
                call.stuck = now_ns()
            if now_ns() - call.stuck <= w.wait_ns:
                return NO_MEMORY
        text = b"not enough memory shared with the model's worker for the response"
        encoder_answer(&w.answers, NULL, TF_INTERNAL, text, strlen(text), is_final)
        chunk = encoder_place(&w.answers, c.region, &m)
    if chunk == NULL:
        return NO_MEMORY
    m.kind = ANSWER_RESPONSE
    m.id = call.id
    if channel_publish(c, RING_ANSWERS, &m) != 0:
        inbound_drop(chunk)
        return RING_FULL
    inbound_told(chunk)
    call.stuck = 0
    return ANSWERED


# Deal with one response of a call. Below 0: no room now, nothing has changed.
cdef int forward(Worker* w, Channel* c, Call* call, Response* p) noexcept nogil:
    cdef bint is_final = p.is_final
    cdef int status = ANSWERED
    if not call.closed:
        if call.streams:
            status = answer(w, c, call, p, is_final)
        elif not call.answered:
            # Of a model that answers once the only response is the final one.
            status = answer(w, c, call, p, True)
            if status == ANSWERED:
                call.answered = True
    if status != ANSWERED:
        return status
    if is_final:
        pthread_mutex_lock(&w.lock)
        call.child = NULL
        call_unlink(w, call)
        pthread_mutex_unlock(&w.lock)
    free_response(p)
    if is_final:
        worker_unref(w)
    return 0


cdef bint calls_answer(Worker* w, Channel* c) noexcept nogil:
    cdef Response* p
    cdef Response* after
    cdef Response* fresh = NULL
    cdef Response* newest
    pthread_mutex_lock(&w.lock)
    p = w.arrived
    w.arrived = NULL
    pthread_mutex_unlock(&w.lock)
    newest = p
    while p != NULL:        # it was pushed newest first
        after = p.next
        p.next = fresh
        fresh = p
        p = after
    if fresh != NULL:
        if w.unanswered == NULL:
            w.unanswered = fresh
        else:
            w.unanswered_last.next = fresh
        w.unanswered_last = newest
    send_unanswered(w, c)
    return w.unanswered != NULL


# In order for each call; a response that finds no room holds up no other call, whose thread may hold what it needs.
cdef void send_unanswered(Worker* w, Channel* c) noexcept nogil:
    cdef Response** link = &w.unanswered
    cdef Response* before = NULL
    cdef Response* p
    cdef Response* after
    cdef Call* call
    cdef int status, stuck = 0
    w.rounds += 1
    if w.rounds == 0:
        w.rounds = 1
    while link[0] != NULL and stuck < MAX_STUCK:
        p = link[0]
        after = p.next
        call = <Call*>sink_end(p.request.sink)
        status = NO_MEMORY
        if call.skipped != w.rounds:
            status = forward(w, c, call, p)
            if status == RING_FULL:
                return
            if status == NO_MEMORY:
                call.skipped = w.rounds
                stuck += 1
        if status == ANSWERED:
            link[0] = after
            if after == NULL:
                w.unanswered_last = before
        else:
            before = p
            link = &p.next


# --- calls ------------------------------------------------------------------------------------------------------------

# The model of this name, with a reference: others drop what has none. NULL with e filled.
cdef Target* target_of(Worker* w, const char* name, uint32_t n, int64_t version, tf_error* e) noexcept nogil:
    cdef Target* t
    cdef long long now = 0
    if w.epoch != NULL:
        now = w.epoch[0]
        pthread_mutex_lock(&w.lock)
        t = w.targets
        while t != NULL:
            if t.epoch == now and t.version == version and t.name_len == n and memcmp(t.name, name, n) == 0:
                t.refs += 1
                break
            t = t.next
        pthread_mutex_unlock(&w.lock)
        if t != NULL:
            return t
    with gil:
        return look_up(w, name, n, version, now, e)


cdef Target* look_up(Worker* w, const char* name, uint32_t n, int64_t version, long long epoch, tf_error* e) noexcept:
    cdef Target* t
    cdef NativeModel model
    try:
        text = name[:n].decode()
        targets_drop(w)
        model = (<object><PyObject*>w.resolve)(text, version)
        if model is None:
            raise LookupError(text)
    except Exception:
        tf_fail(e, TF_INTERNAL, b"Failed for execute the inference request. Model '%.*s' is not ready.",
                <int>(n if n < 4096 else 4096), name)
        return NULL
    t = <Target*>calloc(1, sizeof(Target))
    if t != NULL:
        t.name = <char*>malloc(n + 1)
    if t == NULL or t.name == NULL:
        free(t)
        tf_fail(e, TF_INTERNAL, b"out of memory")
        return NULL
    memcpy(t.name, name, n)
    t.name_len = n
    t.version = version
    t.epoch = epoch
    Py_INCREF(model)
    t.owner = <void*>model
    t.model = model.ptr
    t.scheduler = model.ptr.scheduler
    t.refs = 1
    pthread_mutex_lock(&w.lock)
    t.next = w.targets
    w.targets = t
    pthread_mutex_unlock(&w.lock)
    return t


cdef int targets_drop(Worker* w) noexcept:
    cdef Target* t
    cdef Target* gone = NULL
    cdef Target** link = &w.targets
    pthread_mutex_lock(&w.lock)
    while link[0] != NULL:
        t = link[0]
        if t.refs == 0:
            link[0] = t.next
            t.next = gone
            gone = t
        else:
            link = &t.next
    pthread_mutex_unlock(&w.lock)
    while gone != NULL:
        t = gone
        gone = t.next
        if t.owner != NULL:
            Py_DECREF(<object>t.owner)
        free(t.name)
        free(t)
    return 0


# Whether the call can be made. Else e says why.
cdef int check_call(Target* t, bint streams, tf_error* e) noexcept nogil:
    cdef Model* m = t.model
    if m.decoupled and not streams:
        return tf_fail(e, TF_INTERNAL, b"Model %.*s is using the decoupled. The current BLS request call doesn't "
                       b"support models using the decoupled transaction policy. Please use 'decoupled=True' argument "
                       b"to the 'exec' or 'async_exec' calls for decoupled models.'", <int>m.name_len, m.name)
    return 0


cdef Call* call_new(Worker* w, Target* t, uint32_t id, uint32_t options, Request* child) noexcept nogil:
    cdef Call* call = <Call*>calloc(1, sizeof(Call))
    if call == NULL:
        return NULL
    call.sink.deliver = call_deliver
    call.worker = w
    call.target = t
    call.id = id
    call.streams = options & BLS_STREAM != 0
    call.waits = options & BLS_WAITS != 0
    call.began = now_ns()
    call.child = child
    child.sink = &call.sink
    child.ctx = call
    child.max_responses = MAX_UNREAD
    tf_add32(&w.refs, 1)
    pthread_mutex_lock(&w.lock)
    t.refs += 1
    w.n_calls += 1
    call.next = w.calls
    if call.next != NULL:
        call.next.prev = call
    w.calls = call
    pthread_mutex_unlock(&w.lock)
    return call


cdef void target_unref(Worker* w, Target* t) noexcept nogil:
    pthread_mutex_lock(&w.lock)
    t.refs -= 1
    pthread_mutex_unlock(&w.lock)


# Make a request of t's model of a copied record. SUBMIT_OK; SUBMIT_STOPPED: the name may mean another model by now;
# -1 as that, e is filled.
cdef int submit_to(Worker* w, Target* t, Source* s, uint32_t id, uint32_t options, tf_error* e) noexcept nogil:
    cdef Call* call
    cdef Request* r
    cdef bint wake = False
    cdef int status
    if check_call(t, options & BLS_STREAM != 0, e) != 0:
        return REFUSED_PLAINLY
    r = decode_bls(s, w.record.data, w.record.len, t.model, e)
    if r == NULL:
        return -1
    if r.trace_len:
        trace_adopt(r)
    call = call_new(w, t, id, options, r)
    if call == NULL:
        request_free(r)
        return tf_fail(e, TF_INTERNAL, b"out of memory")
    status = scheduler_submit(t.scheduler, r, &wake, e)
    if wake:
        scheduler_wake(t.scheduler)
    if status == SUBMIT_OK:
        return status       # call and r may be gone
    pthread_mutex_lock(&w.lock)
    call_unlink(w, call)
    if status == SUBMIT_STOPPED:
        t.epoch = -1        # look again
    pthread_mutex_unlock(&w.lock)
    worker_unref(w)
    if status == SUBMIT_STOPPED:
        trace_drop(trace_detach(r))     # it is made anew
    request_free(r)
    return SUBMIT_STOPPED if status == SUBMIT_STOPPED else -1


# Make the request of a copied record. 0, or -1 with e filled.
cdef int submit(Worker* w, Source* s, uint32_t id, tf_error* e) noexcept nogil:
    cdef BlsRecord head
    cdef Target* t
    cdef const char* name = NULL
    cdef int _attempt, status
    memcpy(&head, w.record.data, sizeof(BlsRecord))
    if bls_model(w.record.data, w.record.len, &name) != 0:
        return tf_fail(e, TF_INTERNAL, b"malformed request")
    for _attempt in range(2):
        t = target_of(w, name, head.model_len, head.version, e)
        if t == NULL:
            break
        status = submit_to(w, t, s, id, head.options, e)
        target_unref(w, t)
        if status == SUBMIT_OK or status == REFUSED_PLAINLY:
            return 0 if status == SUBMIT_OK else -1
        if status != SUBMIT_STOPPED:
            break
    return name_model(name, head.model_len, e)


# The error of a request that did not get as far as its model, as Triton words it.
cdef int name_model(const char* name, size_t n, tf_error* e) noexcept nogil:
    cdef tf_error cause
    memcpy(&cause, e, sizeof(tf_error))
    return tf_fail(e, cause.code, b"Model %.*s - Error when running inference: %.*s", <int>min(n, <size_t>1024), name,
                   <int>cause.len, cause.text)


cdef int call_start(Worker* w, Channel* c, Message* m) noexcept nogil:
    cdef Source s
    cdef tf_error e
    if w.n_calls >= MAX_CALLS:
        return -1           # no model has so many requests under way
    if copy_record(c.region, m.off, sizeof(BlsRecord), m.len, &w.record) != 0:
        return -1
    source_begin(&s, c.region, m.off)
    tf_fail(&e, TF_INTERNAL, b"out of memory")
    if submit(w, &s, m.id, &e) != 0:
        # Through the same list as all others, so that it waits for room as they do.
        refuse_new(w, m.id, &e)
    source_end(&s)
    return 0


# Answer a call that never became a request. It has a target of its own, without a model.
cdef void refuse_new(Worker* w, uint32_t id, tf_error* e) noexcept nogil:
    cdef Request* r = request_new(NULL)
    cdef Target* t = <Target*>calloc(1, sizeof(Target))
    cdef Call* call
    if r == NULL or t == NULL:
        free(t)
        if r != NULL:
            request_free(r)
        return
    call = call_new(w, t, id, BLS_STREAM, r)
    if call == NULL:
        free(t)
        request_free(r)
        return
    response_fail(&r.response, e.code, e.text, e.len)
    call_deliver(&call.sink, &r.response, &r.response)


# The lock is held.
cdef Call* find_call(Worker* w, uint32_t id) noexcept nogil:
    cdef Call* call = w.calls
    while call != NULL and call.id != id:
        call = call.next
    return call


# A call's child, held so that it can be taken back when the lock is free: a scheduler that is asked may answer this
# request or others at once, by call_deliver. The lock is held.
cdef struct Held:
    Request* child
    Target* target


cdef bint hold_child(Call* call, Held* held) noexcept nogil:
    if call == NULL or call.child == NULL or call.target.scheduler == NULL:
        return False
    held.child = call.child
    held.target = call.target
    held.target.refs += 1
    tf_add32(&held.child.holds, 1)
    return True


# Without the lock. Take the child back and answer it with this error if it was still queued; else it is told to stop.
cdef bint end_child(Worker* w, Held* held, int32_t code, const char* text) noexcept nogil:
    cdef Request* r = held.child
    cdef bint taken = scheduler_cancel(held.target.scheduler, r)
    target_unref(w, held.target)
    if taken:
        response_fail(&r.response, code, text, strlen(text))
        call_deliver(sink_end(r.sink), &r.response, &r.response)
    request_free(r)
    return taken


cdef void call_end(Worker* w, uint32_t id, bint cancel) noexcept nogil:
    cdef Held held
    cdef Call* call
    cdef bint found = False
    pthread_mutex_lock(&w.lock)
    call = find_call(w, id)
    if call != NULL and not cancel:
        call.closed = True
    elif cancel:
        found = hold_child(call, &held)
    pthread_mutex_unlock(&w.lock)
    if found:
        end_child(w, &held, TF_CANCELLED, b"the request was cancelled")


cdef bint call_refuse(Worker* w, uint32_t id, int32_t code, const char* text, size_t n) noexcept nogil:
    cdef Request* r
    cdef Held held
    cdef bint taken = False
    pthread_mutex_lock(&w.lock)
    if not hold_child(find_call(w, id), &held):
        pthread_mutex_unlock(&w.lock)
        return False
    pthread_mutex_unlock(&w.lock)
    # Only one that no instance has: one that runs is not told to stop.
    r = held.child
    taken = scheduler_withdraw(held.target.scheduler, r)
    target_unref(w, held.target)
    if taken:
        response_fail(&r.response, code, text, n)
        call_deliver(sink_end(r.sink), &r.response, &r.response)
    else:
        taken = ensemble_refuse(r, code, text, n)
    request_free(r)
    return taken


# What had arrived and was not told. A call lives until its final response, which may be in another list or come from
# another thread: of the others only the memory is looked at.
cdef void abandon_responses(Response* p) noexcept nogil:
    cdef Response* after
    cdef Response* finals = NULL
    while p != NULL:
        after = p.next
        if p.is_final:
            p.next = finals
            finals = p
        else:
            free_response(p)
        p = after
    while finals != NULL:
        after = finals.next
        call_deliver(sink_end(finals.request.sink), finals, finals)
        finals = after


cdef void calls_abandon(Worker* w) noexcept nogil:
    cdef Call* call
    cdef Held* held
    cdef Response* p
    cdef int32_t i, n = 0
    pthread_mutex_lock(&w.lock)
    w.serving = False
    held = <Held*>malloc((<size_t>w.n_calls + 1) * sizeof(Held))
    call = w.calls
    while call != NULL:
        call.closed = True
        if held != NULL and hold_child(call, &held[n]):     # without memory they end by themselves
            n += 1
        call = call.next
    p = w.arrived
    w.arrived = NULL
    pthread_mutex_unlock(&w.lock)
    for i in range(n):
        end_child(w, &held[i], TF_CANCELLED, b"the request was cancelled")
    free(held)
    abandon_responses(p)
    p = w.unanswered
    w.unanswered = NULL
    abandon_responses(p)
    if n:
        with gil:
            targets_drop(w)     # what the last response of a call could not let go of while it was held here
