# See ensemble_plan.pxd. Everything here happens at the load of an ensemble and when a name gets another meaning.
from cpython.ref cimport Py_DECREF, Py_INCREF
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcmp, memcpy

from triton_fast._native.core.native cimport TF_INTERNAL, tf_add32
from triton_fast._native.core.model cimport IoSpec, Model
from triton_fast._native.sched.model cimport NativeModel
from triton_fast._native.sched.scheduler cimport Scheduler

from _thread import allocate_lock

from triton_fast.errors import ServerError

# Address of a model -> how many times members name it. Changes when members are made and freed, not with requests.
cdef dict held = {}
# And the locks of those who wait until nothing names it.
cdef dict waiting = {}


# --- memory: one list for all that belongs together -------------------------------------------------------------------

cdef struct Piece:
    Piece* next
    int64_t _align


cdef void* piece(void** memory, size_t n) except NULL:
    cdef Piece* p = <Piece*>calloc(1, sizeof(Piece) + n + 1)
    if p == NULL:
        raise MemoryError
    p.next = <Piece*>memory[0]
    memory[0] = p
    return <char*>p + sizeof(Piece)


cdef void free_pieces(void* memory) noexcept nogil:
    cdef Piece* p = <Piece*>memory
    cdef Piece* after
    while p != NULL:
        after = p.next
        free(p)
        p = after


cdef int32_t* numbers(void** memory, object values) except NULL:
    cdef int32_t* made = <int32_t*>piece(memory, len(values) * sizeof(int32_t))
    cdef Py_ssize_t i
    for i, value in enumerate(values):
        made[i] = value
    return made


cdef int name_of(void** memory, PlanName* n, str text) except -1:
    encoded = text.encode()
    n.text = <char*>piece(memory, len(encoded))
    n.len = <uint32_t>len(encoded)
    memcpy(n.text, <const char*>encoded, len(encoded))
    return 0


cdef PlanName* names(void** memory, object texts) except NULL:
    cdef PlanName* made = <PlanName*>piece(memory, len(texts) * sizeof(PlanName))
    cdef Py_ssize_t i
    for i, text in enumerate(texts):
        name_of(memory, &made[i], text)
    return made


# --- the plan ---------------------------------------------------------------------------------------------------------

# Steps so that each comes after those whose outputs it takes.
cdef list in_order(list steps, dict maker):
    waits = [len({maker[t] for _, t in step.inputs if maker.get(t, -1) >= 0}) for step in steps]
    takers = [set() for _ in steps]
    for k, step in enumerate(steps):
        for _, t in step.inputs:
            if maker.get(t, -1) >= 0:
                takers[maker[t]].add(k)
    order = [k for k, n in enumerate(waits) if n == 0]
    for k in order:         # it grows meanwhile
        for other in sorted(takers[k]):
            waits[other] -= 1
            if waits[other] == 0:
                order.append(other)
    if len(order) != len(steps):
        raise ValueError("the steps depend on each other in a circle")
    return order


# Which step makes each tensor; -1: the client.
cdef dict makers(list steps, list inputs):
    maker = dict.fromkeys(inputs, -1)
    for k, step in enumerate(steps):
        for _, t in step.outputs:
            if t in maker:
                raise ValueError(f"tensor '{t}' is made twice")
            maker[t] = k
    for step in steps:
        for _, t in step.inputs:
            if t not in maker:
                raise ValueError(f"nothing makes tensor '{t}'")
    return maker


# The deeper of two levels, one of which must lie above the other.
cdef object deepest(list parents, a, b):
    for low, high in ((a, b), (b, a)):
        level = low
        while level >= 0:
            if level == high:
                return low
            level = parents[level]
    raise ValueError("a step takes responses of two decoupled steps that do not depend on each other")


cdef Plan* plan_new(object steps, object inputs, object outputs) except NULL:
    cdef void* memory = NULL
    cdef Plan* p
    try:
        p = <Plan*>piece(&memory, sizeof(Plan))
        fill_plan(p, &memory, list(steps), list(inputs), list(outputs))
    except BaseException:
        free_pieces(memory)
        raise
    p.memory = memory
    return p


cdef int fill_plan(Plan* p, void** memory, list steps, list inputs, list outputs) except -1:
    cdef PlanStep* s
    cdef PlanTensor* t
    cdef PlanLevel* made
    cdef Py_ssize_t i
    maker = makers(steps, inputs)
    order = in_order(steps, maker)
    number = {name: k for k, name in enumerate(maker)}
    for name in outputs:
        if name not in number:
            raise ValueError(f"nothing makes output '{name}'")
    # Levels, from the top: parents[level], and the level of each step and of each tensor.
    parents, opener = [-1], [-1]
    level_of = dict.fromkeys(inputs, 0)
    step_level, opens = [0] * len(steps), [-1] * len(steps)
    for k in order:
        level = 0
        for _, name in steps[k].inputs:
            level = deepest(parents, level, level_of[name])
        step_level[k] = level
        if steps[k].decoupled:
            parents.append(level)
            opener.append(k)
            opens[k] = level = len(parents) - 1
        for _, name in steps[k].outputs:
            level_of[name] = level
    level = 0
    for name in outputs:
        level = deepest(parents, level, level_of[name])

    p.n_steps, p.n_tensors, p.n_levels = len(steps), len(number), len(parents)
    p.n_inputs, p.n_outputs = len(inputs), len(outputs)
    p.order = numbers(memory, order)
    p.input_tensor = numbers(memory, [number[name] for name in inputs])
    p.output_tensor = numbers(memory, [number[name] for name in outputs])
    p.levels = <PlanLevel*>piece(memory, p.n_levels * sizeof(PlanLevel))
    p.tensors = <PlanTensor*>piece(memory, p.n_tensors * sizeof(PlanTensor))
    p.steps = <PlanStep*>piece(memory, p.n_steps * sizeof(PlanStep))
    for i, parent in enumerate(parents):
        made = &p.levels[i]
        made.parent = parent
        made.step = opener[i]
        mine = [number[name] for name in maker if level_of[name] == i]
        made.n_tensors = len(mine)
        made.tensors = numbers(memory, mine)
        for at, k in enumerate(mine):
            p.tensors[<Py_ssize_t>k].at = at
        mine = [k for k in order if step_level[k] == i]
        made.n_steps = len(mine)
        made.steps = numbers(memory, mine)
        for at, k in enumerate(mine):
            p.steps[<Py_ssize_t>k].at = at
    input_number, output_number = ({name: k for k, name in enumerate(names)} for names in (inputs, outputs))
    users_of = {name: {} for name in maker}
    for k, step in enumerate(steps):
        for _, name in step.inputs:
            users_of[name][k] = True
    for name in maker:
        t = &p.tensors[<Py_ssize_t>number[name]]
        t.level = level_of[name]
        t.input = input_number.get(name, -1)
        t.output = output_number.get(name, -1)
        users = list(users_of[name])
        t.n_users = len(users)
        t.users = numbers(memory, users)
        t.deeper = any(step_level[k] != level_of[name] for k in users)
    for i, step in enumerate(steps):
        s = &p.steps[i]
        name_of(memory, &s.member, step.model)
        s.version = step.version
        s.level = step_level[i]
        s.opens = opens[i]
        s.n_inputs, s.n_outputs = len(step.inputs), len(step.outputs)
        s.inputs = names(memory, [own for own, _ in step.inputs])
        s.outputs = names(memory, [own for own, _ in step.outputs])
        s.input_tensor = numbers(memory, [number[name] for _, name in step.inputs])
        s.output_tensor = numbers(memory, [number[name] for _, name in step.outputs])
        takes = list(dict.fromkeys(number[name] for _, name in step.inputs))
        s.n_takes = len(takes)
        s.takes = numbers(memory, takes)
    return 0


cdef void plan_free(Plan* p) noexcept nogil:
    if p != NULL:
        free_pieces(p.memory)


# --- members ----------------------------------------------------------------------------------------------------------

cdef int32_t find(IoSpec* specs, int32_t n, PlanName* name) noexcept nogil:
    cdef int32_t i
    for i in range(n):
        if specs[i].name_len == name.len and memcmp(specs[i].name, name.text, name.len) == 0:
            return i
    return -1


cdef int fill_member(Members* m, void** memory, Member* to, PlanStep* s, NativeModel native) except -1:
    cdef int32_t i, k, mapped = 0
    cdef Model* model = native.ptr
    to.model = model
    to.scheduler = <Scheduler*>model.scheduler
    to.inputs = <int32_t*>piece(memory, s.n_inputs * sizeof(int32_t))
    to.outputs = <int32_t*>piece(memory, model.n_outputs * sizeof(int32_t))
    for i in range(s.n_inputs):
        to.inputs[i] = find(model.inputs, model.n_inputs, &s.inputs[i])
    for k in range(model.n_outputs):
        to.outputs[k] = -1
    for i in range(s.n_outputs):
        k = find(model.outputs, model.n_outputs, &s.outputs[i])
        if k >= 0:
            mapped += 1
            to.outputs[k] = s.output_tensor[i]
    to.all_outputs = mapped == model.n_outputs and mapped == s.n_outputs
    return 0


# Whether `above` is `level` or one that it lies in.
cdef bint within(Plan* p, int32_t level, int32_t above) noexcept nogil:
    while level >= 0:
        if level == above:
            return True
        level = p.levels[level].parent
    return False


# The models that a request to this one may run, by address.
cdef frozenset reached_by(NativeModel native):
    found = {<size_t>native.ptr}
    for scheduler in native.schedulers:
        if hasattr(scheduler, "reached"):
            found |= scheduler.reached()
    return frozenset(found)


cdef frozenset members_reach(Members* m):
    found = set()
    for native in <tuple>m.owner:
        found |= reached_by(native)
    return frozenset(found)


cdef int fill_members(Members* m, void** memory, Plan* p, object resolve) except -1:
    cdef PlanStep* s
    cdef Member* to
    cdef NativeModel native
    cdef int32_t i, k
    found, reached = [], []
    for i in range(p.n_steps):
        s = &p.steps[i]
        to = &m.steps[i]
        try:
            native = resolve(s.member.text[:s.member.len].decode(), s.version)
            if native is None:
                raise LookupError("the model is not ready")
        except Exception as error:
            to.code = int(error.code) if isinstance(error, ServerError) else TF_INTERNAL
            name_of(memory, &to.error, str(error) or type(error).__name__)
            reached.append(frozenset())
            continue
        found.append(native)
        # Members of members are found, and so held, now too: a request that has begun comes to them later.
        try:
            reached.append(reached_by(native))
        except (MemoryError, RecursionError):
            if p.n_levels > 1:
                raise
        fill_member(m, memory, to, s, native)
    # The producer of a stream is not held back where its own model must run to make room for it.
    for i in range(p.n_steps):
        if p.steps[i].opens >= 0:
            for k in range(p.n_steps):
                if within(p, p.steps[k].level, p.steps[i].opens) and not reached[i].isdisjoint(reached[k]):
                    m.steps[i].loops = True
    owner = tuple(found)
    hold(owner)
    Py_INCREF(owner)
    m.owner = <void*>owner
    return 0


cdef Members* members_new(Plan* p, object resolve, long long epoch) except NULL:
    cdef void* memory = NULL
    cdef Members* m
    try:
        m = <Members*>piece(&memory, sizeof(Members))
        m.refs = 1
        m.epoch = epoch
        m.n = p.n_steps
        m.steps = <Member*>piece(&memory, p.n_steps * sizeof(Member))
        fill_members(m, &memory, p, resolve)
    except BaseException:
        free_pieces(memory)
        raise
    m.memory = memory
    return m


# No lock: the GIL is not given up between looking and changing, and whoever lets go must not wait for anybody.
cdef int hold(tuple owner) except -1:
    cdef NativeModel native
    for native in owner:
        held[<size_t>native.ptr] = held.get(<size_t>native.ptr, 0) + 1
    return 0


cdef int let_go(tuple owner) except -1:
    cdef NativeModel native
    for native in owner:
        left = held[<size_t>native.ptr] - 1
        if left:
            held[<size_t>native.ptr] = left
            continue
        del held[<size_t>native.ptr]
        for gate in waiting.pop(<size_t>native.ptr, ()):
            gate.release()
    return 0


def wait_unheld(NativeModel model not None):
    """Wait until no request to an ensemble that is under way may still come to this model."""
    address = <size_t>model.ptr
    while address in held:
        gate = allocate_lock()
        gate.acquire()
        waiting.setdefault(address, []).append(gate)
        if address in held:
            gate.acquire()


cdef void members_unref(Members* m) noexcept nogil:
    if m == NULL or tf_add32(&m.refs, -1) != 0:
        return
    with gil:
        let_go(<tuple>m.owner)
        Py_DECREF(<object>m.owner)
    free_pieces(m.memory)
