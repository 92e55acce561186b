# See shared.pxd. All methods run on the loop's thread.
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport int32_t, int64_t, uint32_t
from libc.stdlib cimport free, malloc, realloc
from libc.string cimport memcmp, memcpy

from triton_fast._native.core.native cimport now_ns, tf_buf_free
from triton_fast._native.core.regions cimport SharedRegions
from triton_fast._native.core.request cimport Response
from triton_fast._native.grpc.call cimport Call, Item, call_ref, call_unref
from triton_fast._native.grpc.outgoing cimport outgoing_drop
from triton_fast._native.net.gate cimport KEY_BEARER, KEY_MAX, KEY_NONE, KEY_OWN, key_field
from triton_fast._native.net.shared cimport Peer, Shared
from triton_fast._native.sched.model cimport NativeModel
from triton_fast._native.wire.pb_infer cimport PbHead

cdef enum:
    DUE_NS = 1000000            # between two walks over the calls that have a deadline, and
    DUE_REST = 8                # so many times what the last one took


cdef str text_of(const char* p, uint32_t n):
    return p[:n if n < MAX_NAME else MAX_NAME].decode("utf-8", "replace") if n else ""


cdef class GrpcPeer(Peer):
    """A connection as the gRPC listener sees it."""

    cdef int on_response(self, Item* item, Response* p) except -1:
        raise TypeError("a connection must take responses")

    cdef int on_deadline(self, Call* call) except -1:
        return 0

    cdef int flush(self) except -1:
        return 0


cdef class GrpcShared(Shared):
    """What the connections of one gRPC listener share; see ``GrpcServer``."""

    def __cinit__(self, *_, **__):
        self.cut_room = 64
        self.cut = <size_t*>malloc(64 * sizeof(size_t))
        if self.cut == NULL:
            raise MemoryError
        self.max_message = 2147483647
        self.max_inflated = 268435456
        self.max_metadata = 16384
        self.max_streams = 1000
        self.stall_ns = <int64_t>300 * 1000000000
        self.keepalive_ns = <int64_t>7200 * 1000000000
        self.keepalive_timeout_ns = <int64_t>20 * 1000000000
        self.max_pings = 2
        self.min_ping_interval_ns = <int64_t>300 * 1000000000
        self.max_ping_strikes = 2

    def __dealloc__(self):
        cdef int i
        free(self.cut)
        tf_buf_free(&self.head)
        outgoing_drop(&self.outgoing)
        tf_buf_free(&self.outgoing.buf)
        for i in range(MODEL_SLOTS):
            free(self.models[i].key)
            Py_XDECREF(self.models[i].model)

    cdef bint take_key(self, Call* call, const char* name, size_t n, const char* value, size_t m) except -1:
        cdef const char* key = NULL
        cdef size_t length = 0
        cdef int32_t kind = key_field(name, n, value, m, &key, &length)
        if kind == KEY_OWN or (kind == KEY_BEARER and call.key == NULL):
            held = key[:min(length, <size_t>KEY_MAX + 1)]
            Py_INCREF(held)
            Py_XDECREF(call.key)
            call.key = <PyObject*>held
        return kind != KEY_NONE

    cdef object lacks(self, Call* call, bint counts):
        cdef bytes key = <bytes>call.key if call.key != NULL else b""
        if self.gate is not None:
            refused = self.gate.refusal(key, len(key), &call.hold, counts)
            if refused is not None:
                return refused
        return self.guard_label if self.guard_name is not None and not call.granted else None

    def use_regions(self, SharedRegions regions not None):
        """Let infer requests use the shared memory that is registered there."""
        self.shared_memory = regions
        self.regions = regions.ptr

    cdef int deliver(self, Response* p, Peer reader) except -1:
        cdef Response* after
        cdef Item* item
        cdef GrpcPeer connection
        cdef bint is_final
        cdef list touched = []
        while p != NULL:
            after = p.next
            item = <Item*>p.request.ctx
            connection = <GrpcPeer>item.call.connection
            is_final = p.is_final
            try:
                connection.on_response(item, p)     # item may be gone after this
                if not connection.touched and connection is not reader:
                    connection.touched = True
                    touched.append(connection)
            except Exception as error:
                self.app.failed(error)
                connection.abort()
            if is_final:
                self.in_flight -= 1
                Py_DECREF(connection)
            p = after
        for connection in touched:
            connection.touched = False
            try:
                connection.flush()
            except Exception as error:
                self.app.failed(error)
                connection.abort()
        return 0

    # ---- deadlines

    cdef int watch(self, Call* call) except -1:
        call.due_prev = NULL
        call.due_next = self.due
        if self.due != NULL:
            self.due.due_prev = call
        self.due = call
        if self.due_at == 0 or max(call.deadline, self.due_rest) < self.due_at:
            self.plan_due(call.deadline)
        return 0

    cdef int unwatch(self, Call* call) noexcept:
        if call.due_prev != NULL:
            call.due_prev.due_next = call.due_next
        elif self.due == call:
            self.due = call.due_next
        else:
            return 0            # it was not watched
        if call.due_next != NULL:
            call.due_next.due_prev = call.due_prev
        call.due_next = NULL
        call.due_prev = NULL
        return 0

    cdef int plan_due(self, int64_t at) except -1:
        at = max(at, self.due_rest)
        if self.due_timer is not None:
            self.due_timer.cancel()
        self.due_at = at
        self.due_timer = self.loop.call_later(max(at - now_ns(), 0) / 1e9, self.on_due)
        return 0

    def on_due(self):
        """End the calls whose deadline has come, and plan the next look."""
        cdef int64_t now = now_ns(), earliest = 0
        cdef Call* call = self.due
        cdef Call* after
        cdef Call* late = NULL
        cdef GrpcPeer connection
        cdef list touched = []
        self.due_timer = None
        self.due_at = 0
        # First all are looked at: what ending one of them sets off may change the list.
        while call != NULL:
            after = call.due_next
            if call.deadline <= now:
                self.unwatch(call)
                call_ref(call)
                call.due_next = late
                late = call
            elif earliest == 0 or call.deadline < earliest:
                earliest = call.deadline
            call = after
        self.due_rest = now + max(<int64_t>DUE_NS, (now_ns() - now) * DUE_REST)
        if earliest:
            self.plan_due(earliest)
        while late != NULL:
            call = late
            late = call.due_next
            call.due_next = NULL
            if call.open and not call.finished:
                connection = <GrpcPeer>call.connection
                touched.append(connection)
                try:
                    connection.on_deadline(call)
                except Exception as error:
                    self.app.failed(error)
                    connection.abort()
            call_unref(call)
        for connection in touched:
            try:
                connection.flush()
            except Exception as error:
                self.app.failed(error)
                connection.abort()

    def detach(self):
        if self.due_timer is not None:
            self.due_timer.cancel()
            self.due_timer = None
        Shared.detach(self)
        self.forget_models()

    # ---- models

    def tick(self):
        # A model that was replaced must not live on only because nobody asked for it since.
        if self.models_epoch != self.epoch.value:
            self.forget_models()
        Shared.tick(self)

    cdef int forget_models(self) except -1:
        cdef int i
        cdef PyObject* model
        self.models_epoch = self.epoch.value
        for i in range(MODEL_SLOTS):
            free(self.models[i].key)
            self.models[i].key = NULL
            model = self.models[i].model
            self.models[i].model = NULL
            Py_XDECREF(model)
        return 0

    cdef NativeModel find_model(self, PbHead* head):
        cdef uint32_t n = head.model_name_len, m = head.version_len
        cdef ModelSlot* slot
        cdef NativeModel model
        cdef int64_t epoch
        cdef char* key
        cdef PyObject* old
        cdef uint32_t k = n * 31 + m
        if n:
            k += <unsigned char>head.model_name[0] * 7 + <unsigned char>head.model_name[n - 1] * 131
        if m:
            k += <unsigned char>head.version[m - 1] * 17
        slot = &self.models[k % MODEL_SLOTS]
        if n > MAX_KEY or m > MAX_KEY - n:
            return self.app.resolve(text_of(head.model_name, n), text_of(head.version, m))
        # Read before the lookup: what changes during it is looked up again by the next request.
        epoch = self.epoch.value
        if self.models_epoch != epoch:
            self.forget_models()
        if (slot.key != NULL and slot.name_len == n and slot.version_len == m
                and memcmp(slot.key, head.model_name, n) == 0 and memcmp(slot.key + n, head.version, m) == 0):
            return <NativeModel>slot.model
        model = self.app.resolve(text_of(head.model_name, n), text_of(head.version, m))
        if self.models_epoch != self.epoch.value:
            return model
        key = <char*>malloc(<size_t>n + m + 1)
        if key == NULL:
            raise MemoryError
        free(slot.key)
        slot.key = key
        old = slot.model
        slot.model = NULL
        slot.name_len = n
        slot.version_len = m
        memcpy(slot.key, head.model_name, n)
        memcpy(slot.key + n, head.version, m)
        Py_INCREF(model)
        slot.model = <PyObject*>model
        Py_XDECREF(old)
        return model

    cdef int grow_cut(self, int32_t n) except -1:
        cdef size_t* grown
        if n <= self.cut_room:
            return 0
        grown = <size_t*>realloc(self.cut, <size_t>n * sizeof(size_t))
        if grown == NULL:
            raise MemoryError
        self.cut = grown
        self.cut_room = n
        return 0
