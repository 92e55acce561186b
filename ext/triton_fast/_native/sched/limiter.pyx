# See limiter.pxd. The rule: places wait in the order of their value, executions x priority, then of asking. Each takes
# all it needs as soon as that is free beside what the places before it still want: nobody is overtaken at a resource
# that it waits for, and nobody waits for a resource that it does not need.
#
# A place never begins to wait below the highest value at which its resources, or others that places tie to them, were
# served. Who was idle, or has just been loaded, so takes part from now on instead of making up for its past while all
# others wait; and nobody is served before another more often than the priorities of both say.
import itertools
import threading

from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc

from triton_fast._native.core.native cimport tf_store32
from triton_fast._native.core.pthread cimport (
    pthread_cond_destroy, pthread_cond_init, pthread_cond_signal, pthread_cond_wait, pthread_mutex_destroy,
    pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)

from triton_fast.errors import InvalidArg


# ---- the rule (all under the lock)

cdef void enqueue(Place* p) noexcept nogil:
    cdef Limits* limits = p.limits
    cdef Place* before = NULL
    cdef Place* after = limits.first
    cdef int32_t i
    for i in range(p.n):
        p.value = max(p.value, p.needs[i].resource.root.served)
    while after != NULL and after.value <= p.value:
        before = after
        after = after.next
    p.prev = before
    p.next = after
    if before != NULL:
        before.next = p
    else:
        limits.first = p
    if after != NULL:
        after.prev = p
    tf_store32(&p.state, PLACE_WAITING)


cdef void unlink(Place* p, int32_t state) noexcept nogil:
    if p.prev != NULL:
        p.prev.next = p.next
    else:
        p.limits.first = p.next
    if p.next != NULL:
        p.next.prev = p.prev
    tf_store32(&p.state, state)


# What is left of a resource for the place that is looked at.
cdef inline int64_t left(Resource* s, uint64_t round) noexcept nogil:
    return s.total - s.used - (s.reserved if s.round == round else 0)


cdef void serve(Limits* limits) noexcept nogil:
    cdef Place* p = limits.first
    cdef Place* after
    cdef Resource* s
    cdef int32_t i
    cdef bint free_now
    limits.round += 1
    while p != NULL:
        after = p.next
        free_now = True
        for i in range(p.n):
            if p.needs[i].count > left(p.needs[i].resource, limits.round):
                free_now = False
                break
        if free_now:
            unlink(p, PLACE_HOLDING)
        for i in range(p.n):
            s = p.needs[i].resource
            if free_now:
                s.used += p.needs[i].count
                s.root.served = max(s.root.served, p.value)
            else:
                if s.round != limits.round:
                    s.round = limits.round
                    s.reserved = 0
                s.reserved += p.needs[i].count
        if free_now:
            pthread_cond_signal(&p.turn)
        p = after


# ---- what instances call

cdef int place_acquire(Place* p) noexcept nogil:
    cdef Limits* limits = p.limits
    cdef int status = 0
    pthread_mutex_lock(&limits.lock)
    if p.state == PLACE_IDLE and not p.interrupted:
        enqueue(p)
        serve(limits)
    while p.state == PLACE_WAITING and not p.interrupted:
        pthread_cond_wait(&p.turn, &limits.lock)
    if p.state != PLACE_HOLDING:
        if p.state == PLACE_WAITING:
            unlink(p, PLACE_IDLE)
            serve(limits)       # it may have been in somebody's way
        p.interrupted = False
        status = -1
    pthread_mutex_unlock(&limits.lock)
    return status


cdef void place_release(Place* p, bint executed, bint again) noexcept nogil:
    cdef Limits* limits = p.limits
    cdef int32_t i
    pthread_mutex_lock(&limits.lock)
    if p.state == PLACE_HOLDING:
        for i in range(p.n):
            p.needs[i].resource.used -= p.needs[i].count
        tf_store32(&p.state, PLACE_IDLE)
        if executed:
            p.executions += 1
            p.value += p.priority
        if again and not p.interrupted:
            enqueue(p)
        serve(limits)
    pthread_mutex_unlock(&limits.lock)


cdef void place_interrupt(Place* p) noexcept nogil:
    pthread_mutex_lock(&p.limits.lock)
    p.interrupted = True
    pthread_cond_signal(&p.turn)
    pthread_mutex_unlock(&p.limits.lock)


cdef void place_leave(Place* p) noexcept nogil:
    cdef Place** link
    place_release(p, False, False)
    pthread_mutex_lock(&p.limits.lock)
    link = &p.limits.all
    while link[0] != NULL and link[0] != p:
        link = &link[0].other
    if link[0] != NULL:
        link[0] = p.other
    if p.state == PLACE_WAITING:
        unlink(p, PLACE_IDLE)
        serve(p.limits)
    p.n = 0
    pthread_mutex_unlock(&p.limits.lock)


# ---- for who looks on

cdef struct View:
    size_t place
    size_t instance
    size_t model
    int32_t state
    size_t resource
    int64_t count
    int64_t total


# What p needs, a row each; rows beyond `room` are only counted. How many there are now. Under the lock.
cdef int32_t look_at(Place* p, View* views, int32_t n, int32_t room) noexcept nogil:
    cdef View* v
    cdef int32_t i
    for i in range(p.n):
        if n < room:
            v = &views[n]
            v.place = <size_t>p
            v.instance = p.instance
            v.model = p.model
            v.state = p.state
            v.resource = <size_t>p.needs[i].resource
            v.count = p.needs[i].count
            v.total = p.needs[i].resource.total
        n += 1
    return n


# All places, those that wait first, in their order. As look_at.
cdef int32_t look_at_all(Limits* limits, View* views, int32_t room) noexcept nogil:
    cdef Place* p
    cdef int32_t n = 0
    pthread_mutex_lock(&limits.lock)
    p = limits.first
    while p != NULL:
        n = look_at(p, views, n, room)
        p = p.next
    p = limits.all
    while p != NULL:
        if p.state != PLACE_WAITING:
            n = look_at(p, views, n, room)
        p = p.other
    pthread_mutex_unlock(&limits.lock)
    return n


# ---- who may come, and how much there is

cdef inline object maxima(dict wanted):
    found = {}
    for needs in wanted.values():
        for key, count in needs.items():
            found[key] = max(count, found.get(key, 0))
    return found


# (name, device) -> the one that stands for all that places tie together.
cdef inline dict roots(dict wanted):
    found = {}
    for needs in wanted.values():
        tied = {found.get(key, key) for key in needs}
        if tied:
            root = next(iter(tied))
            found.update(dict.fromkeys(needs, root))
            found.update({key: root for key, old in found.items() if old in tied})
    return found


cdef class Limiter:
    """The resources of a server and the places of the instances that share them.

    Parameters
    ----------
    explicit : sequence of (name, amount, device)
        Device -1: each. Given twice, the smaller holds. Empty: of each resource there is as much as the instance needs
        that needs most.
    """

    def __cinit__(self, explicit=()):
        self.ptr = <Limits*>calloc(1, sizeof(Limits))
        if self.ptr == NULL:
            raise MemoryError
        pthread_mutex_init(&self.ptr.lock, NULL)
        self.explicit = {}
        self.resources = {}
        self.wanted = {}
        self.models = {}
        self.gone = []
        self.guard = threading.Lock()
        self.keys = itertools.count()
        for name, amount, device in explicit:
            of_device = self.explicit.setdefault(None if device == -1 else device, {})
            of_device[name] = min(amount, of_device.get(name, amount))

    def __dealloc__(self):
        cdef Resource* s
        if self.ptr != NULL:
            while self.ptr.resources != NULL:
                s = self.ptr.resources
                self.ptr.resources = s.next
                free(s)
            pthread_mutex_destroy(&self.ptr.lock)
            free(self.ptr)

    def join(self, resources, *, int device=0, uint32_t priority=0):
        """Return a new ``LimiterPlace`` for an instance.

        Parameters
        ----------
        resources : sequence of (name, is_global, amount)
        device : int
            The instance's.
        priority : int
            0 counts as 1; 2 executes half as often as 1 where both wait.

        Raises
        ------
        InvalidArg
            There is not as much, or a resource is global here and a device's there.
        """
        cdef LimiterPlace place = LimiterPlace.__new__(LimiterPlace)
        cdef size_t address
        cdef int32_t i
        needs = {(name, None if is_global else device): amount for name, is_global, amount in resources}
        place.ptr.needs = <Need*>calloc(len(needs) + 1, sizeof(Need))
        if place.ptr.needs == NULL:
            raise MemoryError
        place.ptr.limits = self.ptr
        place.ptr.priority = max(priority, 1)
        with self.guard:
            while self.gone:
                key = self.gone.pop()
                self.wanted.pop(key, None)
                self.models.pop(key, None)
            place.key = next(self.keys)
            wanted = {**self.wanted, place.key: needs}
            self.apply(self.totals(wanted), wanted)
            self.wanted = wanted
            for i, (key, amount) in enumerate(needs.items()):
                address = self.resources[key]
                place.ptr.needs[i].resource = <Resource*>address
                place.ptr.needs[i].count = amount
            place.ptr.n = <int32_t>len(needs)
            place.limiter = self
            pthread_mutex_lock(&self.ptr.lock)
            place.ptr.other = self.ptr.all
            self.ptr.all = place.ptr
            pthread_mutex_unlock(&self.ptr.lock)
        return place

    def leave(self, LimiterPlace place not None):
        """Forget a place whose instance has ended; idempotent."""
        with self.guard:
            if place.left:
                return
            place.left = True
            place_leave(place.ptr)
            self.wanted.pop(place.key, None)
            self.models.pop(place.key, None)
            self.apply(self.totals(self.wanted), self.wanted)

    cdef dict totals(self, dict wanted):
        totals = maxima(wanted)
        every = self.explicit.get(None, {})
        for key, needed in (totals.items() if self.explicit else ()):
            name, device = key
            if device is None:
                amount = max([given.get(name, 0) for given in self.explicit.values()])
            else:
                amount = max(every.get(name, 0), self.explicit.get(device, {}).get(name, 0))
            if amount < needed:
                raise InvalidArg(
                    f'Resource count for "{name}" is limited to {amount} which will prevent scheduling of one or more '
                    f"model instances, the minimum required count is {needed}"
                )
            totals[key] = amount
        devices = {name for name, device in totals if device is not None}
        for name, device in totals:
            if device is None and name in devices:
                raise InvalidArg(
                    f'Resource "{name}" is present as both global and device-specific resource in the model '
                    "configuration."
                )
        return totals

    cdef int apply(self, dict totals, dict wanted) except -1:
        cdef Resource* s
        cdef Resource** link
        cdef Resource* dropped = NULL
        cdef size_t address, root
        for address in self.resources.values():
            (<Resource*>address).next_total = -1
            (<Resource*>address).next_root = <Resource*>address
        for key, root_key in roots(wanted).items():
            for one in (root_key, key):
                if one in self.resources:
                    continue
                s = <Resource*>calloc(1, sizeof(Resource))
                if s == NULL:
                    raise MemoryError
                s.root = s
                self.resources[one] = <size_t>s
                pthread_mutex_lock(&self.ptr.lock)
                s.next = self.ptr.resources
                self.ptr.resources = s
                pthread_mutex_unlock(&self.ptr.lock)
            address, root = self.resources[key], self.resources[root_key]
            (<Resource*>address).next_total = totals[key]
            (<Resource*>address).next_root = <Resource*>root
        self.resources = {key: address for key, address in self.resources.items() if key in totals}
        # No Python object is touched under the lock: the garbage collector may call who wants it.
        pthread_mutex_lock(&self.ptr.lock)
        s = self.ptr.resources
        while s != NULL:
            s.served = s.root.served
            s = s.next
        link = &self.ptr.resources
        while link[0] != NULL:
            s = link[0]
            s.total = s.next_total
            s.root = s.next_root
            s.root.served = max(s.root.served, s.served)
            if s.total < 0:     # no place needs it any more
                link[0] = s.next
                s.next = dropped
                dropped = s
            else:
                link = &s.next
        serve(self.ptr)
        pthread_mutex_unlock(&self.ptr.lock)
        while dropped != NULL:
            s = dropped
            dropped = s.next
            free(s)
        return 0

    def places(self):
        """What each instance needs: see limiter.pyi."""
        cdef View* views = NULL
        cdef int32_t i, room = 0, n = look_at_all(self.ptr, NULL, 0)
        try:
            while n > room:         # others may join meanwhile
                free(views)
                room = n
                views = <View*>malloc(<size_t>room * sizeof(View))
                if views == NULL:
                    raise MemoryError
                n = look_at_all(self.ptr, views, room)
            found = {}
            for i in range(n):
                place = found.setdefault(
                    views[i].place,
                    (views[i].instance, views[i].model, views[i].state == PLACE_WAITING,
                     views[i].state == PLACE_HOLDING, []))
                place[4].append((views[i].resource, views[i].count, views[i].total))
        finally:
            free(views)
        with self.guard:
            resources = {address: key[0] for key, address in self.resources.items()}
            models = dict(self.models.values())
        return list(found.values()), resources, models

    @property
    def amounts(self):
        """What there is and what is in use: {(name, device or None for a global one): (total, used)}."""
        cdef size_t address
        with self.guard:
            return {
                key: ((<Resource*>address).total, (<Resource*>address).used) for key, address in self.resources.items()
            }


cdef class LimiterPlace:
    """The place of one instance, made by ``Limiter.join``. Only one thread at a time may ask, wait and release."""

    def __cinit__(self):
        self.ptr = <Place*>calloc(1, sizeof(Place))
        if self.ptr == NULL:
            raise MemoryError
        self.ptr.priority = 1
        pthread_cond_init(&self.ptr.turn, NULL)

    def __del__(self):
        # Here and not in __dealloc__: the limiter is still whole. Its guard may be held by whom the garbage collector
        # has interrupted.
        if self.limiter is not None and not self.left:
            self.left = True
            place_leave(self.ptr)
            self.limiter.gone.append(self.key)

    def __dealloc__(self):
        if self.ptr != NULL:
            pthread_cond_destroy(&self.ptr.turn)
            free(self.ptr.needs)
            free(self.ptr)

    def leave(self):
        """Give all back and take part no more. After the instance's last execution; idempotent."""
        if self.limiter is not None:
            self.limiter.leave(self)

    def belongs(self, size_t instance, size_t model, name):
        """Say whose it is: keys for who looks on (``Limiter.places``); ``model`` 0: others execute for that too."""
        self.alive()
        with self.limiter.guard:
            self.limiter.models[self.key] = (model, name)
        self.ptr.instance = instance
        self.ptr.model = model

    cdef Place* alive(self) except NULL:
        if self.limiter is None or self.left:
            raise ValueError("the place was left")
        return self.ptr

    def ask(self):
        """Begin to wait, or hold at once what is free. For callers that do not block."""
        cdef Place* p = self.alive()
        pthread_mutex_lock(&p.limits.lock)
        if p.state == PLACE_IDLE:
            enqueue(p)
            serve(p.limits)
        pthread_mutex_unlock(&p.limits.lock)

    def acquire(self):
        """Ask and wait, without the GIL. Returns False when ``interrupt`` ended the wait."""
        cdef Place* p = self.alive()
        cdef int status
        with nogil:
            status = place_acquire(p)
        return status == 0

    def release(self, *, bint executed=True, bint again=False):
        """Give all back; ``executed``: it counts; ``again``: ask anew at once."""
        place_release(self.alive(), executed, again)

    def interrupt(self):
        """End the present wait, else the next, once."""
        place_interrupt(self.alive())

    @property
    def waiting(self):
        return self.ptr.state == PLACE_WAITING

    @property
    def holding(self):
        return self.ptr.state == PLACE_HOLDING

    @property
    def executions(self):
        return self.ptr.executions

    @property
    def value(self):
        """Executions x priority, lifted to where its resources were served last."""
        return self.ptr.value
