# See sequence_slots.pxd. Ids come from clients: they are hashed with keys that nobody knows.
from libc.stdint cimport int32_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free, malloc, realloc
from libc.string cimport memcmp, memcpy, memset

from triton_fast._native.core.native cimport tf_store32
from triton_fast._native.sched.sequence_state cimport states_begin, states_clear, states_size
from triton_fast._native.sched.sequence_types cimport List, Seat, Sequence, Sequences


cdef extern from "<sys/random.h>" nogil:
    long getrandom(void* p, size_t n, unsigned int flags)

cdef extern from * nogil:
    """
    /* (a * b + c) mod 2^61 - 1 for a, b < 2^61 and c < 2^32 */
    static inline uint64_t tf_polynomial(uint64_t a, uint64_t b, uint64_t c) {
        unsigned __int128 x = (unsigned __int128)a * b + c;
        uint64_t y = (uint64_t)(x & (((uint64_t)1 << 61) - 1)) + (uint64_t)(x >> 61);
        return y % (((uint64_t)1 << 61) - 1);
    }
    """
    uint64_t tf_polynomial(uint64_t a, uint64_t b, uint64_t c)

cdef enum:
    FIRST_TABLE = 64
    FIRST_HEAP = 64


cdef int slots_begin(Sequences* q) noexcept nogil:
    cdef int32_t i
    q.table_size = FIRST_TABLE
    q.table = <Sequence**>calloc(q.table_size, sizeof(Sequence*))
    q.heap_room = FIRST_HEAP
    q.heap = <Sequence**>malloc(FIRST_HEAP * sizeof(Sequence*))
    if q.table == NULL or q.heap == NULL or getrandom(q.keys, sizeof(q.keys), 0) != sizeof(q.keys):
        return -1
    q.keys[0] |= 1
    q.keys[1] >>= 4
    if not q.direct:
        return 0
    for i in range(q.n_seats):
        q.seats[i].slots = <Sequence**>calloc(q.n_slots, sizeof(Sequence*))
        if q.seats[i].slots == NULL:
            return -1
    return 0


cdef void slots_end(Sequences* q) noexcept nogil:
    cdef Sequence* s = q.born
    cdef Sequence* after
    cdef int32_t i
    while s != NULL:
        after = s.born
        states_clear(q, s)
        free(s)
        s = after
    for i in range(q.n_seats if q.seats != NULL else 0):
        free(q.seats[i].slots)
    free(q.table)
    free(q.heap)


# ---- by id

cdef uint64_t hash_of(Sequences* q, uint64_t number, const char* text, uint32_t n) noexcept nogil:
    cdef uint64_t h = 1
    cdef uint32_t i = 0, piece
    if n == 0:
        return number * q.keys[0] >> 16
    while i < n:
        piece = 0
        memcpy(&piece, text + i, min(n - i, 4))
        h = tf_polynomial(h, q.keys[1], piece)
        i += 4
    return tf_polynomial(h, q.keys[1], n)


cdef inline bint is_id(Sequence* s, uint64_t number, const char* text, uint32_t n) noexcept nogil:
    if s.text_len != n:
        return False
    return memcmp(s.text, text, n) == 0 if n else s.number == number


cdef Sequence* sequence_find(Sequences* q, uint64_t number, const char* text, uint32_t n) noexcept nogil:
    cdef Sequence* s = q.table[hash_of(q, number, text, n) & (q.table_size - 1)]
    while s != NULL and not is_id(s, number, text, n):
        s = s.chain
    return s


cdef void grow_table(Sequences* q) noexcept nogil:
    cdef uint64_t i, size = q.table_size * 2
    cdef Sequence** table = <Sequence**>calloc(size, sizeof(Sequence*))
    cdef Sequence* s
    cdef Sequence* after
    if table == NULL:
        return              # longer chains, nothing worse
    for i in range(q.table_size):
        s = q.table[i]
        while s != NULL:
            after = s.chain
            s.chain = table[s.hash & (size - 1)]
            table[s.hash & (size - 1)] = s
            s = after
    free(q.table)
    q.table = table
    q.table_size = size


cdef Sequence* sequence_new(Sequences* q, uint64_t number, const char* text, uint32_t n, bint named) noexcept nogil:
    cdef Sequence* s = q.spare
    cdef Sequence** heap
    if s != NULL:
        q.spare = s.chain
    else:
        if q.n_born == q.heap_room:
            heap = <Sequence**>realloc(q.heap, 2 * <size_t>q.heap_room * sizeof(Sequence*))
            if heap == NULL:
                return NULL
            q.heap = heap
            q.heap_room *= 2
        s = <Sequence*>malloc(sizeof(Sequence) + states_size(q))
        if s == NULL:
            return NULL
        memset(s, 0, sizeof(Sequence))
        states_begin(q, s)
        s.heap_at = -1
        s.born = q.born
        q.born = s
        q.n_born += 1
    s.number = number
    s.text_len = n
    if n:
        memcpy(s.text, text, n)
    s.seat = -1
    s.slot = -1
    s.closed = False
    s.busy = False
    s.deadline = 0
    s.named = named
    if named:
        if q.n_named >= q.table_size:
            grow_table(q)
        s.hash = hash_of(q, number, text, n)
        s.chain = q.table[s.hash & (q.table_size - 1)]
        q.table[s.hash & (q.table_size - 1)] = s
        q.n_named += 1
    return s


cdef void sequence_forget(Sequences* q, Sequence* s) noexcept nogil:
    cdef Sequence** link
    if not s.named:
        return
    link = &q.table[s.hash & (q.table_size - 1)]
    while link[0] != s:
        link = &link[0].chain
    link[0] = s.chain
    s.named = False
    q.n_named -= 1


cdef void sequence_free(Sequences* q, Sequence* s) noexcept nogil:
    sequence_forget(q, s)
    sequence_move(q, s, NULL)
    deadline_drop(q, s)
    states_clear(q, s)
    s.chain = q.spare
    q.spare = s


# ---- lists

cdef inline void count_ready(Sequences* q, Sequence* s, int32_t more) noexcept nogil:
    cdef Seat* seat
    if s.seat >= 0 and s.where == &q.seats[s.seat].ready:
        seat = &q.seats[s.seat]
        tf_store32(&seat.n_ready, seat.n_ready + more)


cdef void sequence_move(Sequences* q, Sequence* s, List* to) noexcept nogil:
    if s.where != NULL:
        count_ready(q, s, -1)
        q.n_waiting -= s.where == &q.backlog
        if s.prev != NULL:
            s.prev.next = s.next
        else:
            s.where.head = s.next
        if s.next != NULL:
            s.next.prev = s.prev
        else:
            s.where.tail = s.prev
    s.where = to
    s.next = NULL
    s.prev = NULL
    if to == NULL:
        return
    s.prev = to.tail
    if to.tail != NULL:
        to.tail.next = s
    else:
        to.head = s
    to.tail = s
    q.n_waiting += to == &q.backlog
    count_ready(q, s, 1)


# ---- slots

cdef int32_t lowest(Sequences* q, Seat* seat) noexcept nogil:
    cdef int32_t k
    for k in range(q.n_slots):
        if seat.slots[k] == NULL:
            return k
    return q.n_slots


cdef bint slot_take(Sequences* q, Sequence* s) noexcept nogil:
    cdef int32_t i, k, seat = -1, best = q.n_slots
    for i in range(q.n_seats):
        if q.seats[i].n_used >= q.n_slots:
            continue
        # The lowest slot keeps batches small; without fixed slots, the instance with the fewest sequences.
        k = lowest(q, &q.seats[i]) if q.direct else q.seats[i].n_used
        if k < best:
            best = k
            seat = i
    if seat < 0:
        return False
    slot_fill(q, s, seat, best)
    return True


cdef void slot_fill(Sequences* q, Sequence* s, int32_t seat, int32_t slot) noexcept nogil:
    s.seat = seat
    s.slot = slot
    q.seats[seat].n_used += 1
    if q.direct:
        q.seats[seat].slots[slot] = s


cdef void slot_clear(Sequences* q, Sequence* s) noexcept nogil:
    q.seats[s.seat].n_used -= 1
    if q.direct:
        q.seats[s.seat].slots[s.slot] = NULL
    s.seat = -1


# ---- deadlines: a binary heap

cdef inline void heap_set(Sequences* q, int32_t at, Sequence* s) noexcept nogil:
    q.heap[at] = s
    s.heap_at = at


cdef void heap_up(Sequences* q, int32_t at, Sequence* s) noexcept nogil:
    cdef int32_t up
    while at > 0:
        up = (at - 1) // 2
        if q.heap[up].deadline <= s.deadline:
            break
        heap_set(q, at, q.heap[up])
        at = up
    heap_set(q, at, s)


cdef void heap_down(Sequences* q, int32_t at, Sequence* s) noexcept nogil:
    cdef int32_t down
    while 2 * at + 1 < q.n_heap:
        down = 2 * at + 1
        if down + 1 < q.n_heap and q.heap[down + 1].deadline < q.heap[down].deadline:
            down += 1
        if q.heap[down].deadline >= s.deadline:
            break
        heap_set(q, at, q.heap[down])
        at = down
    heap_set(q, at, s)


cdef void deadline_note(Sequences* q, Sequence* s) noexcept nogil:
    cdef int32_t at = s.heap_at
    if at < 0:
        at = q.n_heap
        q.n_heap += 1
    heap_up(q, at, s)       # a deadline only ever comes closer


cdef void deadline_drop(Sequences* q, Sequence* s) noexcept nogil:
    cdef int32_t at = s.heap_at
    cdef Sequence* last
    s.deadline = 0
    if at < 0:
        return
    s.heap_at = -1
    q.n_heap -= 1
    if at == q.n_heap:
        return
    last = q.heap[q.n_heap]
    if at > 0 and q.heap[(at - 1) // 2].deadline > last.deadline:
        heap_up(q, at, last)
    else:
        heap_down(q, at, last)
