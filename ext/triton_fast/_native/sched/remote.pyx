# Work for the threads that talk to a response cache elsewhere; see remote.pxd. Knows no protocol of any such cache.
from cpython.buffer cimport PyBUF_READ
from cpython.memoryview cimport PyMemoryView_FromMemory
from libc.stdint cimport int64_t, uint8_t
from libc.stdlib cimport calloc, free, malloc
from libc.string cimport memcpy

from triton_fast._native.core.memory cimport Block, block_ref, block_unref
from triton_fast._native.core.native cimport now_ns, tf_load32, tf_lock, tf_store32, tf_unlock
from triton_fast._native.core.pthread cimport (
    pthread_cond_broadcast, pthread_cond_destroy, pthread_cond_init, pthread_cond_signal, pthread_cond_wait,
    pthread_mutex_destroy, pthread_mutex_init, pthread_mutex_lock, pthread_mutex_unlock,
)
from triton_fast._native.sched.cache cimport CacheLayer, flight_looked
from triton_fast._native.sched.entry cimport HEAD, entry_read, head_of
from triton_fast._native.sched.key cimport request_fields
from triton_fast._native.sched.store cimport DIGEST, Flight, NativeCache, Store


cdef bint remote_ask(Store* s, Flight* f) noexcept nogil:
    cdef Remote* q = <Remote*>s.elsewhere
    if not tf_load32(&q.open):
        return False
    f.asked_at = now_ns()
    f.asked_next = NULL
    if q.asked_last != NULL:
        q.asked_last.asked_next = f
    else:
        q.asked_first = f
    q.asked_last = f
    return True


cdef void remote_kick(Store* s) noexcept nogil:
    cdef Remote* q = <Remote*>s.elsewhere
    pthread_mutex_lock(&q.mutex)
    pthread_cond_signal(&q.wake)
    pthread_mutex_unlock(&q.mutex)


cdef bint known(const uint8_t* digest) noexcept nogil:
    cdef int i
    for i in range(DIGEST):
        if digest[i]:
            return True
    return False


cdef void remote_keep(Store* s, Block* entry, const uint8_t* digest) noexcept nogil:
    cdef Remote* q = <Remote*>s.elsewhere
    cdef Kept* k
    if not tf_load32(&q.open) or not known(digest):
        return
    k = <Kept*>malloc(sizeof(Kept))
    if k == NULL:
        return
    k.next = NULL
    k.entry = entry
    memcpy(k.digest, digest, DIGEST)
    tf_lock(&s.lock)
    if <int64_t>entry.cap > q.most_bytes - q.kept_bytes:
        q.dropped += 1
        tf_unlock(&s.lock)
        free(k)
        return
    block_ref(entry)
    q.kept_bytes += <int64_t>entry.cap
    if q.kept_last != NULL:
        q.kept_last.next = k
    else:
        q.kept_first = k
    q.kept_last = k
    tf_unlock(&s.lock)
    remote_kick(s)


cdef Flight* pop_asked(Store* s, Remote* q) noexcept nogil:
    cdef Flight* f
    tf_lock(&s.lock)
    f = q.asked_first
    if f != NULL:
        q.asked_first = f.asked_next
        if q.asked_first == NULL:
            q.asked_last = NULL
    tf_unlock(&s.lock)
    return f


cdef Kept* pop_kept(Store* s, Remote* q) noexcept nogil:
    cdef Kept* k
    tf_lock(&s.lock)
    k = q.kept_first
    if k != NULL:
        q.kept_first = k.next
        if q.kept_first == NULL:
            q.kept_last = NULL
    tf_unlock(&s.lock)
    return k


# The bytes of an entry count until it is stored, so that they bound what this holds.
cdef void kept_done(Store* s, Remote* q, Kept* k) noexcept nogil:
    tf_lock(&s.lock)
    q.kept_bytes -= <int64_t>k.entry.cap
    tf_unlock(&s.lock)
    block_unref(k.entry)
    free(k)


cdef class Lookup:
    """Requests that wait for what the cache elsewhere says. Call ``found`` or ``missed`` once."""

    cdef Flight* flight
    cdef CacheLayer layer

    def __dealloc__(self):
        if self.flight != NULL:
            with nogil:
                flight_looked(self.flight, NULL)

    @property
    def age_ns(self):
        """How long they have been waiting."""
        return now_ns() - self.flight.asked_at

    @property
    def identity(self):
        """What was given to the layer."""
        return self.layer.identity

    def fields(self):
        """Return what the key is made of: ints, bytes, and memoryviews that must not be used after the end."""
        return request_fields(self.flight.leader)

    def found(self, bytes digest not None, value):
        """The cache said ``value`` (bytes or None) for the key ``digest``, 32 bytes.

        Returns False when the value is no response of this model; the request is executed then, as without one.
        """
        cdef Block* entry = NULL
        cdef Flight* f = self.flight
        cdef bytes data = value if value is not None else b""
        if f == NULL:
            raise ValueError("this lookup is over")
        if len(digest) != DIGEST:
            raise ValueError(f"a key has {DIGEST} bytes, got {len(digest)}")
        memcpy(f.digest, <const char*>digest, DIGEST)
        self.flight = NULL
        cdef const char* p = data
        cdef size_t n = len(data)
        with nogil:
            if n:
                entry = entry_read(<const uint8_t*>p, n, f.leader.model)
            flight_looked(f, entry)
        valid = entry != NULL or value is None
        block_unref(entry)
        return valid

    def missed(self):
        """Nobody was asked: the requests are executed, and their answer is not stored elsewhere."""
        cdef Flight* f = self.flight
        self.flight = NULL
        if f != NULL:
            with nogil:
                flight_looked(f, NULL)


cdef class Insertion:
    """A response to be stored elsewhere."""

    cdef Kept* kept
    cdef RemoteCache cache

    def __dealloc__(self):
        if self.kept != NULL:
            kept_done(self.cache.store, self.cache.remote, self.kept)

    @property
    def digest(self):
        """The 32 bytes of its key."""
        return (<char*>self.kept.digest)[:DIGEST]

    @property
    def value(self):
        """The packed response: a memoryview that must not be used after this object has gone."""
        return PyMemoryView_FromMemory(<char*>self.kept.entry.data + HEAD,
                                       <Py_ssize_t>head_of(self.kept.entry).packed, PyBUF_READ)


cdef class RemoteCache(NativeCache):
    """A response cache whose entries are elsewhere. Keeps nothing itself; equal requests under way are still one.

    Parameters
    ----------
    most_bytes : int
        Entries that may wait to be stored, in bytes; what comes on top is not stored.
    """

    def __cinit__(self, int64_t size=0, *, int64_t most_bytes=64 << 20):
        if size:
            raise ValueError("a remote cache keeps nothing in this process")
        self.remote = <Remote*>calloc(1, sizeof(Remote))
        if self.remote == NULL:
            raise MemoryError
        pthread_mutex_init(&self.remote.mutex, NULL)
        pthread_cond_init(&self.remote.wake, NULL)
        self.remote.most_bytes = most_bytes
        self.remote.open = True
        self.store.elsewhere = self.remote
        self.store.ask = remote_ask
        self.store.kick = remote_kick
        self.store.keep = remote_keep

    def __dealloc__(self):
        cdef Kept* k
        if self.remote == NULL:
            return
        while True:             # lookups have been answered: their layers hold this object
            k = pop_kept(self.store, self.remote)
            if k == NULL:
                break
            kept_done(self.store, self.remote, k)
        pthread_cond_destroy(&self.remote.wake)
        pthread_mutex_destroy(&self.remote.mutex)
        free(self.remote)

    @property
    def open(self):
        """Whether requests are looked up at all. While not, all of them are executed and none is stored."""
        return tf_load32(&self.remote.open) != 0

    @open.setter
    def open(self, bint value):
        tf_store32(&self.remote.open, value and not tf_load32(&self.remote.closed))

    @property
    def dropped(self):
        """Responses that were not stored because too many waited."""
        return self.remote.dropped

    def take(self):
        """Wait for the next ``Lookup`` or ``Insertion``, lookups first; None after ``close``."""
        cdef Flight* f = NULL
        cdef Kept* k = NULL
        cdef Remote* q = self.remote
        cdef Lookup lookup = Lookup.__new__(Lookup)
        cdef Insertion insertion = Insertion.__new__(Insertion)
        insertion.cache = self
        with nogil:
            pthread_mutex_lock(&q.mutex)
            while True:
                f = pop_asked(self.store, q)
                if f == NULL:
                    k = pop_kept(self.store, q)
                if f != NULL or k != NULL or tf_load32(&q.closed):
                    break
                pthread_cond_wait(&q.wake, &q.mutex)
            pthread_mutex_unlock(&q.mutex)
        if f != NULL:
            lookup.layer = <CacheLayer>f.layer.made_by
            lookup.flight = f
            return lookup
        if k != NULL:
            insertion.kept = k
            return insertion
        return None

    def close(self):
        """Look nothing up any more: what waits is executed. ``take`` returns None once nothing is left."""
        cdef Flight* f
        tf_store32(&self.remote.closed, True)
        tf_store32(&self.remote.open, False)
        while True:
            f = pop_asked(self.store, self.remote)
            if f == NULL:
                break
            layer = <CacheLayer>f.layer.made_by     # it must not go while it is told
            with nogil:
                flight_looked(f, NULL)
            del layer
        with nogil:
            pthread_mutex_lock(&self.remote.mutex)
            pthread_cond_broadcast(&self.remote.wake)
            pthread_mutex_unlock(&self.remote.mutex)
