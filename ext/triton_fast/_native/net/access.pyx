# See access.pxd. Records are printed without the GIL, many at a time, by whoever calls wait and take.
from libc.stdint cimport int32_t, int64_t, uint32_t, uint64_t
from libc.stdio cimport snprintf
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport CLOCK_REALTIME, clock_gettime, timespec

from triton_fast._native.core.native cimport (
    now_ns, tf_add64, tf_buf, tf_buf_free, tf_buf_reserve, tf_fence, tf_load32, tf_load64, tf_store32, tf_store64,
    tf_swap32,
)
from triton_fast._native.core.park cimport park_begin, park_end, park_wait, park_wake_all
from triton_fast._native.net.log_text cimport log_text_plain, log_text_put
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
    LINE = 1024                 # room for a line but for its texts
    ESCAPED = 6                 # bytes that one of a text may become

cdef enum:
    FORM_DEFAULT = 0
    FORM_ISO8601 = 1
    FORM_JSON = 2

# Head of a record; the texts lie behind it, in the order of NAMED.
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

# Fields in the order of a line; texts first, then numbers.
NAMED = ("method", "path", "model", "id", "trace", "inputs", "peer", "version", "status", "bytes_in", "bytes_out",
         "responses", "us", "queue_us", "compute_us")

cdef enum:
    VERSION = N_TEXTS
    STATUS
    BYTES_IN
    BYTES_OUT
    RESPONSES
    US
    QUEUE_US
    COMPUTE_US

# Of the lines that are printed together.
cdef struct Style:
    int32_t form
    size_t message_len
    char[112] message


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
        cdef uint32_t[N_TEXTS] lens
        cdef Record* r
        cdef size_t size = sizeof(Record)
        cdef int64_t begin = self.head & (self.cap - 1), fill = 0, head, used
        cdef char* p
        cdef int i
        lens[0] = place(&texts[0], a.method.text, a.method.n, MAX_METHOD)
        lens[1] = place(&texts[1], a.path.text, a.path.n, MAX_PATH)
        lens[2] = place(&texts[2], s.model, s.model_len, s.model_len)
        lens[3] = place(&texts[3], s.id, s.id_len, s.id_len)
        lens[4] = place(&texts[4], s.trace, s.trace_len, s.trace_len)
        lens[5] = place(&texts[5], s.tensors, s.tensors_len, s.tensors_len)
        lens[6] = place(&texts[6], a.peer.text, a.peer.n, MAX_NAME)
        for i in range(N_TEXTS):
            size += lens[i]
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
        r = <Record*>(self.ring + begin)
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
        p = self.ring + begin + sizeof(Record)
        for i in range(N_TEXTS):
            r.lens[i] = lens[i]
            if lens[i]:
                memcpy(p, texts[i].text, lens[i])
                p += lens[i]
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
        cdef Style style
        cdef int64_t head, offset
        cdef timespec ts
        cdef Record* r
        memset(&out, 0, sizeof(out))
        style_begin(&style, form, pid, escape)
        with nogil:
            clock_gettime(CLOCK_REALTIME, &ts)
            offset = <int64_t>ts.tv_sec * 1000000000 + ts.tv_nsec - now_ns()
            head = tf_load64(&self.head)
            while self.tail != head and out.len < BATCH:
                r = <Record*>(self.ring + (self.tail & (self.cap - 1)))
                if r.kind >= 0:
                    print_line(self, &out, r, r.at + offset, &style)
                tf_store64(&self.tail, self.tail + <int64_t>r.size)
        try:
            if out.failed:
                raise MemoryError
            return out.data[:out.len] if out.len else b""
        finally:
            tf_buf_free(&out)


# What stands before a value, or a value that is always the same with it: copied whole, whatever its length.
cdef struct Piece:
    char[32] text
    size_t n

cdef Piece[2][15] NAMES         # as NAMED; of JSON the second row
cdef Piece[2][7] PROTOCOLS      # by kind
cdef Piece[2][7] RPCS


cdef int piece_set(Piece* piece, str text) except -1:
    data = text.encode()
    if len(data) > sizeof(piece.text):
        raise ValueError(text)
    memcpy(piece.text, <const char*>data, len(data))
    piece.n = len(data)
    return 0


cdef int pieces_set() except -1:
    cdef int i, json
    for json in range(2):
        begin, between = (',"', '":') if json else (" ", "=")
        for i, name in enumerate(NAMED):
            piece_set(&NAMES[json][i], f"{begin}{name}{between}")
        for i, rpc in enumerate(("", "infer", "generate", "generate_stream", "", "ModelInfer", "ModelStreamInfer")):
            protocol = "http" if i < ACCESS_GRPC else "grpc"
            piece_set(&PROTOCOLS[json][i], f'{begin}protocol{between}"{protocol}"')
            piece_set(&RPCS[json][i], f'{begin}rpc{between}"{rpc}"' if rpc else "")
    return 0


pieces_set()


cdef inline char* piece_put(char* to, Piece* piece) noexcept nogil:
    memcpy(to, piece.text, sizeof(piece.text))
    return to + piece.n


cdef inline char* digits_put(char* to, uint64_t value, int n) noexcept nogil:
    cdef int i = n
    while i > 0:
        i -= 1
        to[i] = <char>(48 + value % 10)
        value //= 10
    return to + n


cdef inline char* number_put(char* to, int64_t value) noexcept nogil:
    cdef uint64_t rest
    cdef int n = 1
    value = max(value, 0)
    rest = <uint64_t>value
    while rest >= 10:
        rest //= 10
        n += 1
    return digits_put(to, <uint64_t>value, n)


cdef inline char* field_put(char* to, bint json, int which, int64_t value) noexcept nogil:
    return number_put(piece_put(to, &NAMES[json][which]), value)


cdef inline char* text_put(tf_buf* out, char* to, const char* text, size_t n) noexcept nogil:
    if log_text_plain(text, n) < n:
        out.len = <size_t>(to - out.data)
        log_text_put(out, text, n)
        return out.data + out.len
    to[0] = c'"'
    memcpy(to + 1, text, n)
    to[n + 1] = c'"'
    return to + n + 2


cdef void print_line(AccessLog log, tf_buf* out, Record* r, int64_t at, Style* style) noexcept nogil:
    cdef const char* text = <const char*>r + sizeof(Record)
    cdef bint json = style.form == FORM_JSON
    cdef size_t room = LINE
    cdef char* p
    cdef int i
    for i in range(N_TEXTS):
        room += r.lens[i] * <size_t>ESCAPED
    if tf_buf_reserve(out, room) != 0:
        return
    p = out.data + out.len
    print_second(log, at // 1000000000, style.form)
    memcpy(p, log.stamp, sizeof(log.stamp))
    p += log.stamp_len
    if style.form != FORM_ISO8601:
        p = digits_put(p, <uint64_t>(at % 1000000000 // 1000), 6)
    memcpy(p, style.message, style.message_len)
    p = piece_put(p + style.message_len, &PROTOCOLS[json][r.kind])
    for i in range(N_TEXTS):
        if r.lens[i]:
            p = text_put(out, piece_put(p, &NAMES[json][i]), text, r.lens[i])
            text += r.lens[i]
        if i == 1:
            p = piece_put(p, &RPCS[json][r.kind])
        elif i == 2 and r.version >= 0:
            p = field_put(p, json, VERSION, r.version)
    p = field_put(p, json, STATUS, r.status)
    p = field_put(p, json, BYTES_IN, <int64_t>r.bytes_in)
    p = field_put(p, json, BYTES_OUT, <int64_t>r.bytes_out)
    if r.n_responses:
        p = field_put(p, json, RESPONSES, r.n_responses)
    p = field_put(p, json, US, r.total_ns // 1000)
    if r.queue_ns >= 0:
        p = field_put(p, json, QUEUE_US, r.queue_ns // 1000)
    if r.compute_ns >= 0:
        p = field_put(p, json, COMPUTE_US, r.compute_ns // 1000)
    if json:
        p[0] = c"}"
        p += 1
    p[0] = c"\n"
    out.len = <size_t>(p + 1 - out.data)


# What stands between the time and the fields of every line.
cdef int style_begin(Style* style, str form, int pid, bint escape) except -1:
    style.form = FORM_JSON if form == "json" else FORM_ISO8601 if form == "ISO8601" else FORM_DEFAULT
    if style.form == FORM_JSON:
        text = f'Z","level":"INFO","pid":{pid},"source":"access:0","message":"access"'
    else:
        between = " " if style.form == FORM_DEFAULT else ""
        text = f"{between}{pid} access:0] " + ('"access"' if escape else "access")
    data = text.encode()
    if len(data) > sizeof(style.message):
        raise ValueError(text)
    memcpy(style.message, <const char*>data, len(data))
    style.message_len = len(data)
    return 0


# The date and time of day, which many records share, with what stands around them.
cdef void print_second(AccessLog log, int64_t second, int32_t form) noexcept nogil:
    cdef tm t
    cdef long value = <long>second
    cdef int n
    # The form may change between two batches: it is part of what is compared.
    if log.second == second * 4 + form:
        return
    log.second = second * 4 + form
    gmtime_r(&value, &t)
    if form == FORM_DEFAULT:
        n = snprintf(log.stamp, sizeof(log.stamp), b"I%02d%02d %02d:%02d:%02d.", t.tm_mon + 1, t.tm_mday, t.tm_hour,
                     t.tm_min, t.tm_sec)
    else:
        n = snprintf(log.stamp, sizeof(log.stamp), b"%s%04d-%02d-%02dT%02d:%02d:%02d%s",
                     b"{\"time\":\"" if form == FORM_JSON else b"", t.tm_year + 1900, t.tm_mon + 1, t.tm_mday,
                     t.tm_hour, t.tm_min, t.tm_sec, b"." if form == FORM_JSON else b"Z I ")
    log.stamp_len = min(max(n, 0), <int>sizeof(log.stamp) - 1)


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
    cdef Style style
    cdef int _
    cdef size_t total = 0
    cdef Record* r = <Record*>log.ring
    _put(log, 1, 200, b"POST", None, b"mlp", b"127.0.0.1:12345", b"1234", now_ns())
    r.total_ns = 1234567        # how many digits it has must not depend on how busy the machine is
    memset(&out, 0, sizeof(out))
    style_begin(&style, "default", 12345, True)
    for _ in range(n):
        out.len = 0
        print_line(log, &out, r, r.at, &style)
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
