# See generate.pxd. A response lies un-encoded, in the carrier that counts against its request's max_responses, until
# there is room for its bytes: a reader that does not read stops its own model, not the server's memory.
from libc.stdint cimport int32_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.native cimport (
    TF_EXHAUSTED, TF_INVALID_ARG, TF_OK, tf_buf, tf_buf_free, tf_buf_put, tf_error, tf_fail,
)
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Request, Response, request_free, request_new
from triton_fast._native.core.validate cimport request_validate
from triton_fast._native.http.head cimport ROUTE_STREAM, Info, Limits
from triton_fast._native.http.reply cimport stream_head
from triton_fast._native.net.seen cimport Seen, timing_line
from triton_fast._native.wire.json_event cimport (
    EVENT_CHUNK, EVENT_SSE, event_put, event_put_error, event_put_text, event_weight,
)
from triton_fast._native.wire.json_generate cimport json_decode_generate

from triton_fast.errors import RETRY_AFTER, STATUS

cdef enum:
    NOGIL_JSON = 65536          # JSON of this size takes long enough to let other threads have the GIL
    HEAVY = 1048576             # bytes of outputs: some 10 ms as JSON numbers

cdef bytes NOT_ONE = (b"generate expects model to produce exactly 1 response, use generate stream for model that "
                      b"generates various number of responses")

cdef enum:
    N_CODES = TF_EXHAUSTED + 1

cdef int32_t[N_CODES] statuses
cdef int32_t[N_CODES] retries       # seconds after which to ask again; 0: that is not said
for _code, _row in STATUS.items():
    if int(_code) >= N_CODES:
        raise ValueError(f"no room for the status of {_code!r}")
    statuses[int(_code)] = _row.http
    retries[int(_code)] = RETRY_AFTER.get(_code, 0)


cdef int decode(Request* r, const char* json, size_t n, size_t max_input, tf_error* e) noexcept nogil:
    if json_decode_generate(r, json, n, max_input, e) != 0:
        return -1
    return request_validate(r, e)


cdef Request* generate_request(Model* model, Info* info, Limits* limits, Block* block, size_t at, size_t n,
                               tf_error* e) except? NULL:
    cdef const char* json = b""
    cdef Request* r
    cdef int rc
    if info.encoding_in:
        tf_fail(e, TF_INVALID_ARG, "Unsupported content-encoding, only 'identity' is supported.")
        return NULL
    if block != NULL:
        json = <const char*>block.data + at
    r = request_new(model)
    if r == NULL:
        raise MemoryError
    if n >= NOGIL_JSON:
        with nogil:
            rc = decode(r, json, n, limits.max_input, e)
    else:
        rc = decode(r, json, n, limits.max_input, e)
    if rc != 0:
        request_free(r)
        return NULL
    r.body = block
    return r


# Whether p only says that a decoupled model has no more responses.
cdef inline bint is_empty_final(Response* p) noexcept:
    return p.is_final and p.code == TF_OK and p.n_outputs == 0 and p.request.model.decoupled


cdef class Generation:
    """The answer to one generate request, as far as it has come."""

    @staticmethod
    cdef Generation make(Info* info, object app, Seen* seen):
        cdef Generation g = Generation.__new__(Generation)
        g.events = info.route == ROUTE_STREAM
        g.keep_alive = info.keep_alive
        g.http10 = info.http10
        g.load_format = info.load_format
        g.app = app
        g.seen = seen if info.timing else NULL
        return g

    def __dealloc__(self):
        self.drop()
        tf_buf_free(&self.only)

    cdef void drop(self) noexcept:
        cdef Response* p
        while self.head != NULL:
            p = self.head
            self.head = p.next
            request_free(p.request)

    cdef void take(self, Response* p) noexcept:
        p.next = NULL
        if self.head == NULL:
            self.head = p
        else:
            self.tail.next = p
        self.tail = p

    cdef int begin(self, tf_buf* out, int32_t code) except -1:
        cdef bytes load = None
        cdef bint known = 0 <= code < N_CODES
        self.begun = True
        if self.load_format:
            load = self.app.endpoint_load(self.load_format)
        stream_head(out, 200 if code == TF_OK else statuses[code] if known else 500, self.events, load,
                    self.keep_alive, self.http10, retries[code] if known else 0)
        if self.seen != NULL:
            timing_line(out, self.seen)
        return 0

    cdef int end(self, tf_buf* out) except -1:
        cdef const char* text = NOT_ONE
        cdef int32_t form = 0 if self.http10 else EVENT_CHUNK
        self.over = True
        if not self.begun:
            self.begin(out, TF_OK)
        if not self.events:
            if self.n_responses == 1:
                event_put_text(out, self.only.data, self.only.len, form)
            else:
                event_put_error(out, text, len(NOT_ONE), form)
            tf_buf_free(&self.only)
        if not self.http10:
            tf_buf_put(out, b"0\r\n\r\n", 5)
        return 0

    # Append the response p, or what became of it in job.
    cdef int put(self, tf_buf* out, Response* p, EventJob job) except -1:
        cdef tf_error e
        cdef int32_t form = 0
        cdef tf_buf* target = out
        cdef size_t before
        cdef bint good
        self.n_responses += 1
        if self.events:
            form = EVENT_SSE if self.http10 else EVENT_SSE | EVENT_CHUNK
        else:
            # Only the first can become the answer.
            if self.n_responses > 1:
                if self.only.data != NULL:
                    tf_buf_free(&self.only)
                return 0
            target = &self.only
        if not self.begun and p.code != TF_OK:
            self.begin(out, p.code)
        before = out.len
        if p.code != TF_OK:
            event_put_error(target, p.text, p.text_len, form)
            return 0
        if not self.begun:
            # The head needs to know whether it can be encoded: it goes first, and is made again when it can not.
            self.begin(out, TF_OK)
        if job is not None:
            good = job.good
            if good:
                event_put_text(target, job.text.data, job.text.len, form)
                return 0
            e = job.e
        elif event_put(target, p, form, &e) == 0:
            return 0
        if self.n_responses == 1:
            out.len = before
            self.begin(out, e.code)
        event_put_error(target, e.text, e.len, form)
        return 0

    cdef int fill(self, tf_buf* out, size_t room) except -1:
        cdef Response* p
        cdef EventJob job
        cdef bint last
        while not self.over:
            if out.failed or self.only.failed:
                return FILL_FAILED
            if out.len >= room:
                return FILL_FULL
            job = self.pending
            if job is not None:
                if not job.done:
                    return FILL_MORE
                self.pending = None
                p = job.p
                self.put(out, p, job)
                if p.is_final:
                    self.end(out)
                continue
            p = self.head
            if p == NULL:
                return FILL_MORE
            if event_weight(p) > HEAVY and p.code == TF_OK and (self.events or self.n_responses == 0):
                return FILL_HEAVY
            self.head = p.next
            last = p.is_final
            try:
                if not is_empty_final(p):
                    self.put(out, p, None)
            finally:
                request_free(p.request)
            if last:
                self.end(out)
        return FILL_FAILED if out.failed else FILL_DONE

    cdef EventJob job(self):
        cdef EventJob job = EventJob.__new__(EventJob)
        job.p = self.head
        self.head = self.head.next
        self.pending = job
        return job


cdef class EventJob:
    """A response to be encoded; ``run`` may be called on any thread, once."""

    def __dealloc__(self):
        if self.p != NULL:
            request_free(self.p.request)
        tf_buf_free(&self.text)

    def run(self):
        with nogil:
            self.good = event_put(&self.text, self.p, 0, &self.e) == 0
        self.done = True
