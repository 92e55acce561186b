# A table of keys, looked through by their hashes: a model has few shapes, or they never come again.
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport calloc, free, realloc
from libc.string cimport memcmp, memcpy, memset

from triton_fast.errors import InvalidArg


cdef int shapes_init(Shapes* s, int32_t length, int32_t n_outputs) noexcept nogil:
    cdef int32_t i
    memset(s, 0, sizeof(Shapes))
    s.length = length
    s.n_outputs = n_outputs
    s.seen = <Seen*>calloc(MAX_SEEN, sizeof(Seen))
    if s.seen == NULL:
        return -1
    for i in range(MAX_SEEN):
        s.seen[i].key = <int64_t*>calloc(<size_t>length + 1, sizeof(int64_t))
        s.seen[i].dims = <int64_t*>calloc(<size_t>n_outputs + 1, TRT_RANK * sizeof(int64_t))
        s.seen[i].ndim = <int32_t*>calloc(<size_t>n_outputs + 1, sizeof(int32_t))
        s.seen[i].nbytes = <size_t*>calloc(<size_t>n_outputs + 1, sizeof(size_t))
        if s.seen[i].key == NULL or s.seen[i].dims == NULL or s.seen[i].ndim == NULL or s.seen[i].nbytes == NULL:
            shapes_free(s)
            return -1
    return 0


cdef void shapes_free(Shapes* s) noexcept nogil:
    cdef int32_t i
    if s.seen != NULL:
        for i in range(MAX_SEEN):
            free(s.seen[i].key)
            free(s.seen[i].dims)
            free(s.seen[i].ndim)
            free(s.seen[i].nbytes)
    free(s.seen)
    s.seen = NULL
    for i in range(s.n_profiles):
        free(s.profiles[i].low)
        free(s.profiles[i].bound)
    free(s.profiles)
    s.profiles = NULL
    s.n_profiles = s.n_seen = 0


cdef int shapes_add(Shapes* s, int32_t index, const int64_t* low, const int64_t* best, const int64_t* high,
                    int32_t addresses) noexcept nogil:
    cdef size_t size = <size_t>s.length * sizeof(int64_t)
    cdef Profile* grown = <Profile*>realloc(s.profiles, (<size_t>s.n_profiles + 1) * sizeof(Profile))
    cdef Profile* p
    if grown == NULL:
        return -1
    s.profiles = grown
    p = &grown[s.n_profiles]
    memset(p, 0, sizeof(Profile))
    p.index = index
    p.low = <int64_t*>calloc(4, size + sizeof(int64_t))
    p.bound = <uint64_t*>calloc(<size_t>addresses + 1, sizeof(uint64_t))
    if p.low == NULL or p.bound == NULL:
        free(p.low)
        free(p.bound)
        return -1
    p.best = p.low + s.length
    p.high = p.best + s.length
    p.now = p.high + s.length
    memcpy(p.low, low, size)
    memcpy(p.best, best, size)
    memcpy(p.high, high, size)
    memset(p.now, 0xff, size)       # -1: it was told nothing
    s.n_profiles += 1
    return 0


# FNV-1a over the numbers.
cdef uint64_t hash_of(const int64_t* key, int32_t length) noexcept nogil:
    cdef uint64_t h = 14695981039346656037u
    cdef int32_t i
    for i in range(length):
        h = (h ^ <uint64_t>key[i]) * 1099511628211u
        h ^= h >> 29
    return h


cdef Seen* shapes_find(Shapes* s, const int64_t* key) noexcept nogil:
    cdef uint64_t h = hash_of(key, s.length)
    cdef int32_t i
    for i in range(s.n_seen):
        if s.seen[i].hash == h and memcmp(s.seen[i].key, key, <size_t>s.length * sizeof(int64_t)) == 0:
            return &s.seen[i]
    return NULL


cdef int32_t shapes_choose(const Shapes* s, const int64_t* key) noexcept nogil:
    cdef int32_t k, i, found = -1
    cdef uint64_t distance, shortest = 0
    cdef const Profile* p
    for k in range(s.n_profiles):
        p = &s.profiles[k]
        distance = 0
        for i in range(s.length):
            if key[i] < p.low[i] or key[i] > p.high[i]:
                break
            # Both lie in the range, whose width an unsigned number holds.
            distance += (<uint64_t>key[i] - <uint64_t>p.best[i]) if key[i] >= p.best[i] \
                else (<uint64_t>p.best[i] - <uint64_t>key[i])
        else:
            if found < 0 or distance < shortest:
                found = k
                shortest = distance
    return found


cdef Seen* shapes_put(Shapes* s, const int64_t* key, int32_t profile, void** dropped) noexcept nogil:
    cdef Seen* e
    dropped[0] = NULL
    if s.n_seen < MAX_SEEN:
        e = &s.seen[s.n_seen]
        s.n_seen += 1
    else:
        e = &s.seen[s.victim]
        s.victim = (s.victim + 1) % MAX_SEEN
        dropped[0] = e.graph
    s.serial += 1
    e.hash = hash_of(key, s.length)
    e.serial = s.serial
    memcpy(e.key, key, <size_t>s.length * sizeof(int64_t))
    e.profile = profile
    e.known = e.wants_graph = False
    e.graph = NULL
    e.runs = 0
    return e


cdef class ShapeTable:
    cdef Shapes s

    def __init__(self, int32_t length, profiles):
        cdef int32_t k = 0
        cdef int64_t* numbers
        if self.s.seen != NULL:
            raise InvalidArg("a table can not be initialised twice")
        if not 0 <= length <= 1 << 16 or shapes_init(&self.s, length, 0) != 0:
            raise MemoryError
        for low, best, high in profiles:
            numbers = <int64_t*>calloc(3 * <size_t>length + 1, sizeof(int64_t))
            if numbers == NULL:
                raise MemoryError
            try:
                read_numbers(numbers, low, length)
                read_numbers(numbers + length, best, length)
                read_numbers(numbers + 2 * length, high, length)
                if shapes_add(&self.s, k, numbers, numbers + length, numbers + 2 * length, 0) != 0:
                    raise MemoryError
            finally:
                free(numbers)
            k += 1

    def __dealloc__(self):
        shapes_free(&self.s)

    def seek(self, key):
        cdef int64_t* numbers = <int64_t*>calloc(<size_t>self.s.length + 1, sizeof(int64_t))
        cdef Seen* e
        cdef int32_t profile
        cdef void* dropped = NULL
        if numbers == NULL:
            raise MemoryError
        try:
            read_numbers(numbers, key, self.s.length)
            e = shapes_find(&self.s, numbers)
            if e != NULL:
                return e.profile, e.serial
            profile = shapes_choose(&self.s, numbers)
            if profile < 0:
                return None
            e = shapes_put(&self.s, numbers, profile, &dropped)
            return e.profile, e.serial
        finally:
            free(numbers)


cdef int read_numbers(int64_t* out, object numbers, int32_t n) except -1:
    cdef int32_t i
    if len(numbers) != n:
        raise InvalidArg(f"expected {n} numbers, got {len(numbers)}")
    for i in range(n):
        out[i] = numbers[i]
    return 0
