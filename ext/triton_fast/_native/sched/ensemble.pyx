# Ensembles: a scheduler without instances. A request to it becomes requests to its members (ensemble_run.pyx), on the
# threads that finish them. Knows no repository: who resolves names is handed in.
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from triton_fast._native.core.native cimport (
    TF_UNAVAILABLE, tf_add32, tf_error, tf_fail, tf_lock, tf_store32, tf_unlock,
)
from triton_fast._native.core.pthread cimport (
    cond_init_monotonic, pthread_cond_destroy, pthread_cond_wait, pthread_mutex_destroy, pthread_mutex_init,
    pthread_mutex_lock, pthread_mutex_unlock,
)
from triton_fast._native.core.request cimport Request
from triton_fast._native.core.respond cimport request_cancel
from triton_fast._native.sched.ensemble_frames cimport run_new
from triton_fast._native.sched.ensemble_plan cimport (
    Members, members_new, members_reach, members_unref, plan_free, plan_new,
)
from triton_fast._native.sched.ensemble_run cimport (
    WISH_ABORT, WISH_CANCEL, Ensemble, Limit, Run, run_drive, run_gone, run_start, run_wish,
)
from triton_fast._native.sched.model cimport Epoch, NativeModel
from triton_fast._native.sched.scheduler cimport SUBMIT_OK, SUBMIT_REFUSED, SUBMIT_STOPPED, NativeScheduler, Scheduler
from triton_fast._native.sched.stopping cimport STOPPING

from dataclasses import dataclass


# Whether a name that had a model has none now.
cdef bint lacks(Members* fresh, Members* old) noexcept nogil:
    cdef int32_t i
    for i in range(fresh.n):
        if fresh.steps[i].model == NULL and old.steps[i].model != NULL:
            return True
    return False


cdef Members* look_up(Ensemble* ens, Members* known, bint keep) noexcept nogil:
    cdef Members* old
    cdef Members* fresh
    pthread_mutex_lock(&ens.lock)
    fresh = ens.members
    if fresh != NULL and fresh != known and ens.epoch != NULL and ens.epoch[0] == fresh.epoch:
        tf_add32(&fresh.refs, 1)
        pthread_mutex_unlock(&ens.lock)
        return fresh
    pthread_mutex_unlock(&ens.lock)
    with gil:
        fresh = ask(<NativeEnsemble>ens.owner)
    if fresh == NULL:
        return NULL
    pthread_mutex_lock(&ens.lock)
    old = ens.members
    # Somebody has looked up after this; or the ensemble is about to be served no more, and until then the model that
    # has gone takes its requests.
    if old != NULL and (old.epoch > fresh.epoch or (keep and lacks(fresh, old))):
        tf_add32(&old.refs, 1)
        pthread_mutex_unlock(&ens.lock)
        members_unref(fresh)
        return old
    tf_add32(&fresh.refs, 1)
    ens.members = fresh
    pthread_mutex_unlock(&ens.lock)
    members_unref(old)
    return fresh


cdef Members* ask(NativeEnsemble self) noexcept:
    # Read before the names are: a change between makes the next request ask again.
    cdef long long epoch = self.ens.epoch[0] if self.ens.epoch != NULL else 0
    try:
        return members_new(self.ens.plan, self.resolve, epoch)
    except BaseException:
        return NULL


cdef int ensemble_submit(Scheduler* s, Request* r, bint* wake, tf_error* e) noexcept nogil:
    cdef Ensemble* ens = <Ensemble*>s
    cdef Members* members
    cdef Run* run
    cdef bint frozen
    wake[0] = False
    pthread_mutex_lock(&ens.lock)
    if ens.base.stopping:
        pthread_mutex_unlock(&ens.lock)
        tf_fail(e, TF_UNAVAILABLE, "%s", STOPPING)
        return SUBMIT_STOPPED
    ens.n_runs += 1
    frozen = ens.frozen
    members = ens.members
    if members != NULL:
        tf_add32(&members.refs, 1)
    pthread_mutex_unlock(&ens.lock)
    if members == NULL or not frozen and (ens.epoch == NULL or ens.epoch[0] != members.epoch):
        members_unref(members)
        members = look_up(ens, members, True)
    run = run_new(ens, r, members) if members != NULL else NULL
    if run == NULL:
        members_unref(members)
        run_gone(ens)
        tf_fail(e, TF_UNAVAILABLE, "no memory to begin with ensemble '%s'", ens.name)
        return SUBMIT_REFUSED
    r.sched = run
    pthread_mutex_lock(&ens.lock)
    run.next = ens.runs
    if run.next != NULL:
        run.next.prev = run
    ens.runs = run
    pthread_mutex_unlock(&ens.lock)
    run_start(run)
    return SUBMIT_OK


cdef void ensemble_wake(Scheduler* s) noexcept nogil:
    return


cdef bint ensemble_cancel(Scheduler* s, Request* r, bint tell) noexcept nogil:
    # What has begun can only be ended, which steps that run must be told.
    if not tell:
        return False
    request_cancel(r)
    return run_wish(<Run*>r.sched, WISH_CANCEL)


cdef void ensemble_stop(Scheduler* s, bint abort) noexcept nogil:
    cdef Ensemble* ens = <Ensemble*>s
    cdef Run* run
    cdef Run* mine = NULL
    pthread_mutex_lock(&ens.lock)
    tf_store32(&ens.base.stopping, True)
    run = ens.runs if abort else NULL
    while run != NULL:          # none of them ends before the lock is free
        tf_lock(&run.lock)
        run.wishes |= WISH_ABORT
        if not run.working:
            run.working = True
            run.next_driven = mine
            mine = run
        tf_unlock(&run.lock)
        run = run.next
    pthread_mutex_unlock(&ens.lock)
    while mine != NULL:
        run = mine
        mine = run.next_driven
        run_drive(run)


cdef void ensemble_join(Scheduler* s) noexcept nogil:
    cdef Ensemble* ens = <Ensemble*>s
    cdef Members* members
    pthread_mutex_lock(&ens.lock)
    while ens.n_runs > 0:
        pthread_cond_wait(&ens.ended, &ens.lock)
    members = NULL
    if ens.base.stopping:       # nobody needs them any more
        members = ens.members
        ens.members = NULL
    pthread_mutex_unlock(&ens.lock)
    members_unref(members)


cdef int32_t ensemble_pending(Scheduler* s) noexcept nogil:
    return 0


@dataclass(frozen=True)
class Step:
    """One step: ``inputs`` and ``outputs`` are pairs of a name of the model's and a tensor of the ensemble."""

    model: str
    version: int
    inputs: tuple
    outputs: tuple
    decoupled: bool = False


cdef class NativeEnsemble(NativeScheduler):
    """The scheduler of an ensemble.

    Parameters
    ----------
    model : NativeModel
        The ensemble itself, which is to ``use`` this.
    steps : sequence of Step
        Every tensor is an input of the ensemble or made by one step; no circles.
    resolve : callable
        ``resolve(name, version) -> NativeModel``, version -1 for the latest. Raises ``ServerError``.
    epoch : Epoch, optional
        Changes whenever ``resolve`` may answer otherwise; None: it is asked for each request.
    max_inflight : int
        Requests of each step that may be with its model at a time; 0: any number.

    Raises
    ------
    ValueError
        The steps are no ensemble.
    """

    cdef Ensemble* ens
    cdef object resolve
    cdef Epoch epoch

    def __cinit__(self, NativeModel model not None, steps, resolve, *, Epoch epoch=None, max_inflight=0):
        cdef Ensemble* ens
        cdef int32_t i
        ens = <Ensemble*>calloc(1, sizeof(Ensemble))
        if ens == NULL:
            raise MemoryError
        self.ens = ens
        pthread_mutex_init(&ens.lock, NULL)
        cond_init_monotonic(&ens.ended)
        steps = tuple(steps)
        if not steps:
            raise ValueError("an ensemble needs a step")
        inputs = [model.ptr.inputs[i].name[:model.ptr.inputs[i].name_len].decode() for i in range(model.ptr.n_inputs)]
        outputs = [model.ptr.outputs[i].name[:model.ptr.outputs[i].name_len].decode()
                   for i in range(model.ptr.n_outputs)]
        ens.plan = plan_new(steps, inputs, outputs)
        ens.limits = <Limit*>calloc(len(steps), sizeof(Limit))
        name = model.name.encode()
        ens.name = <char*>malloc(len(name) + 1)
        if ens.limits == NULL or ens.name == NULL:
            raise MemoryError
        memcpy(ens.name, <const char*>name, len(name))
        ens.name_len = <unsigned int>len(name)
        ens.max_inflight = min(max_inflight, 0x7FFFFFFF)
        ens.base.submit = ensemble_submit
        ens.base.wake = ensemble_wake
        ens.base.cancel = ensemble_cancel
        ens.base.stop = ensemble_stop
        ens.base.join = ensemble_join
        ens.base.pending = ensemble_pending
        ens.look_up = look_up
        ens.owner = <void*>self
        self.resolve = resolve
        self.epoch = epoch
        if epoch is not None:
            ens.epoch = &epoch.value
        self.ptr = &ens.base

    def __dealloc__(self):
        if self.ens == NULL:
            return
        members_unref(self.ens.members)
        plan_free(self.ens.plan)
        pthread_cond_destroy(&self.ens.ended)
        pthread_mutex_destroy(&self.ens.lock)
        free(self.ens.limits)
        free(self.ens.name)
        free(self.ens)

    def renew(self):
        """Let go of members that their names do not mean any more; the next request would do it too."""
        cdef bint has
        pthread_mutex_lock(&self.ens.lock)
        has = self.ens.members != NULL and not self.ens.frozen
        pthread_mutex_unlock(&self.ens.lock)
        if has:
            with nogil:
                members_unref(look_up(self.ens, NULL, True))

    def freeze(self):
        """Look no member up any more: served no more, this ends with the members that it had."""
        pthread_mutex_lock(&self.ens.lock)
        self.ens.frozen = True
        pthread_mutex_unlock(&self.ens.lock)

    def reached(self):
        """Return the addresses of the models that a request may come to, those of ensembles among them included."""
        cdef Members* members
        with nogil:
            members = look_up(self.ens, NULL, True)
        if members == NULL:
            raise MemoryError
        try:
            return members_reach(members)
        finally:
            members_unref(members)
