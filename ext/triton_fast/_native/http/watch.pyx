# See watch.pxd. What no one looks at costs a comparison here and there.
from libc.stdint cimport int32_t
from libc.string cimport memset

from triton_fast._native.core.marks cimport WATCH_LOG, WATCH_TIMING
from triton_fast._native.core.native cimport TF_OK, now_ns, tf_buf, tf_error
from triton_fast._native.core.request cimport Request, Response
from triton_fast._native.http.channel cimport Channel
from triton_fast._native.http.head cimport ROUTE_GENERATE, ROUTE_INFER, ROUTE_NONE
from triton_fast._native.net.access cimport (
    ACCESS_GENERATE, ACCESS_HTTP, ACCESS_INFER, ACCESS_STREAM, Access, access_pick, access_text,
)
from triton_fast._native.net.seen cimport seen_begin, seen_name, seen_request, seen_take, timing_line

from triton_fast._native.net.access import peer_of

cdef enum:
    CLIENT_GONE = 499       # what is told of a request whose client did not wait for its answer
    SERVER_ERROR = 500      # from here on an answer is told of, whatever the share of requests


cdef class Watched(Channel):
    """A connection as far as others look on."""

    cdef int watch_request(self) except -1:
        self.watch = access_pick(self.server.access)
        if self.info.timing:
            self.watch |= WATCH_TIMING
        if self.server.access.share or self.watch:
            seen_begin(&self.kept, self.began)
            if self.watch:
                self.kept.whole = now_ns()
                if self.peer is None:
                    self.peer = peer_of(self.transport)
        return 0

    cdef int watch_response(self, Response* p) noexcept:
        if self.watch == 0 and (p.code == TF_OK or self.server.access.share == 0):
            return 0
        if self.info.route != ROUTE_INFER and (p.n_outputs or p.code != TF_OK):
            self.kept.n_responses += 1
        # The first one of many for the head of the answer, the last one for the record.
        if p.is_final or self.kept.taken == 0:
            seen_take(&self.kept, p.request, self.server.access.tensors)
        return 0

    cdef void watch_refused(self, Request* r, tf_error* e) noexcept:
        r.response.code = e.code        # for its trace
        if self.watch or self.server.access.share:
            seen_request(&self.kept, r)

    cdef inline void watch_head(self, tf_buf* out) noexcept:
        if self.watch & WATCH_TIMING:
            timing_line(out, &self.kept)

    cdef bint push(self, const char* head, size_t n, Response* p, int32_t n_binary,
                   const int32_t* binary_index) except -1:
        cdef int32_t i
        if self.server.access.share:
            if self.kept.status == 0 and n > 12:
                # "HTTP/1.1 200 OK": every answer begins with its head.
                self.kept.status = (head[9] - 48) * 100 + (head[10] - 48) * 10 + head[11] - 48
            self.kept.bytes_out += n
            for i in range(n_binary):
                self.kept.bytes_out += p.outputs[binary_index[i]].nbytes
        return Channel.push(self, head, n, p, n_binary, binary_index)

    cdef int watch_end(self) except -1:
        if self.watch & WATCH_LOG or self.kept.status >= SERVER_ERROR:
            self.tell(self.kept.status)
        return 0

    cdef int watch_gone(self, Request* r) except -1:
        if self.watch & WATCH_LOG:
            if r != NULL and self.kept.taken == 0:
                seen_request(&self.kept, r)
            self.tell(CLIENT_GONE)
        return 0

    cdef int tell(self, int32_t status) except -1:
        cdef Access a
        cdef bytes method = None, path = None, model = None
        self.watch = 0
        memset(&a, 0, sizeof(a))
        a.status = status
        if self.peer is None and self.transport is not None:
            self.peer = peer_of(self.transport)
        a.peer = access_text(self.peer)
        self.kept.bytes_in = self.received
        if self.info.route != ROUTE_NONE:
            a.kind = (ACCESS_INFER if self.info.route == ROUTE_INFER else
                      ACCESS_GENERATE if self.info.route == ROUTE_GENERATE else ACCESS_STREAM)
            method = b"POST"
            if self.kept.model_len == 0 and self.model_name is not None:
                model = self.model_name.encode()
                seen_name(&self.kept, <const char*>model, len(model), NULL, 0)
        elif self.verb is not None:
            a.kind = ACCESS_HTTP
            method = self.verb[0].encode("latin-1", "replace")
            path = self.verb[1].encode("latin-1", "replace")        # as it came
            a.path = access_text(path)
        a.method = access_text(method)
        self.server.access.put(&a, &self.kept)
        return 0
