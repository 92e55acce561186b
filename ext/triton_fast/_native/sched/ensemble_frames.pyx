# The memory of a run: its frames, their tensors, and which steps are ready. See ensemble_frames.pxd.
from libc.stdint cimport int32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memset

from triton_fast._native.core.native cimport tf_add32
from triton_fast._native.core.outputs cimport request_wants
from triton_fast._native.core.request cimport Request, request_alloc, request_free
from triton_fast._native.sched.ensemble_plan cimport Members, Plan, PlanLevel, PlanStep, PlanTensor
from triton_fast._native.sched.ensemble_run cimport EXEC_READY, Ensemble, Exec, Frame, Run
from triton_fast._native.sched.ensemble_slot cimport Slot
from triton_fast._native.sched.ensemble_tensors cimport slot_of


# Which steps are needed for what the client wants, and how often each tensor is used within its level.
cdef void find_needed(Run* run, Plan* p) noexcept nogil:
    cdef PlanStep* s
    cdef int32_t i, j, t
    run.answer_level = 0
    for i in range(p.n_outputs):
        if request_wants(run.request, i):
            t = p.output_tensor[i]
            run.uses[t] += 1
            if p.tensors[t].level > run.answer_level:
                run.answer_level = p.tensors[t].level
    for i in range(p.n_steps - 1, -1, -1):
        s = &p.steps[p.order[i]]
        for j in range(s.n_outputs):
            if run.uses[s.output_tensor[j]] > 0:
                run.needed[p.order[i]] = 1
        if run.needed[p.order[i]]:
            for j in range(s.n_takes):
                run.uses[s.takes[j]] += 1
    # What deeper levels use is kept as long as its frame, so their uses stand for that.


cdef void frame_begin(Run* run, Frame* f, Frame* parent, int32_t level, char* memory) noexcept nogil:
    cdef Plan* p = run.ensemble.plan
    cdef PlanLevel* made = &p.levels[level]
    cdef PlanStep* s
    cdef Exec* x
    cdef int32_t i, j
    f.parent = parent
    f.level = level
    f.slots = <Slot*>memory
    f.execs = <Exec*>(memory + <size_t>made.n_tensors * sizeof(Slot))
    for i in range(made.n_tensors):
        f.slots[i].left = run.uses[made.tensors[i]]
    for i in range(made.n_steps):
        if not run.needed[made.steps[i]]:
            continue
        s = &p.steps[made.steps[i]]
        x = &f.execs[i]
        x.run = run
        x.frame = f
        x.step = made.steps[i]
        for j in range(s.n_takes):
            if not slot_of(run, f, s.takes[j]).there:
                x.missing += 1
        f.refs += 1


cdef inline size_t frame_size(Plan* p, int32_t level) noexcept nogil:
    return <size_t>p.levels[level].n_tensors * sizeof(Slot) + <size_t>p.levels[level].n_steps * sizeof(Exec)


cdef Run* run_new(Ensemble* ens, Request* r, Members* members) noexcept nogil:
    cdef Plan* p = ens.plan
    cdef size_t rest = <size_t>p.n_tensors * sizeof(int32_t) + <size_t>p.n_steps + 8
    cdef size_t size = sizeof(Run) + frame_size(p, 0) + rest
    cdef char* memory = <char*>request_alloc(r, size)
    cdef Run* run = <Run*>memory
    if memory == NULL:
        return NULL
    memset(memory, 0, size)
    memory += sizeof(Run)
    run.ensemble = ens
    run.request = r
    run.members = members
    run.working = True
    run.uses = <int32_t*>(memory + frame_size(p, 0))
    run.needed = <char*>(run.uses + p.n_tensors)
    find_needed(run, p)
    frame_begin(run, &run.first, NULL, 0, memory)
    return run


# --- frames and tensors -----------------------------------------------------------------------------------------------

cdef void slot_drop(Slot* slot) noexcept nogil:
    cdef Request* owner = slot.owner
    slot.tensor = NULL
    slot.owner = NULL
    if owner != NULL:
        request_free(owner)


cdef void slot_used(Slot* slot) noexcept nogil:
    slot.left -= 1
    if slot.left <= 0:
        slot_drop(slot)


# Let go of a frame's tensors and of its source.
cdef void frame_clear(Run* run, Frame* f) noexcept nogil:
    cdef int32_t i
    for i in range(run.ensemble.plan.levels[f.level].n_tensors):
        slot_drop(&f.slots[i])
    if f.source != NULL:
        request_free(f.source)
        f.source = NULL


cdef void frame_unref(Run* run, Frame* f) noexcept nogil:
    cdef Frame* parent
    while f != NULL:
        f.refs -= 1
        if f.refs > 0 or f == &run.first:
            return
        if f.prev != NULL:
            f.prev.next = f.next
        else:
            run.frames = f.next
        if f.next != NULL:
            f.next.prev = f.prev
        frame_clear(run, f)
        parent = f.parent
        free(f)
        f = parent


cdef Frame* frame_new(Run* run, Frame* parent, int32_t level, Request* source) noexcept nogil:
    cdef Frame* f = <Frame*>calloc(1, sizeof(Frame) + frame_size(run.ensemble.plan, level))
    if f == NULL:
        return NULL
    frame_begin(run, f, parent, level, <char*>f + sizeof(Frame))
    f.refs += 1
    parent.refs += 1
    f.next = run.frames
    if f.next != NULL:
        f.next.prev = f
    run.frames = f
    tf_add32(&source.holds, 1)
    f.source = source
    if level == run.answer_level:
        f.refs += 1
        if run.answers == NULL:
            run.answers = f
        else:
            run.answers_last.next_answer = f
        run.answers_last = f
    return f


cdef void make_ready(Run* run, Exec* x) noexcept nogil:
    x.state = EXEC_READY
    x.q_next = NULL
    if run.ready == NULL:
        run.ready = x
    else:
        run.ready_last.q_next = x
    run.ready_last = x
    run.under_way += 1


cdef inline void one_less(Run* run, Exec* x) noexcept nogil:
    x.missing -= 1
    if x.missing == 0:
        make_ready(run, x)


cdef bint lies_in(Frame* f, Frame* above) noexcept nogil:
    while f != NULL and f != above:
        f = f.parent
    return f != NULL


cdef void made(Run* run, Frame* f, int32_t tensor) noexcept nogil:
    cdef Plan* p = run.ensemble.plan
    cdef PlanTensor* t = &p.tensors[tensor]
    cdef Slot* slot = &f.slots[t.at]
    cdef PlanStep* s
    cdef Frame* other
    cdef int32_t i
    slot.there = True
    for i in range(t.n_users):
        if not run.needed[t.users[i]]:
            continue
        s = &p.steps[t.users[i]]
        if s.level == f.level:
            one_less(run, &f.execs[s.at])
            continue
        other = run.frames
        while other != NULL:
            if other.level == s.level and lies_in(other, f):
                one_less(run, &other.execs[s.at])
            other = other.next
    if slot.left <= 0:
        slot_drop(slot)


cdef void frames_clear(Run* run) noexcept nogil:
    cdef Frame* f
    while run.frames != NULL:
        f = run.frames
        run.frames = f.next
        frame_clear(run, f)
        free(f)
    frame_clear(run, &run.first)
