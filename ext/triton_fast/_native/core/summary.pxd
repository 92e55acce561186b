# Quantiles of durations over a sliding minute, with a bound on the error of their rank: see summary.pyx for the method.
# Knows nothing of models or metrics.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t

cdef enum:
    AGES = 5                # parts of the window; the oldest is forgotten as a whole
    BUFFER = 4096           # values that may wait to be sorted in
    MAX_VALUE = 0xFFFFFFFF  # us, 71 minutes; what is longer counts as that, but for the sum

# A value, how many items it stands for beyond the entry before it, and how far its rank may lie above their sum.
cdef struct Entry:
    uint32_t value
    uint32_t g
    uint32_t delta

cdef struct Sketch:
    Entry* entries          # by value
    int32_t n
    int64_t items

# Zeroed, with `error` set, it is ready and holds no memory until the first value. One thread at a time uses it.
cdef struct Summary:
    double error
    int64_t count           # of all values ever, but for those that wait
    int64_t sum_us
    int64_t turn_at         # ns when the current part of the window ends
    int32_t current
    int32_t n_buffered
    int32_t room            # of the buffer; it grows to BUFFER, and starts anew with each part of the window
    uint32_t* buffer
    Sketch[5] ages


# Before a value for which there is no place, or the window's next part: 0, or -1 when memory ran out.
cdef int summary_make_room(Summary* s, int64_t now) noexcept nogil
# Sort in what waits, and forget what is too old.
cdef void summary_settle(Summary* s, int64_t now) noexcept nogil
cdef void summary_clear(Summary* s) noexcept nogil
# Entries of all parts together, after settling.
cdef int64_t summary_size(Summary* s) noexcept nogil
# A copy of s whose parts lie in `room`, which has place for summary_size(s) entries; it needs no clearing.
cdef void summary_copy(Summary* s, Summary* to, Entry* room) noexcept nogil
# The value whose rank is within error x items of quantile x items, or -1 when there are none.
cdef int64_t summary_quantile(Summary* s, double quantile) noexcept nogil


# now: monotonic ns. A few instructions, and now and then some 60 for each of the values that came since.
cdef inline void summary_add(Summary* s, int64_t us, int64_t now) noexcept nogil:
    if (now >= s.turn_at or s.n_buffered == s.room) and summary_make_room(s, now) != 0:
        return
    if <uint64_t>us > MAX_VALUE:
        if us < 0:      # a clock ran backwards
            us = 0
        else:
            s.sum_us += us - MAX_VALUE
            us = MAX_VALUE
    s.buffer[s.n_buffered] = <uint32_t>us
    s.n_buffered += 1
