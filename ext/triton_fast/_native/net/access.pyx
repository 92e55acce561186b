# See access.pxd. Records are printed without the GIL, many at a time, by whoever calls wait and take.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset, strlen
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from triton_fast._native.core.native cimport (
    now_ns, tf_add64, tf_buf, tf_buf_char, tf_buf_free, tf_buf_put, tf_fence, tf_load32, tf_load64, tf_store32,
    tf_store64, tf_swap32,
)
from triton_fast._native.core.park cimport park_begin, park_end, park_wait, park_wake_all
from triton_fast._native.core.print cimport print_number, print_padded, print_text
from triton_fast._native.net.log_text cimport log_text_put
from triton_fast._native.net.seen cimport seen_begin, seen_compute_ns, seen_name, seen_queue_ns

cdef extern from "<time.h>" nogil:
    struct tm:
        int tm_year
        int tm_mon
        int tm_mday
        int tm_hour
        int tm_min
        int tm_sec
    tm* gmtime_r(const long* t, tm* result)

cdef enum:
    MAX_PATH = 1024             # bytes of a text that are kept
    MAX_NAME = 256
    MAX_METHOD = 64
    BATCH = 262144              # bytes of lines that are written at once
    N_TEXTS = 7

cdef enum:
    FORM_DEFAULT = 0
    FORM_ISO8601 = 1
    FORM_JSON = 2

# Head of a record; the texts lie behind it, in the order of TEXTS.
cdef struct Record:
    uint32_t size               # with the texts, a multiple of 8
    int32_t kind                # ACCESS_*; -1: there is nothing more up to the ring's end
    int32_t status
    int32_t n_responses
    int64_t at                  # now_ns() when the answer was given away
    int64_t total_ns
    int64_t queue_ns
    int64_t compute_ns
    int64_t version
    uint64_t bytes_in
    uint64_t bytes_out
    uint32_t[7] lens

cdef const char** TEXTS = [b"method", b"path", b"model", b"id", b"trace", b"inputs", b"peer"]
cdef const char** RPCS = [b"", b"infer", b"generate", b"generate_stream", b"", b"ModelInfer", b"ModelStreamInfer"]


cdef inline uint32_t place(AccessText* to, const char* text, size_t n, size_t most) noexcept nogil:
    to.text = text
    to.n = 0 if text == NULL else min(n, most)
    return <uint32_t>to.n


cdef inline void doze(AccessLog log, int32_t how) noexcept nogil:
    tf_store32(&log.sleeping, how)
    tf_fence()


cdef class AccessLog:
    """Requests to be told of, and their records until they are printed.

    Parameters
    ----------
    size
        Bytes of records that may wait, a power of two; a record is some 200.
    seed
        Of the choice of requests.
    """

    def __cinit__(self, int64_t size=0, uint64_t seed=0x9E3779B97F4A7C15):
        if size < 0 or size & (size - 1) or 0 < size < 65536:
            raise ValueError("the size must be a power of two and at least 65536")
        self.seed = seed or 1
        self.cap = size
        self.second = -1
        if size:
            self.ring = <char*>malloc(<size_t>size)
            if self.ring == NULL:
                raise MemoryError

    def __dealloc__(self):
        free(self.ring)

    @property
    def lost(self):
        """Records for which there was no room."""
        return tf_load64(&self.n_lost)

    def set_share(self, double share):
        """Pick this share of all requests, 0 to 1."""
        if not 0 <= share <= 1:
            raise ValueError("a share lies between 0 and 1")
        self.share = <uint64_t>(share * 4294967296.0) if self.cap else 0

    cdef void put(self, Access* a, Seen* s) noexcept:
        cdef AccessText[N_TEXTS] texts
        cdef Record r
        cdef size_t size = sizeof(Record), at
        cdef int64_t begin = self.head & (self.cap - 1), fill = 0, head, used
        cdef char* p
        cdef int i
        r.lens[0] = place(&texts[0], a.method.text, a.method.n, MAX_METHOD)
        r.lens[1] = place(&texts[1], a.path.text, a.path.n, MAX_PATH)
        r.lens[2] = place(&texts[2], s.model, s.model_len, s.model_len)
        r.lens[3] = place(&texts[3], s.id, s.id_len, s.id_len)
        r.lens[4] = place(&texts[4], s.trace, s.trace_len, s.trace_len)
        r.lens[5] = place(&texts[5], s.tensors, s.tensors_len, s.tensors_len)
        r.lens[6] = place(&texts[6], a.peer.text, a.peer.n, MAX_NAME)
        for i in range(N_TEXTS):
            size += r.lens[i]
        size = (size + 7) & ~<size_t>7
        if self.cap - begin < <int64_t>size:
            fill = self.cap - begin     # it does not fit before the ring's end
        used = self.head - tf_load64(&self.tail)
        if self.cap - used < <int64_t>size + fill:
            tf_add64(&self.n_lost, 1)
            return
        if fill:
            (<uint32_t*>(self.ring + begin))[0] = <uint32_t>fill
            (<int32_t*>(self.ring + begin))[1] = -1
            begin = 0
        r.size = <uint32_t>size
        r.kind = a.kind
        r.status = a.status
        r.n_responses = s.n_responses
        r.at = now_ns()
        r.total_ns = r.at - s.began
        r.queue_ns = seen_queue_ns(s)
        r.compute_ns = seen_compute_ns(s)
        r.version = s.version
        r.bytes_in = s.bytes_in
        r.bytes_out = s.bytes_out
        p = self.ring + begin
        memcpy(p, &r, sizeof(Record))
        at = sizeof(Record)
        for i in range(N_TEXTS):
            if r.lens[i]:
                memcpy(p + at, texts[i].text, r.lens[i])
                at += r.lens[i]
        head = self.head + fill + <int64_t>size
        tf_store64(&self.head, head)
        # Who goes to sleep looks at the head after it has said so.
        tf_fence()
        i = tf_load32(&self.sleeping)
        if i == 1 or (i == 2 and used > self.cap // 4):
            if tf_swap32(&self.sleeping, 0) != 0:
                park_wake_all(&self.word)

    def wait(self, int64_t gather_ns):
        """Wait until there are records, then for more of them for up to ``gather_ns``; False when there will be none.
        """
        cdef bint there
        cdef int64_t until
        with nogil:
            park_begin(&self.word)
            while tf_load64(&self.head) == self.tail and tf_load32(&self.closed) == 0:
                doze(self, 1)
                if tf_load64(&self.head) == self.tail and tf_load32(&self.closed) == 0:
                    park_wait(&self.word, 0)
            until = now_ns() + gather_ns
            while tf_load32(&self.closed) == 0 and now_ns() < until:
                doze(self, 2)
                if tf_load64(&self.head) - self.tail > self.cap // 4:
                    break
                park_wait(&self.word, until)
            tf_store32(&self.sleeping, 0)
            there = tf_load64(&self.head) != self.tail
            park_end(&self.word)
        return there

    def close(self):
        """Let ``wait`` return at once from now on, with what there is."""
        tf_store32(&self.closed, 1)
        with nogil:
            park_wake_all(&self.word)

    def take(self, str form not None, int pid, bint escape=True):
        """Return the next lines, bytes, in a format of ``observability.log``; b"" when no record waits.

        ``escape``: the message is quoted, as in other lines of the default formats.
        """
        cdef tf_buf out
        cdef int32_t which = FORM_JSON if form == "json" else FORM_ISO8601 if form == "ISO8601" else FORM_DEFAULT
        cdef int64_t head, offset
        cdef timespec ts
        cdef Record* r
        memset(&out, 0, sizeof(out))
        with nogil:
            clock_gettime(CLOCK_REALTIME, &ts)
            offset = <int64_t>ts.tv_sec * 1000000000 + ts.tv_nsec - now_ns()
            head = tf_load64(&self.head)
            while self.tail != head and out.len < BATCH:
                r = <Record*>(self.ring + (self.tail & (self.cap - 1)))
                if r.kind >= 0:
                    print_line(self, &out, r, r.at + offset, which, pid, escape)
                tf_store64(&self.tail, self.tail + <int64_t>r.size)
        try:
            if out.failed:
                raise MemoryError
            return out.data[:out.len] if out.len else b""
        finally:
            tf_buf_free(&out)


cdef inline void begin_field(tf_buf* out, int32_t form, const char* name) noexcept nogil:
    if form == FORM_JSON:
        tf_buf_put(out, b",\"", 2)
        print_text(out, name)
        tf_buf_put(out, b"\":", 2)
    else:
        tf_buf_char(out, c" ")
        print_text(out, name)
        tf_buf_char(out, c"=")


cdef void text_field(tf_buf* out, int32_t form, const char* name, const char* text, size_t n) noexcept nogil:
    begin_field(out, form, name)
    log_text_put(out, text, n)


cdef void number_field(tf_buf* out, int32_t form, const char* name, int64_t value) noexcept nogil:
    begin_field(out, form, name)
    print_number(out, <uint64_t>max(value, 0))


cdef void print_line(AccessLog log, tf_buf* out, Record* r, int64_t at, int32_t form, int pid,
                     bint escape) noexcept nogil:
    cdef const char* p = <const char*>r + sizeof(Record)
    cdef int i, micros = <int>(at % 1000000000 // 1000)
    print_second(log, at // 1000000000, form)
    if form == FORM_JSON:
        print_text(out, b"{\"time\":\"")
        print_text(out, log.stamp)
        tf_buf_char(out, c".")
        print_padded(out, <uint64_t>micros, 6)
        print_text(out, b"Z\",\"level\":\"INFO\",\"pid\":")
        print_number(out, <uint64_t>pid)
        print_text(out, b",\"source\":\"access:0\",\"message\":\"access\"")
    else:
        if form == FORM_DEFAULT:
            tf_buf_char(out, c"I")
        print_text(out, log.stamp)
        if form == FORM_DEFAULT:
            tf_buf_char(out, c".")
            print_padded(out, <uint64_t>micros, 6)
            tf_buf_char(out, c" ")
        else:
            print_text(out, b"Z I ")
        print_number(out, <uint64_t>pid)
        print_text(out, b" access:0] ")
        print_text(out, b"\"access\"" if escape else b"access")
    text_field(out, form, b"protocol", b"http" if r.kind < ACCESS_GRPC else b"grpc", 4)
    for i in range(N_TEXTS):
        if r.lens[i]:
            text_field(out, form, TEXTS[i], p, r.lens[i])
        p += r.lens[i]
        if i == 1 and r.kind != ACCESS_HTTP and r.kind != ACCESS_GRPC:
            text_field(out, form, b"rpc", RPCS[r.kind], strlen(RPCS[r.kind]))
        elif i == 2 and r.version >= 0:
            number_field(out, form, b"version", r.version)
    number_field(out, form, b"status", r.status)
    number_field(out, form, b"bytes_in", <int64_t>r.bytes_in)
    number_field(out, form, b"bytes_out", <int64_t>r.bytes_out)
    if r.n_responses:
        number_field(out, form, b"responses", r.n_responses)
    number_field(out, form, b"us", r.total_ns // 1000)
    if r.queue_ns >= 0:
        number_field(out, form, b"queue_us", r.queue_ns // 1000)
    if r.compute_ns >= 0:
        number_field(out, form, b"compute_us", r.compute_ns // 1000)
    print_text(out, b"}\n" if form == FORM_JSON else b"\n")


# The date and time of day, which many records share.
cdef void print_second(AccessLog log, int64_t second, int32_t form) noexcept nogil:
    cdef tm t
    cdef long value = <long>second
    # The form may change between two batches: it is part of what is compared.
    if log.second == second * 4 + form:
        return
    log.second = second * 4 + form
    gmtime_r(&value, &t)
    if form == FORM_DEFAULT:
        snprintf(log.stamp, sizeof(log.stamp), b"%02d%02d %02d:%02d:%02d", t.tm_mon + 1, t.tm_mday, t.tm_hour,
                 t.tm_min, t.tm_sec)
    else:
        snprintf(log.stamp, sizeof(log.stamp), b"%04d-%02d-%02dT%02d:%02d:%02d", t.tm_year + 1900, t.tm_mon + 1,
                 t.tm_mday, t.tm_hour, t.tm_min, t.tm_sec)


cdef AccessText access_text(bytes value) noexcept:
    cdef AccessText made
    made.text = NULL
    made.n = 0
    if value is not None:
        made.text = <const char*>value
        made.n = len(value)
    return made


def _put(AccessLog log not None, int kind, int status, bytes method, bytes path, bytes model not None, bytes peer,
         bytes ident not None=b"", int64_t began=0):
    """Add a record (tests only)."""
    cdef Access a
    cdef Seen s
    seen_begin(&s, began)
    a.kind = kind
    a.status = status
    a.method = access_text(method)
    a.path = access_text(path)
    a.peer = access_text(peer)
    seen_name(&s, <const char*>model, len(model), <const char*>ident, len(ident))
    log.put(&a, &s)


def repeat_record(AccessLog log not None, int n):
    """Pick, take down and drop n records; for benchmarks."""
    cdef Access a
    cdef Seen s
    cdef int _
    memset(&a, 0, sizeof(a))
    a.kind = 1
    a.status = 200
    a.peer = a.method = access_text(b"127.0.0.1:12345")
    for _ in range(n):
        if access_pick(log):
            seen_begin(&s, now_ns())
            seen_name(&s, b"mlp", 3, b"1234", 4)
            log.put(&a, &s)
            log.tail = log.head


def repeat_lines(AccessLog log not None, int n):
    """Print the same record n times; for benchmarks. Returns bytes printed."""
    cdef tf_buf out
    cdef int _
    cdef size_t total = 0
    _put(log, 1, 200, b"POST", None, b"mlp", b"127.0.0.1:12345", b"1234", now_ns())
    memset(&out, 0, sizeof(out))
    for _ in range(n):
        out.len = 0
        print_line(log, &out, <Record*>log.ring, now_ns(), FORM_DEFAULT, 12345, True)
        total += out.len
    tf_buf_free(&out)
    return total


def _picked(AccessLog log not None, int n):
    """Return how many of n requests are picked (tests only)."""
    cdef int _, found = 0
    for _ in range(n):
        found += access_pick(log) != 0
    return found


def peer_of(transport):
    """Return the client's address as bytes: host:port, [host]:port, or b"" for what has none."""
    name = transport.get_extra_info("peername")
    if not isinstance(name, tuple):
        return b""
    return (f"[{name[0]}]:{name[1]}" if ":" in name[0] else f"{name[0]}:{name[1]}").encode()
