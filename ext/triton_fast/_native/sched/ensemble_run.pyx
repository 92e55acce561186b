# See ensemble_run.pxd. Only the thread that works on a run touches it, but for what Run.lock and Ensemble.lock guard.
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, strlen

from triton_fast._native.core.marks cimport (
    FLAG_PADDING, FLAG_PART, REQ_CANCELLED, REQ_DONE, REQ_RUNNING, T_COMPUTED, T_INPUT, T_OUTPUT, T_QUEUED, T_SENT,
    T_STARTED,
)
from triton_fast._native.core.memory cimport Block, block_unref, block_wrap
from triton_fast._native.core.native cimport (
    TF_CANCELLED, TF_INVALID_ARG, TF_OK, TF_UNAVAILABLE, now_ns, tf_add32, tf_error, tf_fail, tf_load32, tf_lock,
    tf_store32, tf_unlock,
)
from triton_fast._native.core.outputs cimport request_wants
from triton_fast._native.core.pthread cimport pthread_cond_broadcast, pthread_mutex_lock, pthread_mutex_unlock
from triton_fast._native.core.request cimport Request, Response, Sink, request_alloc, request_free, response_fail
from triton_fast._native.core.respond cimport request_fork, response_push
from triton_fast._native.core.stats cimport (
    FAIL_OTHER, N_PHASES, PHASE_INFER, PHASE_INPUT, PHASE_OUTPUT, PHASE_QUEUE, PHASE_REQUEST, stats_execution,
    stats_failure, stats_first, stats_success,
)
from triton_fast._native.core.tracing cimport trace_detach, trace_drop
from triton_fast._native.sched.ensemble_frames cimport (
    frame_new, frame_unref, frames_clear, made, make_ready, slot_used,
)
from triton_fast._native.sched.ensemble_places cimport list_out, place_forgo, place_leave, place_take
from triton_fast._native.sched.ensemble_plan cimport (
    Member, Members, Plan, PlanLevel, PlanStep, PlanTensor, members_unref,
)
from triton_fast._native.sched.ensemble_slot cimport Mark, Slot
from triton_fast._native.sched.ensemble_tensors cimport child_new, fill_answer, read_mark, slot_of
from triton_fast._native.sched.scheduler cimport (
    SUBMIT_OK, SUBMIT_STOPPED, scheduler_cancel, scheduler_submit, scheduler_wake, scheduler_withdraw,
)
from triton_fast._native.sched.stopping cimport STOPPING

cdef extern from * nogil:
    """
    typedef struct { void *first; void *last; int active; } tf_ensemble_thread;
    static tf_ensemble_thread *tf_ensemble_this(void) {
        static __thread tf_ensemble_thread mine;
        return &mine;
    }
    """
    # The runs that this thread is to work on, while it works on one.
    ctypedef struct Driver "tf_ensemble_thread":
        void* first
        void* last
        bint active
    Driver* this_thread "tf_ensemble_this"()

cdef const char* CANCELLED = b"the request was cancelled"
cdef const char* NO_MEMORY = b"out of memory"


# --- who works --------------------------------------------------------------------------------------------------------

cdef void drive_all(Driver* d) noexcept nogil:
    cdef Run* run
    while d.first != NULL:
        run = <Run*>d.first
        d.first = run.next_driven
        if advance(run):
            finish(run, False)
    d.active = False


# Work on a run that the caller has claimed. A thread works on one at a time, so that runs which lead to each other (an
# ensemble in an ensemble, places that become free) need no stack.
cdef void run_drive(Run* run) noexcept nogil:
    cdef Driver* d = this_thread()
    run.next_driven = NULL
    if d.first == NULL:
        d.first = run
    else:
        (<Run*>d.last).next_driven = run
    d.last = run
    if not d.active:
        d.active = True
        drive_all(d)


# The lock is held. Whether the caller is to work on it from now on.
cdef inline bint claim(Run* run) noexcept nogil:
    if run.working:
        return False
    run.working = True
    return True


cdef void step_deliver(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Run* run = (<Exec*>sink).run
    cdef bint mine
    last.next = NULL
    tf_lock(&run.lock)
    if run.news == NULL:
        run.news = first
    else:
        run.news_last.next = first
    run.news_last = last
    mine = claim(run)
    tf_unlock(&run.lock)
    if mine:
        run_drive(run)


# x has got its place, maybe on another thread than its run's.
cdef void grant(Exec* x) noexcept nogil:
    cdef Run* run = x.run
    cdef bint mine
    tf_lock(&run.lock)
    x.q_next = NULL
    if run.granted == NULL:
        run.granted = x
    else:
        run.granted_last.q_next = x
    run.granted_last = x
    mine = claim(run)
    tf_unlock(&run.lock)
    if mine:
        run_drive(run)


cdef bint run_wish(Run* run, int32_t wish) noexcept nogil:
    cdef Driver* d = this_thread()
    cdef bint mine, outermost = not d.active
    tf_lock(&run.lock)
    run.wishes |= wish
    mine = claim(run)
    tf_unlock(&run.lock)
    if not mine:
        return False
    # At once, also within other work of this thread: the caller wants to know.
    d.active = True
    if advance(run):
        finish(run, True)
    else:
        mine = False
    if outermost:
        drive_all(d)
    return mine


# Do all there is to do. True: it has ended, the caller is the last to touch it.
cdef bint advance(Run* run) noexcept nogil:
    cdef Response* news
    cdef Exec* granted
    cdef int32_t wishes
    while True:
        tf_lock(&run.lock)
        news = run.news
        granted = run.granted
        wishes = run.wishes
        if news == NULL and granted == NULL and wishes == 0 and run.ready == NULL:
            if run.under_way == 0:
                tf_unlock(&run.lock)
                return True             # run.working stays
            run.working = False
            tf_unlock(&run.lock)
            return False
        run.news = NULL
        run.granted = NULL
        run.wishes = 0
        tf_unlock(&run.lock)
        if wishes & WISH_CANCEL:
            run_fail(run, TF_CANCELLED, CANCELLED, strlen(CANCELLED), True)
        elif wishes & WISH_ABORT:
            run_fail(run, TF_UNAVAILABLE, STOPPING, strlen(STOPPING), False)
        take_news(run, news)
        take_granted(run, granted)
        start_ready(run)
        send_answers(run)


# --- begin ------------------------------------------------------------------------------------------------------------

cdef void run_start(Run* run) noexcept nogil:
    cdef Request* r = run.request
    cdef Plan* p = run.ensemble.plan
    cdef PlanLevel* top = &p.levels[0]
    cdef PlanTensor* t
    cdef Slot* slot
    cdef int32_t i
    if r.stamps[T_QUEUED] == 0:
        r.stamps[T_QUEUED] = now_ns()
    r.stamps[T_STARTED] = now_ns()
    tf_store32(&r.state, REQ_RUNNING)
    for i in range(p.n_inputs):
        t = &p.tensors[p.input_tensor[i]]
        slot = &run.first.slots[t.at]
        slot.tensor = r.by_index[i]
        slot.rows = r.batch if r.model.max_batch > 0 else 0
        made(run, &run.first, p.input_tensor[i])
    for i in range(top.n_steps):        # a step without inputs waits for nothing
        if run.needed[top.steps[i]] and p.steps[top.steps[i]].n_takes == 0:
            make_ready(run, &run.first.execs[i])
    run_drive(run)


# --- responses --------------------------------------------------------------------------------------------------------

# Take what a step made into frame f. -1: it makes no sense, e is filled.
cdef int take_outputs(Run* run, Exec* x, Frame* f, Response* p, tf_error* e) noexcept nogil:
    cdef Plan* plan = run.ensemble.plan
    cdef PlanStep* s = &plan.steps[x.step]
    cdef Request* from_ = p.request
    cdef Mark mark = x.mark
    cdef Slot* slot
    cdef char* text
    cdef int32_t i, t
    i = read_mark(p, &mark, e)
    if i < 0:
        return -1
    if i > 0 and mark.text != NULL and mark.text != x.mark.text:
        text = <char*>request_alloc(run.request, mark.text_len)
        if text == NULL:
            return tf_fail(e, TF_UNAVAILABLE, b"%s", NO_MEMORY)
        memcpy(text, mark.text, mark.text_len)
        mark.text = text
    for i in range(p.n_outputs):
        t = p.outputs[i].index
        if t < 0 or t >= x.member.model.n_outputs or x.member.outputs[t] < 0:
            continue
        slot = &f.slots[plan.tensors[x.member.outputs[t]].at]
        if slot.there or slot.tensor != NULL:
            continue        # a model that answers once has answered twice
        slot.tensor = &p.outputs[i]
        slot.owner = from_
        tf_add32(&from_.holds, 1)
        slot.rows = from_.batch if from_.model.max_batch > 0 else 0
    for i in range(s.n_outputs):
        slot = &f.slots[plan.tensors[s.output_tensor[i]].at]
        if not slot.there:
            slot.marked = True
            slot.mark = mark
            made(run, f, s.output_tensor[i])
    return 0


cdef void take_response(Run* run, Exec* x, Response* p) noexcept nogil:
    cdef int32_t opens = run.ensemble.plan.steps[x.step].opens
    cdef Frame* f = x.frame
    cdef tf_error e
    if p.code != TF_OK:
        send_answers(run)       # what came before
        run_fail(run, p.code, p.text, p.text_len, True)
        return
    if opens >= 0:
        if p.is_final and p.n_outputs == 0:
            return          # only says that there is no more
        f = frame_new(run, x.frame, opens, p.request)
        if f == NULL:
            run_fail(run, TF_UNAVAILABLE, NO_MEMORY, strlen(NO_MEMORY), True)
            return
    if take_outputs(run, x, f, p, &e) != 0:
        run_fail(run, e.code, e.text, e.len, True)
    if opens >= 0:
        frame_unref(run, f)


cdef void count_compute(Run* run, Request* c) noexcept nogil:
    cdef int i
    cdef int64_t* at = &c.stamps[T_STARTED]
    if at[0] == 0:
        return
    for i in range(3):
        if at[i] and at[i + 1] > at[i]:
            run.compute_ns[i] += at[i + 1] - at[i]


# A child that is back keeps what it made, not what it was made of.
cdef void drop_inputs(Request* c) noexcept nogil:
    cdef int32_t i
    for i in range(c.n_inputs):
        block_unref(c.inputs[i].block)
    c.n_inputs = 0


cdef void take_news(Run* run, Response* p) noexcept nogil:
    cdef Response* after
    cdef Exec* x
    while p != NULL:
        after = p.next
        x = <Exec*>p.request.ctx
        if p.is_final:
            count_compute(run, p.request)
        if not run.ending:
            take_response(run, x, p)
        if p.is_final:
            x.child = NULL
            if run.ensemble.plan.steps[x.step].opens < 0:
                drop_inputs(p.request)
            exec_end(run, x)
        request_free(p.request)
        p = after


# --- steps ------------------------------------------------------------------------------------------------------------

# x is no longer with a member, or never was.
cdef void exec_end(Run* run, Exec* x) noexcept nogil:
    cdef PlanStep* s = &run.ensemble.plan.steps[x.step]
    cdef int32_t i
    cdef bint placed = x.placed
    cdef Exec* waiting
    if x.state == EXEC_OUT or x.state == EXEC_WAITS:
        if x.prev != NULL:
            x.prev.next = x.next
        else:
            run.out = x.next
        if x.next != NULL:
            x.next.prev = x.prev
    x.state = EXEC_OVER
    x.placed = False
    run.under_way -= 1
    for i in range(s.n_takes):
        if run.ensemble.plan.tensors[s.takes[i]].level == s.level:
            slot_used(slot_of(run, x.frame, s.takes[i]))
    i = x.step
    frame_unref(run, x.frame)       # x may be gone
    if placed:
        waiting = place_leave(run.ensemble, i)
        if waiting != NULL:
            grant(waiting)


cdef void take_granted(Run* run, Exec* x) noexcept nogil:
    cdef Exec* after
    while x != NULL:
        after = x.q_next
        x.placed = True
        if run.ending:
            exec_end(run, x)
        else:
            start(run, x)
        x = after


cdef void start_ready(Run* run) noexcept nogil:
    cdef Exec* x
    while run.ready != NULL:
        x = run.ready
        run.ready = x.q_next
        if not run.ending and tf_load32(&run.request.cancelled):
            run_fail(run, TF_CANCELLED, CANCELLED, strlen(CANCELLED), True)
        if run.ending:
            exec_end(run, x)
        elif run.ensemble.max_inflight == 0:
            list_out(run, x)
            start(run, x)
        elif place_take(run, x):
            start(run, x)


# The members anew: the version that x was to go to takes no more. NULL: memory ran out.
cdef Members* members_again(Run* run) noexcept nogil:
    cdef Held* held = <Held*>malloc(sizeof(Held))
    if held == NULL:
        return NULL
    held.members = run.ensemble.look_up(run.ensemble, run.members, False)
    if held.members == NULL:
        free(held)
        return NULL
    held.next = run.more
    run.more = held
    # What was sent to the old ones may still be taken back there.
    held.members, run.members = run.members, held.members
    return run.members


# Submit x, which is in the list of those under way. When this returns it may be back already, in the run's news.
cdef void start(Run* run, Exec* x) noexcept nogil:
    cdef tf_error e
    cdef Members* members = run.members
    cdef Member* m
    cdef Request* c
    cdef bint wake
    cdef int attempt, status
    for attempt in range(2):
        m = &members.steps[x.step]
        if m.model == NULL:
            run_fail(run, m.code, m.error.text, m.error.len, True)
            exec_end(run, x)
            return
        c = child_new(x, m, &e)
        if c == NULL:
            break
        x.sink.deliver = step_deliver
        x.member = m
        x.child = c
        x.runner = NULL
        x.state = EXEC_OUT
        wake = False
        status = scheduler_submit(m.scheduler, c, &wake, &e)
        if wake:
            scheduler_wake(m.scheduler)
        if status == SUBMIT_OK:
            return
        x.child = NULL
        if status == SUBMIT_STOPPED and not attempt:
            trace_drop(trace_detach(c))     # it is made anew
        request_free(c)
        if status != SUBMIT_STOPPED or attempt:
            break
        members = members_again(run)
        if members == NULL:
            break
    run_fail(run, e.code, e.text, e.len, True)
    exec_end(run, x)


# --- ends -------------------------------------------------------------------------------------------------------------

# The response is this error. What waits is given up, what is queued at members is taken back; members that run a step
# are told with `tell`. The answer goes when the last of them is back, since they use the request's memory.
cdef void run_fail(Run* run, int32_t code, const char* text, size_t n, bint tell) noexcept nogil:
    cdef Ensemble* ens = run.ensemble
    cdef Request* r = run.request
    cdef const char* before = b"in ensemble '"
    cdef const char* between = b"', "
    cdef size_t n_before = strlen(before), n_between = strlen(between)
    cdef char* whole
    cdef Exec* x
    cdef Exec* after
    if run.ending:
        return
    run.ending = True
    if n > 65536:
        n = 65536
    whole = <char*>malloc(n_before + ens.name_len + n_between + n)
    if whole == NULL:
        response_fail(&r.response, code, text, n)
    else:
        memcpy(whole, before, n_before)
        memcpy(whole + n_before, ens.name, ens.name_len)
        memcpy(whole + n_before + ens.name_len, between, n_between)
        if n:
            memcpy(whole + n_before + ens.name_len + n_between, text, n)
        response_fail(&r.response, code, whole, n_before + ens.name_len + n_between + n)
        free(whole)
    x = run.out
    while x != NULL:
        after = x.next
        if x.state == EXEC_WAITS:
            if not x.placed and place_forgo(ens, x):
                exec_end(run, x)
        elif x.child != NULL and take_back(x, tell):
            exec_end(run, x)
        x = after


cdef bint take_back(Exec* x, bint tell) noexcept nogil:
    cdef Request* c = x.child
    # A producer that waits for room must be told in any case.
    if tell or x.run.ensemble.plan.steps[x.step].opens >= 0:
        if not scheduler_cancel(x.member.scheduler, c):
            return False
    elif not scheduler_withdraw(x.member.scheduler, c):
        return False
    x.child = NULL
    request_free(c)
    return True


cdef bint complete(Run* run, Frame* f) noexcept nogil:
    cdef Plan* p = run.ensemble.plan
    cdef int32_t i
    for i in range(p.n_outputs):
        if request_wants(run.request, i) and not slot_of(run, f, p.output_tensor[i]).there:
            return False
    return True


cdef void lease_end(Block* block) noexcept nogil:
    request_free(<Request*>block.owner)


# Send the answer of frame f. -1: memory ran out.
cdef int send_answer(Run* run, Frame* f) noexcept nogil:
    cdef Request* c = request_fork(run.request)
    if c == NULL:
        return -1
    if fill_answer(run, f, &c.response) != 0:
        request_free(c)
        return -1
    if run.request.max_responses > 0:
        # Who makes the stream waits for the client: the step's response counts until this one has gone.
        c.body = block_wrap(NULL, 0, lease_end, f.source)
        if c.body != NULL:
            f.source = NULL
    response_push(c)
    return 0


# Of a decoupled ensemble: the frames that are complete, in the order of the responses that they come from. The last
# goes with the end.
cdef void send_answers(Run* run) noexcept nogil:
    cdef Plan* p = run.ensemble.plan
    cdef Frame* f
    cdef int32_t i, t
    if not run.request.model.decoupled:
        return
    while not run.ending and run.answers != NULL and complete(run, run.answers):
        f = run.answers
        if run.under_way == 0 and f.next_answer == NULL:
            return
        if tf_load32(&run.request.cancelled):
            run_fail(run, TF_CANCELLED, CANCELLED, strlen(CANCELLED), True)
            return
        if send_answer(run, f) != 0:
            run_fail(run, TF_UNAVAILABLE, NO_MEMORY, strlen(NO_MEMORY), True)
            return
        run.answers = f.next_answer
        for i in range(p.n_outputs):
            t = p.output_tensor[i]
            if request_wants(run.request, i) and p.tensors[t].level == f.level:
                slot_used(&f.slots[p.tensors[t].at])
        frame_unref(run, f)


# The final response, if no error is.
cdef void fill_final(Run* run) noexcept nogil:
    cdef Request* r = run.request
    cdef Frame* f = run.answers if run.answer_level > 0 else &run.first
    cdef const char* stuck = (b"unexpected deadlock, at least one output is not set while no more ensemble steps can "
                              b"be made")
    if f != NULL and complete(run, f):
        if fill_answer(run, f, &r.response) != 0:
            run_fail(run, TF_UNAVAILABLE, NO_MEMORY, strlen(NO_MEMORY), True)
    elif not r.model.decoupled:
        run_fail(run, TF_INVALID_ARG, stuck, strlen(stuck), True)


cdef inline int64_t at_most(int64_t value, int64_t limit) noexcept nogil:
    return limit if value > limit else value


cdef void count(Run* run) noexcept nogil:
    cdef Request* r = run.request
    cdef int64_t done = now_ns()
    cdef int64_t whole = done - r.stamps[T_STARTED]
    cdef int64_t[N_PHASES] phase
    # Stamps cannot show steps that ran beside each other: they are what the sums leave room for.
    r.stamps[T_OUTPUT] = done
    r.stamps[T_INPUT] = r.stamps[T_STARTED] + at_most(run.compute_ns[0], whole)
    r.stamps[T_COMPUTED] = done - at_most(run.compute_ns[2], done - r.stamps[T_INPUT])
    if r.response.code != TF_OK:
        stats_failure(run.ensemble.base.stats, FAIL_OTHER, done - r.stamps[T_QUEUED])
        tf_lock(&run.ensemble.base.stats.lock)
        stats_first(run.ensemble.base.stats, r.stamps[T_QUEUED], r.stamps[T_SENT], done)
        tf_unlock(&run.ensemble.base.stats.lock)
        return
    phase[PHASE_REQUEST] = done - r.stamps[T_QUEUED]
    phase[PHASE_QUEUE] = r.stamps[T_STARTED] - r.stamps[T_QUEUED]
    phase[PHASE_INPUT] = run.compute_ns[0]
    phase[PHASE_INFER] = run.compute_ns[1]
    phase[PHASE_OUTPUT] = run.compute_ns[2]
    tf_lock(&run.ensemble.base.stats.lock)
    stats_execution(run.ensemble.base.stats, r.batch, &phase[PHASE_INPUT])
    if r.flags & (FLAG_PART | FLAG_PADDING) == 0:
        stats_success(run.ensemble.base.stats, phase)
        stats_first(run.ensemble.base.stats, r.stamps[T_QUEUED], r.stamps[T_SENT], done)
    tf_unlock(&run.ensemble.base.stats.lock)


cdef void run_gone(Ensemble* ens) noexcept nogil:
    pthread_mutex_lock(&ens.lock)
    ens.n_runs -= 1
    if ens.n_runs == 0:
        pthread_cond_broadcast(&ens.ended)
    pthread_mutex_unlock(&ens.lock)


# Nothing is under way any more. `back`: the request goes back to who cancels it, instead of being answered.
cdef void finish(Run* run, bint back) noexcept nogil:
    cdef Ensemble* ens = run.ensemble
    cdef Request* r = run.request
    cdef Members* members = run.members
    cdef Held* more = run.more
    cdef Held* held
    if not run.ending:
        fill_final(run)
    count(run)
    frames_clear(run)
    pthread_mutex_lock(&ens.lock)
    if run.prev != NULL:
        run.prev.next = run.next
    else:
        ens.runs = run.next
    if run.next != NULL:
        run.next.prev = run.prev
    pthread_mutex_unlock(&ens.lock)
    if back:
        tf_store32(&r.state, REQ_CANCELLED)
    else:
        tf_store32(&r.state, REQ_DONE)
        r.response.next = NULL
        r.sink.deliver(r.sink, &r.response, &r.response)
    # The run lay in the request.
    members_unref(members)
    while more != NULL:
        held = more
        more = held.next
        members_unref(held.members)
        free(held)
    run_gone(ens)
