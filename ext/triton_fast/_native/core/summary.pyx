# Greenwald and Khanna's summary, filled from a sorted buffer: each entry stands for g items, and neighbours are joined
# while an entry's uncertainty g + delta stays within twice the error times the number of items. Each part of the window
# has one of its own; the uncertainties of several add up to what one over all of their items would have.
from libc.math cimport ceil
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcpy, memset

cdef enum:
    BITS = 11               # of a digit: three make a value, one or two most of them
    DIGITS = 2048
    FIRST_ROOM = 64

# Triton's window: a minute, of which a fifth is forgotten at a time.
cdef int64_t AGE_NS = 12000000000

WINDOW_SECONDS = 60


# Sort n <= BUFFER values; digits that all of them share cost nothing but their count.
cdef void sort(uint32_t* values, int32_t n) noexcept nogil:
    cdef uint16_t[3][2048] counts
    cdef uint32_t[BUFFER] spare
    cdef uint32_t* source = values
    cdef uint32_t* target = spare
    cdef uint32_t v, at, k
    cdef int32_t i, digit
    memset(counts, 0, sizeof(counts))
    for i in range(n):
        v = values[i]
        counts[0][v & (DIGITS - 1)] += 1
        counts[1][(v >> BITS) & (DIGITS - 1)] += 1
        counts[2][v >> (2 * BITS)] += 1
    for digit in range(3):
        if counts[digit][(values[0] >> (BITS * digit)) & (DIGITS - 1)] == n:
            continue
        at = 0
        for i in range(DIGITS):
            k = counts[digit][i]
            counts[digit][i] = <uint16_t>at
            at += k
        for i in range(n):
            v = source[i]
            k = (v >> (BITS * digit)) & (DIGITS - 1)
            target[counts[digit][k]] = v
            counts[digit][k] += 1
        source, target = target, source
    if source != values:
        memcpy(values, source, <size_t>n * sizeof(uint32_t))


# Put an entry behind the others, joined with the last where the error allows it; but the least value stays alone, as
# the greatest does.
cdef inline int32_t put(Entry* out, int32_t n, uint32_t value, uint32_t g, uint32_t delta,
                        int64_t limit) noexcept nogil:
    if n > 1 and <int64_t>out[n - 1].g + g + delta <= limit:
        n -= 1
        g += out[n].g
    out[n].value = value
    out[n].g = g
    out[n].delta = delta
    return n + 1


cdef void flush(Summary* s) noexcept nogil:
    cdef Sketch* k = &s.ages[s.current]
    cdef int32_t n = s.n_buffered, i = 0, j = 0, made = 0
    cdef Entry* old = k.entries
    cdef Entry* out
    cdef int64_t limit
    if n == 0:
        return
    s.count += n
    for i in range(n):
        s.sum_us += s.buffer[i]
    s.n_buffered = 0
    i = 0
    out = <Entry*>malloc(<size_t>(k.n + n) * sizeof(Entry))
    if out == NULL:
        return
    sort(s.buffer, n)
    k.items += n
    limit = <int64_t>(2 * s.error * k.items)
    while i < n or j < k.n:
        if i == n or (j < k.n and old[j].value <= s.buffer[i]):
            made = put(out, made, old[j].value, old[j].g, old[j].delta, limit)
            j += 1
        else:
            # Items of the entry that follows may be less than this one.
            made = put(out, made, s.buffer[i], 1, old[j].g + old[j].delta - 1 if j < k.n else 0, limit)
            i += 1
    free(old)
    k.entries = out
    k.n = made


cdef void forget(Sketch* k) noexcept nogil:
    free(k.entries)
    memset(k, 0, sizeof(Sketch))


cdef void turn(Summary* s, int64_t now) noexcept nogil:
    cdef int64_t steps = (now - s.turn_at) / AGE_NS + 1
    cdef int32_t _i
    flush(s)
    free(s.buffer)
    s.buffer = NULL
    s.room = 0
    s.turn_at += steps * AGE_NS
    for _i in range(AGES if steps > AGES else <int32_t>steps):
        s.current = (s.current + 1) % AGES
        forget(&s.ages[s.current])


cdef int summary_make_room(Summary* s, int64_t now) noexcept nogil:
    cdef uint32_t* grown
    cdef int32_t room
    if now >= s.turn_at:
        turn(s, now)
    if s.n_buffered < s.room:
        return 0
    if s.room == BUFFER:
        flush(s)
        return 0
    room = 2 * s.room if s.room else FIRST_ROOM
    grown = <uint32_t*>realloc(s.buffer, <size_t>room * sizeof(uint32_t))
    if grown != NULL:
        s.buffer = grown
        s.room = room
        return 0
    if s.room == 0:
        return -1
    flush(s)
    return 0


cdef void summary_settle(Summary* s, int64_t now) noexcept nogil:
    if now >= s.turn_at:
        turn(s, now)
    flush(s)


cdef void summary_clear(Summary* s) noexcept nogil:
    cdef int32_t i
    for i in range(AGES):
        forget(&s.ages[i])
    free(s.buffer)
    memset(s, 0, sizeof(Summary))


cdef int64_t summary_size(Summary* s) noexcept nogil:
    cdef int64_t n = 0
    cdef int32_t i
    for i in range(AGES):
        n += s.ages[i].n
    return n


cdef void summary_copy(Summary* s, Summary* to, Entry* room) noexcept nogil:
    cdef int32_t i
    to[0] = s[0]
    to.buffer = NULL
    for i in range(AGES):
        if s.ages[i].n:
            memcpy(room, s.ages[i].entries, <size_t>s.ages[i].n * sizeof(Entry))
        to.ages[i].entries = room
        room += s.ages[i].n


# Entries are passed in order of value. An item's rank lies between the sum of g so far of all parts, and that of its
# own part plus delta plus, of each other part, what its next entry may hide. The answer is the last item that surely
# does not rank above the target by more than the error: the one after it may, and no more than twice the error lies
# between the two, so it does not rank below by more either.
cdef int64_t summary_quantile(Summary* s, double quantile) noexcept nogil:
    cdef int32_t[AGES] at
    cdef int64_t[AGES] below
    cdef int64_t[AGES] hidden
    cdef int64_t items = 0, found = -1, highest
    cdef int32_t i, least
    cdef double target
    cdef Sketch* k
    cdef Entry* e
    for i in range(AGES):
        k = &s.ages[i]
        at[i] = 0
        below[i] = 0
        hidden[i] = <int64_t>k.entries[0].g + k.entries[0].delta - 1 if k.n else 0
        items += k.items
    if items == 0:
        return -1
    target = ceil(quantile * items)
    if target < 1:
        target = 1
    while True:
        least = -1
        for i in range(AGES):
            k = &s.ages[i]
            if at[i] < k.n and (least < 0 or k.entries[at[i]].value < s.ages[least].entries[at[least]].value):
                least = i
        if least < 0:
            return found
        k = &s.ages[least]
        e = &k.entries[at[least]]
        highest = below[least] + e.g + e.delta
        for i in range(AGES):
            if i != least:
                highest += below[i] + hidden[i]
        if found >= 0 and highest > target + s.error * items:
            return found
        found = e.value
        below[least] += e.g
        at[least] += 1
        hidden[least] = (<int64_t>k.entries[at[least]].g + k.entries[at[least]].delta - 1
                         if at[least] < k.n else 0)


cdef class LatencySummary:
    """Quantiles of the last minute's durations. Its methods take the time, so that a test needs no clock.

    Parameters
    ----------
    error
        How far, as a part of all values, the rank of an answer may be from the quantile asked for.
    """

    cdef Summary s

    def __cinit__(self, double error):
        if not 0 < error <= 1:
            raise ValueError(f"error must be above 0 and at most 1, got {error}")
        memset(&self.s, 0, sizeof(Summary))
        self.s.error = error

    def __dealloc__(self):
        summary_clear(&self.s)

    def add(self, values_ns, int64_t now_ns):
        """Add durations in ns that ended at ``now_ns``."""
        cdef int64_t value
        for value in values_ns:
            summary_add(&self.s, value // 1000, now_ns)

    def quantile(self, double quantile, int64_t now_ns):
        """Return the duration in whole microseconds, or None when the last minute had none."""
        cdef int64_t found
        summary_settle(&self.s, now_ns)
        found = summary_quantile(&self.s, quantile)
        return None if found < 0 else found

    @property
    def count(self):
        return self.s.count + self.s.n_buffered

    @property
    def sum_us(self):
        flush(&self.s)
        return self.s.sum_us

    @property
    def entries(self):
        """Entries that the window takes, each of 12 bytes."""
        return summary_size(&self.s)


def bench(int n):
    """Add n durations of the shape that real ones have (bench/micro only); return how many."""
    cdef Summary s
    cdef uint32_t random = 1
    cdef int32_t _i
    cdef int64_t count
    memset(&s, 0, sizeof(Summary))
    s.error = 0.001
    for _i in range(n):
        random = random * 1664525 + 1013904223
        summary_add(&s, 50 + (random >> 22) * (1 + (random & 3)), 1)
    count = s.count + s.n_buffered
    summary_clear(&s)
    return count
