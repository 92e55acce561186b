# See ensemble_look.pxd. Who looks at a run works on it meanwhile, like any thread with news: what it sees is not freed,
# and news that come wait until it drives the run.
from libc.stdint cimport int32_t

from triton_fast._native.core.marks cimport REQ_QUEUED, REQ_RUNNING
from triton_fast._native.core.native cimport tf_load32, tf_lock, tf_unlock
from triton_fast._native.core.request cimport Request, Sink, response_fail, sink_end
from triton_fast._native.sched.ensemble_run cimport EXEC_OUT, EXEC_WAITS, Exec, Run, run_drive, step_deliver
from triton_fast._native.sched.scheduler cimport scheduler_withdraw

cdef enum:
    MAX_WAITS = 256         # that are looked at
    MAX_NESTED = 32         # ensembles in ensembles
    GOES_ON = -1

cdef struct Wait:
    void* model
    void* runner
    int state               # index in STATES


cdef enum:
    RUNNING = 0
    QUEUED = 1
    WAITING = 2             # for a place of the step: there is no request yet

STATES = ("running", "queued", "waiting")


# The run of r, which is the caller's until it drives it. NULL: there is none, or somebody works on it.
cdef Run* claimed(Request* r) noexcept nogil:
    cdef Run* run
    cdef bint mine
    if r.model == NULL or not r.model.composed or tf_load32(&r.state) != REQ_RUNNING:
        return NULL
    run = <Run*>r.sched
    if run == NULL:         # a layer has it
        return NULL
    tf_lock(&run.lock)
    mine = not run.working
    run.working = True
    tf_unlock(&run.lock)
    return run if mine else NULL


# Add what r waits for to the n there are; their number, or GOES_ON.
cdef int32_t add_waits(Request* r, Wait* out, int32_t n, int depth) noexcept nogil:
    cdef Run* run = claimed(r) if depth < MAX_NESTED else NULL
    cdef int32_t before = n
    cdef Exec* x
    if run == NULL:
        return GOES_ON
    x = run.out
    while x != NULL and n >= 0:
        n = add_step(run, x, out, n, depth)
        x = x.next
    run_drive(run)
    return n if n > before else GOES_ON


cdef int32_t add_step(Run* run, Exec* x, Wait* out, int32_t n, int depth) noexcept nogil:
    cdef Wait* to = &out[n]
    if n == MAX_WAITS:
        return GOES_ON
    if x.state == EXEC_WAITS:
        # Others have the step's places, and wait for the same model's instances.
        to.model = run.members.steps[x.step].model
        to.runner = NULL
        to.state = WAITING
        return n + 1 if to.model != NULL and not x.placed else GOES_ON
    if x.state != EXEC_OUT or x.child == NULL:
        return GOES_ON
    if x.child.model.composed:
        return add_waits(x.child, out, n, depth + 1)
    to.model = x.child.model
    to.runner = x.runner
    to.state = QUEUED if tf_load32(&x.child.state) == REQ_QUEUED else RUNNING
    return n + 1


cdef tuple ensemble_waits(Request* r):
    cdef Wait[MAX_WAITS] found
    cdef int32_t i, n
    with nogil:
        n = add_waits(r, found, 0, 0)
    return tuple([
        (<size_t>found[i].model, STATES[found[i].state], <size_t>found[i].runner) for i in range(n)
    ])


cdef bint refuse_one(Request* r, int32_t code, const char* text, size_t n, int depth) noexcept nogil:
    cdef Run* run = claimed(r) if depth < MAX_NESTED else NULL
    cdef bint done = False
    cdef Exec* x
    if run == NULL:
        return False
    x = run.out
    while x != NULL and not done:
        if x.state == EXEC_OUT and x.child != NULL:
            if x.child.model.composed:
                done = refuse_one(x.child, code, text, n, depth + 1)
            elif scheduler_withdraw(x.member.scheduler, x.child):
                response_fail(&x.child.response, code, text, n)
                step_deliver(&x.sink, &x.child.response, &x.child.response)
                done = True
        x = x.next
    run_drive(run)
    return done


cdef bint ensemble_refuse(Request* r, int32_t code, const char* text, size_t n) noexcept nogil:
    return refuse_one(r, code, text, n, 0)


cdef void step_runner(Request* r, void* runner) noexcept nogil:
    cdef Sink* sink = sink_end(r.sink)
    if sink != NULL and sink.deliver == step_deliver:
        (<Exec*>sink).runner = runner
