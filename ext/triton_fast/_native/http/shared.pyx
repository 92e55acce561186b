# See shared.pxd: limits and buffers of an HTTP listener, and the way of a response to its connection.
from cpython.ref cimport Py_DECREF
from libc.stdint cimport int32_t, int64_t
from libc.stdlib cimport free, malloc, realloc

from triton_fast._native.core.native cimport tf_buf_free
from triton_fast._native.core.regions cimport SharedRegions
from triton_fast._native.core.request cimport Response
from triton_fast._native.http.head cimport has_header, presented_key
from triton_fast._native.net.gate cimport KeyHold
from triton_fast._native.net.shared cimport Peer, Shared


cdef class HttpPeer(Peer):
    """A connection as an HTTP listener sees it."""

    cdef int on_response(self, Response* p) except -1:
        raise TypeError("a connection must take responses")

    cdef int flush(self) except -1:
        return 0

    cdef int use_pending(self) except -1:
        return 0


cdef class HttpShared(Shared):
    """What the connections of one HTTP listener share.

    Parameters
    ----------
    app
        Object with ``resolve(name, version) -> NativeModel``, ``control(method, path, query, headers, body)`` which
        returns ``(status, headers, body)`` or a coroutine of it, ``inflate(data, encoding, limit)``,
        ``deflate(data, encoding)``, ``choose_encoding(accept_encoding)``, ``endpoint_load(format)``,
        ``failed(exception)``; with ``binary_type`` also ``native(path, value of route_header or None)``, which returns
        None or (ROUTE_*, model, version, whether the same head always means this).
    loop, epoch
        See ``Shared``.
    """

    def __cinit__(self, *_, **__):
        self.binary_room = 256
        self.binary_index = <int32_t*>malloc(256 * sizeof(int32_t))
        if self.binary_index == NULL:
            raise MemoryError
        self.allow_infer = True
        self.max_responses = 1024
        self.limits.max_head = 65536
        self.limits.max_input = 67108864
        self.limits.max_body = <size_t>1 << 36
        self.head_timeout_ns = <int64_t>30 * 1000000000
        self.body_timeout_ns = <int64_t>60 * 1000000000
        self.idle_timeout_ns = <int64_t>600 * 1000000000

    def __dealloc__(self):
        free(self.binary_index)
        tf_buf_free(&self.json)

    def set_limits(self, *, size_t max_head, size_t max_input, size_t max_body=<size_t>1 << 36):
        """Limit request heads; JSON, raw and inflated bodies; any body (64 GiB). Bytes."""
        self.limits.max_head = max_head
        self.limits.max_input = max_input
        self.limits.max_body = max_body

    cdef object lacks(self, KeyHold* hold):
        cdef const char* key = NULL
        cdef size_t n = 0
        if self.gate is not None:
            hold.generation = 0         # it is of another head
            presented_key(&self.head, &key, &n)
            refused = self.gate.refusal(key, n, hold, True)
            if refused is not None:
                return refused
        if self.guard_name is not None and not has_header(&self.head, self.guard_name, self.guard_value):
            return self.guard_label
        return None

    def use_regions(self, SharedRegions regions not None):
        """Let infer requests use the shared memory that is registered there."""
        self.shared_memory = regions
        self.limits.regions = regions.ptr

    cdef int deliver(self, Response* p, Peer reader) except -1:
        cdef Response* after
        cdef HttpPeer connection
        cdef bint fresh
        cdef list touched = None
        while p != NULL:
            after = p.next
            connection = <HttpPeer>p.request.ctx
            if p.is_final:
                Py_DECREF(connection)
                self.in_flight -= 1
            fresh = not connection.touched
            try:
                connection.on_response(p)
                if not connection.touched:
                    if connection is not reader:
                        connection.use_pending()
                elif fresh:
                    # One write for all that comes for it in this round.
                    if touched is None:
                        touched = []
                    touched.append(connection)
            except Exception as error:
                self.app.failed(error)
                connection.abort()
            p = after
        if touched is not None:
            for connection in touched:
                connection.touched = False
                self.flush_one(connection, connection is reader)
        return 0

    cdef int flush_one(self, HttpPeer connection, bint reading) except -1:
        try:
            connection.flush()
            if not reading:
                connection.use_pending()
        except Exception as error:
            self.app.failed(error)
            connection.abort()
        return 0

    cdef int grow_binary(self, int32_t n) except -1:
        cdef int32_t* grown
        if n <= self.binary_room:
            return 0
        grown = <int32_t*>realloc(self.binary_index, <size_t>n * sizeof(int32_t))
        if grown == NULL:
            raise MemoryError
        self.binary_index = grown
        self.binary_room = n
        return 0

    cdef size_t binary_bytes(self, Response* p, int32_t n_binary) noexcept:
        cdef size_t total = 0
        cdef int32_t i
        for i in range(n_binary):
            total += p.outputs[self.binary_index[i]].nbytes
        return total
