# One request to an ensemble on its way. A run and its first frame lie in the request's own memory, so that a late
# cancel finds them. One thread at a time works on a run: who has news (a response, a cancel) leaves it in its list, and
# works if nobody does. So no lock is held while models are called; steps that end within their submit need no stack.
from libc.stdint cimport int32_t, int64_t, uint32_t

from triton_fast._native.core.pthread cimport pthread_cond_t, pthread_mutex_t
from triton_fast._native.core.request cimport Request, Response, Sink
from triton_fast._native.sched.ensemble_plan cimport Member, Members, Plan
from triton_fast._native.sched.ensemble_slot cimport Mark, Slot
from triton_fast._native.sched.scheduler cimport Scheduler

cdef enum:                  # Exec.state
    EXEC_IDLE = 0           # tensors are missing
    EXEC_READY = 1          # in the run's list of steps to be submitted
    EXEC_WAITS = 2          # for a place (max_inflight)
    EXEC_OUT = 3            # the member has it
    EXEC_OVER = 4
    WISH_CANCEL = 1         # Run.wishes
    WISH_ABORT = 2          # end without telling the members that run

cdef struct Ensemble
cdef struct Run
cdef struct Frame

# A step of one frame.
cdef struct Exec:
    Sink sink               # first
    Run* run
    Frame* frame
    int32_t step
    int32_t state           # EXEC_*
    int32_t missing         # tensors
    bint placed             # it has one of the step's places
    bint queued             # in the list of those that wait for one; Ensemble.lock
    Member* member          # EXEC_OUT: who has it; held by the run's members
    Request* child          # EXEC_OUT
    void* runner            # key of the Python instance that executes the child; NULL: not known
    Mark mark
    Exec* next              # those of the run that wait or are with a member
    Exec* prev
    Exec* q_next            # those that are ready, wait for a place or have got it
    Exec* q_prev

# Level 0, or one response of a decoupled step and what follows from it.
cdef struct Frame:
    Frame* parent
    Frame* next             # all frames of the run but the first
    Frame* prev
    Frame* next_answer
    int32_t level
    int32_t refs            # steps not over, frames below, the answer
    Request* source         # the response, one hold; NULL for the first
    Slot* slots
    Exec* execs

cdef struct Held:           # members that a run took later
    Held* next
    Members* members

cdef struct Run:
    Ensemble* ensemble
    Request* request
    Members* members        # one reference
    Held* more
    Run* next               # of the ensemble
    Run* prev
    Run* next_driven        # of the thread that is to work on it
    int32_t lock            # of the next seven
    bint working            # stays set after the end
    int32_t wishes          # WISH_*
    Response* news
    Response* news_last
    Exec* granted           # they have got the place that they waited for
    Exec* granted_last
    bint ending             # failed or cancelled: nothing more is started
    int32_t under_way       # execs that are ready, wait for a place or are with a member
    Exec* out               # all of them but the ready ones
    Exec* ready
    Exec* ready_last
    Frame* frames
    Frame* answers          # frames whose responses are to come, in this order
    Frame* answers_last
    int32_t answer_level
    int32_t* uses           # of each tensor: Slot.left when it is made
    char* needed            # of each step
    int64_t[3] compute_ns   # of all steps: input, infer, output
    Frame first

cdef struct Limit:          # places of one step
    int32_t taken
    Exec* waiting
    Exec* waiting_last

cdef struct Ensemble:
    Scheduler base          # first
    pthread_mutex_t lock    # of what follows, up to limits
    pthread_cond_t ended
    Members* members        # NULL: look them up
    bint frozen             # served no more: they stay
    Run* runs
    int64_t n_runs
    Limit* limits
    int32_t max_inflight    # requests of each step; 0: any number
    Plan* plan
    long long* epoch        # NULL: look the members up for each request
    void* owner             # NativeEnsemble, which outlives all runs
    # The members now, anew if they are still `known`; with `keep` no fewer than there were. NULL: memory ran out.
    Members* (*look_up)(Ensemble* ens, Members* known, bint keep) noexcept nogil
    char* name
    uint32_t name_len

# The request may be answered and gone when this returns.
cdef void run_start(Run* run) noexcept nogil
# True: it ended at once, nothing is delivered and the request is the caller's.
cdef bint run_wish(Run* run, int32_t wish) noexcept nogil
# Work on a run that the caller has claimed: it has set `working`.
cdef void run_drive(Run* run) noexcept nogil
cdef void run_gone(Ensemble* ens) noexcept nogil
cdef void step_deliver(Sink* sink, Response* first, Response* last) noexcept nogil
