# The sequence batcher's functions as a Scheduler, and its owner. Everything is under one lock of the model; the parts
# are in sequence_slots, _flow, _take, _controls, _state and _taps. Knows no config: names and values come in as such.
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc
from libc.string cimport memcpy, memset

from triton_fast._native.core.marks cimport (
    FLAG_SEQUENCE_END, FLAG_SEQUENCE_START, REQ_CANCELLED, REQ_DONE, REQ_QUEUED, T_QUEUED,
)
from triton_fast._native.core.memory cimport block_new
from triton_fast._native.core.native cimport (
    TF_INVALID_ARG, TF_UNAVAILABLE, TF_UNSUPPORTED, dtype_size, now_ns, tf_add32, tf_cas32, tf_error, tf_fail,
    tf_load32, tf_store32, tf_swap32,
)
from triton_fast._native.core.pthread cimport (
    cond_init_monotonic, pthread_cond_signal, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)
from triton_fast._native.core.model cimport IoSpec, ModelHandle
from triton_fast._native.core.request cimport Request, Response, Sink, request_free
from triton_fast._native.core.respond cimport request_cancel
from triton_fast._native.core.room cimport room
from triton_fast._native.core.stats cimport FAIL_CANCELED, FAIL_REJECTED, stats_failure
from triton_fast._native.sched.full cimport FULL, bytes_check
from triton_fast._native.sched.policy cimport MAX_PREFERRED, MAX_TAKE, MAX_US, config_ns
from triton_fast._native.sched.scheduler cimport SUBMIT_OK, SUBMIT_REFUSED, SUBMIT_STOPPED, Scheduler
from triton_fast._native.sched.sequence_controls cimport controls_check, entry_new, entry_use
from triton_fast._native.sched.sequence_flow cimport (
    Refused, become_ready, clock_of, give_up, queue_add, reap, reap_soon, reaper_end, reaper_start, refuse,
    sequences_unref, wake_all,
)
from triton_fast._native.sched.sequence_slots cimport (
    deadline_note, sequence_find, sequence_forget, sequence_move, sequence_new, slot_take, slots_begin,
)
from triton_fast._native.sched.sequence_take cimport sequences_executed, sequences_take
from triton_fast._native.sched.sequence_types cimport (
    CONTROL_CORRID, Control, Entry, MAX_ID, Seat, Sequence, Sequences, StateSpec,
)
from triton_fast._native.sched.stopping cimport STOPPING

from triton_fast.errors import Internal

# ---- the Scheduler

# What can be said of r without looking at other requests.
cdef int check(Sequences* q, Request* r, tf_error* e) noexcept nogil:
    if r.batch != 1:
        return tf_fail(e, TF_INVALID_ARG, b"inference request to model '%s' must specify batch-size 1 due to "
                       b"requirements of sequence batcher", q.model.name)
    if r.correlation_len > MAX_ID:
        return tf_fail(e, TF_UNSUPPORTED, b"string correlation ID cannot be longer than 128 characters")
    if r.correlation == 0 and r.correlation_len == 0 and not q.model.iterative:
        return tf_fail(e, TF_INVALID_ARG, b"inference request to model '%s' must specify a non-zero or non-empty "
                       b"correlation ID", q.model.name)
    return 0


cdef int unknown(Sequences* q, Request* r, tf_error* e) noexcept nogil:
    if r.correlation_len:
        tf_fail(e, TF_INVALID_ARG, b"inference request for sequence %.*s to model '%s' must specify the START flag on "
                b"the first request of the sequence", <int>r.correlation_len, r.correlation_text, q.model.name)
    else:
        tf_fail(e, TF_INVALID_ARG, b"inference request for sequence %llu to model '%s' must specify the START flag on "
                b"the first request of the sequence", <unsigned long long>r.correlation, q.model.name)
    return SUBMIT_REFUSED


# Whether one more request of s may wait; NULL: of one that it begins. What comes later of a sequence whose request was
# refused is not: its client has been told.
cdef int check_room(Sequences* q, Sequence* s, Request* r, tf_error* e) noexcept nogil:
    if s == NULL and q.n_waiting >= q.max_waiting:
        return tf_fail(e, q.full_code, b"%s: %d sequences wait for a slot of model '%s'", FULL, q.n_waiting,
                       q.model.name)
    if s != NULL and s.count >= q.max_requests and r.correlation_len:
        return tf_fail(e, q.full_code, b"%s: %d requests of sequence %.*s wait for model '%s'", FULL, s.count,
                       <int>r.correlation_len, r.correlation_text, q.model.name)
    if s != NULL and s.count >= q.max_requests:
        return tf_fail(e, q.full_code, b"%s: %d requests of sequence %llu wait for model '%s'", FULL, s.count,
                       <unsigned long long>r.correlation, q.model.name)
    if q.max_bytes:
        return bytes_check(r, q.bytes, q.max_bytes, q.full_code, e)
    return 0


# The sequence that r belongs to, a new one if it starts it, in a slot or in the backlog. NULL: *status says why.
cdef Sequence* sequence_of(Sequences* q, Request* r, int* status, tf_error* e) noexcept nogil:
    cdef bint generated = r.correlation == 0 and r.correlation_len == 0
    cdef bint starts = generated or r.flags & FLAG_SEQUENCE_START
    cdef Sequence* s = NULL
    status[0] = SUBMIT_STOPPED
    if not generated:
        s = sequence_find(q, r.correlation, r.correlation_text, r.correlation_len)
    if q.closed or (q.base.stopping and starts) or (s != NULL and s.seat >= 0 and q.seats[s.seat].ended):
        tf_fail(e, TF_UNAVAILABLE, "%s", STOPPING)
        return NULL
    if s == NULL and not starts:
        status[0] = unknown(q, r, e)
        return NULL
    status[0] = SUBMIT_REFUSED
    if s == NULL and controls_check(q, r, e) != 0:
        return NULL
    if check_room(q, s, r, e) != 0:
        stats_failure(q.base.stats, FAIL_REJECTED, 0)
        return NULL
    if s != NULL:
        return s
    if generated:
        # One request, one sequence: nobody else can know its id.
        q.next_id += 1
        s = sequence_new(q, q.next_id, NULL, 0, False)
    else:
        s = sequence_new(q, r.correlation, r.correlation_text, r.correlation_len, True)
    if s == NULL:
        tf_fail(e, TF_UNAVAILABLE, "out of memory")
        return NULL
    if generated:
        r.correlation = s.number
        r.flags |= FLAG_SEQUENCE_START
        s.closed = True
    if not slot_take(q, s):
        sequence_move(q, s, &q.backlog)
    return s


cdef void note_deadline(Sequences* q, Sequence* s, Request* r, int64_t now) noexcept nogil:
    cdef int64_t deadline
    if r.timeout_us == 0:
        return
    deadline = now + <int64_t>min(r.timeout_us, <uint64_t>MAX_US) * 1000
    if s.deadline and s.deadline <= deadline:
        return
    s.deadline = deadline
    deadline_note(q, s)
    reap_soon(q, deadline)


cdef int sequences_submit(Scheduler* base, Request* r, bint* wake, tf_error* e) noexcept nogil:
    cdef Sequences* q = <Sequences*>base
    cdef Sequence* s
    cdef Seat* seat
    cdef Entry* entry
    cdef int64_t now
    cdef int status = 0
    wake[0] = False
    if check(q, r, e) != 0:
        return SUBMIT_REFUSED
    entry = entry_new(q, r)
    if entry == NULL:
        tf_fail(e, TF_UNAVAILABLE, "out of memory")
        return SUBMIT_REFUSED
    pthread_mutex_lock(&q.lock)
    s = sequence_of(q, r, &status, e)
    if s == NULL:
        pthread_mutex_unlock(&q.lock)
        return status
    entry.sequence = s
    entry_use(r, entry)
    if r.stamps[T_QUEUED] == 0:
        r.stamps[T_QUEUED] = now_ns()
    now = q.fake_now if q.faked else r.stamps[T_QUEUED]
    if r.flags & FLAG_SEQUENCE_END:
        # Its id may begin another sequence while this one still runs.
        sequence_forget(q, s)
        s.closed = True
    queue_add(q, s, r, False)
    if s.seat < 0:
        note_deadline(q, s, r, now)
    elif not s.busy and s.count == 1:
        become_ready(q, s, now)
        seat = &q.seats[s.seat]
        if seat.asleep and not seat.spinning:
            tf_store32(&seat.poked, 1)
            wake[0] = True
    pthread_mutex_unlock(&q.lock)
    return SUBMIT_OK


cdef void sequences_wake(Scheduler* base) noexcept nogil:
    cdef Sequences* q = <Sequences*>base
    cdef int32_t i
    for i in range(q.n_seats):
        if tf_load32(&q.seats[i].poked) and tf_swap32(&q.seats[i].poked, 0):
            pthread_cond_signal(&q.seats[i].wake)


cdef bint sequences_cancel(Scheduler* base, Request* r, bint tell) noexcept nogil:
    cdef Sequences* q = <Sequences*>base
    cdef Sequence* s
    cdef Request** link
    cdef Request* last = NULL
    cdef Refused refused
    memset(&refused, 0, sizeof(Refused))
    if tell:
        request_cancel(r)
    pthread_mutex_lock(&q.lock)
    if not tf_cas32(&r.state, REQ_QUEUED, REQ_CANCELLED):
        pthread_mutex_unlock(&q.lock)
        return False
    # A sequence with a hole in it makes no sense: what else is queued of it goes too.
    s = (<Entry*>r.sched).sequence
    give_up(q, s, REQ_CANCELLED, &refused, clock_of(q))
    pthread_mutex_unlock(&q.lock)
    link = &refused.head
    while link[0] != r:
        last = link[0]
        link = &link[0].q_next
    link[0] = r.q_next
    if refused.tail == r:
        refused.tail = last
    stats_failure(q.base.stats, FAIL_CANCELED, now_ns() - r.stamps[T_QUEUED])
    refuse(q, &refused)
    return True


cdef void sequences_stop(Scheduler* base, bint abort) noexcept nogil:
    cdef Sequences* q = <Sequences*>base
    cdef Seat* seat
    cdef Sequence* s
    cdef Sequence* after
    cdef Refused refused
    cdef int64_t now
    cdef int32_t i
    memset(&refused, 0, sizeof(Refused))
    pthread_mutex_lock(&q.lock)
    now = clock_of(q)
    tf_store32(&q.base.stopping, True)
    if abort:
        q.closed = True
        while q.backlog.head != NULL:       # before slots become free
            give_up(q, q.backlog.head, REQ_DONE, &refused, now)
        for i in range(q.n_seats):
            seat = &q.seats[i]
            while seat.ready.head != NULL:
                give_up(q, seat.ready.head, REQ_DONE, &refused, now)
            s = seat.out.head
            while s != NULL:
                after = s.next
                give_up(q, s, REQ_DONE, &refused, now)
                s = after
    wake_all(q)
    pthread_mutex_unlock(&q.lock)
    refuse(q, &refused)


cdef void sequences_join(Scheduler* base) noexcept nogil:
    reaper_end(<Sequences*>base)


cdef int32_t sequences_pending(Scheduler* base) noexcept nogil:
    return tf_load32(&(<Sequences*>base).count)


cdef void drop(Sink* sink, Response* first, Response* last) noexcept nogil:
    cdef Response* after
    while True:
        after = first.next if first != last else NULL
        request_free(first.request)
        if after == NULL:
            return
        first = after


# ---- the owner


cdef int64_t* dims_of(dims, int batched) except NULL:
    cdef int64_t* p = <int64_t*>room(len(dims) + 1, sizeof(int64_t))
    cdef Py_ssize_t i
    p[0] = 1
    for i in range(len(dims)):
        p[i + batched] = dims[i]
    return p


cdef int32_t place(IoSpec* specs, int32_t first, int32_t n, str name) except -1:
    cdef int32_t i
    encoded = name.encode()
    for i in range(first, n):
        if specs[i].name[:specs[i].name_len] == encoded:
            return i
    raise ValueError(f"the model has no tensor '{name}' for sequences")


cdef int set_controls(Sequences* q, controls) except -1:
    cdef Control* c
    q.controls = <Control*>room(len(controls), sizeof(Control))
    for name, kind, dtype, off, on in controls:
        c = &q.controls[q.n_controls]
        c.input = place(q.model.inputs, q.model.n_inputs, q.model.n_all_inputs, name)
        c.kind = kind
        c.dtype = dtype
        c.size = dtype_size(c.dtype)
        if len(on) > 8 or len(off) > 8 or (kind != CONTROL_CORRID and (len(on) != c.size or len(off) != c.size)):
            raise ValueError(f"the values of control '{name}' do not have its data type")
        memcpy(c.on, <const char*>(<bytes>on), len(on))
        memcpy(c.off, <const char*>(<bytes>off), len(off))
        q.n_controls += 1
    return 0


cdef int set_states(Sequences* q, states) except -1:
    cdef StateSpec* spec
    cdef int batched = 1 if q.model.max_batch > 0 else 0
    q.states = <StateSpec*>room(len(states), sizeof(StateSpec))
    for input_name, output_name, dtype, dims, first_dims, first in states:
        spec = &q.states[q.n_states]
        spec.input = place(q.model.inputs, q.model.n_inputs, q.model.n_all_inputs, input_name)
        spec.output = place(q.model.outputs, 0, q.model.n_all_outputs, output_name)
        spec.dtype = dtype
        spec.ndim = <int32_t>len(dims) + batched
        q.n_states += 1
        spec.dims = dims_of(dims, batched)
        spec.first_dims = dims_of(first_dims, batched)
        spec.first_bytes = len(first)
        spec.first = block_new(len(first))
        if spec.first == NULL:
            raise MemoryError
        memcpy(spec.first.data, <const char*>(<bytes>first), len(first))
        q.state_ranks += spec.ndim
        q.states_vary = q.states_vary or min(dims, default=0) < 0
    return 0


cdef class NativeSequences(NativeScheduler):
    """The sequence batcher of one model, for ``NativeModel.use``. See sequence.pyi."""

    def __cinit__(self, *args, **kwargs):
        cdef Sequences* q = <Sequences*>calloc(1, sizeof(Sequences))
        if q == NULL:
            raise MemoryError
        pthread_mutex_init(&q.lock, NULL)
        cond_init_monotonic(&q.watch)
        q.refs = 1
        q.drop.deliver = drop
        q.base.submit = sequences_submit
        q.base.wake = sequences_wake
        q.base.cancel = sequences_cancel
        q.base.take = sequences_take
        q.base.executed = sequences_executed
        q.base.stop = sequences_stop
        q.base.join = sequences_join
        q.base.pending = sequences_pending
        self.q = q
        self.ptr = &q.base

    def __init__(self, ModelHandle model not None, *, int32_t instances, int32_t slots, bint direct, idle_us,
                 delay_us=0, double utilization=0.0, preferred=(), controls=(), states=(), bint iterative=False,
                 int32_t max_waiting=65536, int32_t max_requests=65536, int64_t max_bytes=0,
                 int32_t full_code=TF_UNAVAILABLE, clock=None):
        cdef Sequences* q = self.q
        cdef int32_t i
        cdef int64_t most = model.ptr.max_batch if model.ptr.max_batch > 0 else 1
        if q.model != NULL:
            raise ValueError("sequences can not be initialised twice")
        if instances < 1 or slots < 1 or (direct and slots > MAX_TAKE) or len(preferred) > MAX_PREFERRED or (
                max_waiting < 1 or max_requests < 1 or max_bytes < 0):
            raise ValueError("instances, slots or preferred sizes out of range")
        tf_add32(&model.ptr.refs, 1)
        q.model = model.ptr
        q.model.iterative = iterative
        q.base.placed = direct
        q.direct = direct
        q.max_waiting = max_waiting
        q.max_requests = max_requests
        q.max_bytes = max_bytes
        q.full_code = full_code
        q.n_slots = slots
        q.seats = <Seat*>room(instances, sizeof(Seat))
        for i in range(instances):
            cond_init_monotonic(&q.seats[i].wake)
            q.n_seats = i + 1
        q.idle_ns = config_ns(idle_us)
        q.policy.single = model.ptr.max_batch < 1
        q.policy.max_batch = min(most, MAX_TAKE)
        q.policy.delay_ns = 0 if q.policy.single else config_ns(delay_us)
        q.policy.n_preferred = <int32_t>len(preferred)
        for i, size in enumerate(sorted(preferred)):
            q.policy.preferred[i] = size
        # Without a utilization to reach, one ready slot is enough.
        q.enough = 1
        while utilization > 0.0 and q.enough < slots and q.enough < utilization * slots:
            q.enough += 1
        set_controls(q, controls)
        set_states(q, states)
        q.tapped = q.n_states > 0 or iterative
        if slots_begin(q) != 0:
            raise MemoryError
        if clock is not None:
            q.faked = True
            q.fake_now = clock
        elif reaper_start(q) != 0:
            raise Internal(f"model '{model.name}' can not start a thread for its sequences")

    def __dealloc__(self):
        if self.q != NULL:
            with nogil:
                reaper_end(self.q)
                sequences_unref(self.q)

    def set_clock(self, int64_t at):
        cdef Sequences* q = self.q
        cdef Refused refused
        if not q.faked:
            raise ValueError("sequences were made without a clock")
        memset(&refused, 0, sizeof(Refused))
        with nogil:
            pthread_mutex_lock(&q.lock)
            q.fake_now = at
            reap(q, at, &refused)
            wake_all(q)
            pthread_mutex_unlock(&q.lock)
            refuse(q, &refused)

    def counts(self):
        cdef Sequences* q = self.q
        cdef Sequence* s
        cdef int64_t waiting = 0, idle = 0, seated = 0, spare = 0
        cdef int32_t i
        with nogil:
            pthread_mutex_lock(&q.lock)
            s = q.backlog.head
            while s != NULL:
                waiting += 1
                s = s.next
            s = q.idle.head
            while s != NULL:
                idle += 1
                s = s.next
            s = q.spare
            while s != NULL:
                spare += 1
                s = s.chain
            for i in range(q.n_seats):
                seated += q.seats[i].n_used
            pthread_mutex_unlock(&q.lock)
        return {"seated": seated, "idle": idle, "waiting": waiting, "named": q.n_named, "known": q.n_born,
                "spare": spare, "deadlines": q.n_heap}

    @property
    def bytes(self):
        """Of inputs that wait, counted where there is a limit."""
        return self.q.bytes
