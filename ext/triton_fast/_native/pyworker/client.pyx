# cython: freethreading_compatible = False
# The worker's end of the wire (docs/python_worker.md), compiled; the pure-Python transport does the same. Worker
# processes load it by file path, so it imports nothing of the package, and nothing of numpy's C interface.
import os

import numpy

cimport cython
from cpython.buffer cimport (
    PyBUF_C_CONTIGUOUS, PyBUF_FORMAT, PyBUF_ND, PyBUF_SIMPLE, PyBUF_STRIDES, PyBUF_WRITABLE, PyBuffer_Release,
    PyObject_GetBuffer,
)
from cpython.bytes cimport PyBytes_AS_STRING, PyBytes_FromStringAndSize
from cpython.dict cimport PyDict_GetItem
from cpython.exc cimport PyErr_CheckSignals
from cpython.long cimport PyLong_AsLong
from cpython.object cimport PyObject, PyTypeObject
from cpython.ref cimport Py_DECREF, Py_INCREF, Py_XDECREF
from cpython.tuple cimport PyTuple_New
from libc.errno cimport EINTR, errno
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy, memset
from posix.time cimport nanosleep, timespec
from posix.unistd cimport read, write

from triton_fast._native.core.native cimport (
    DT_BF16, DT_BOOL, DT_COUNT, DT_STRING, DT_UINT8, TF_OK, dtype_size, now_ns, tf_buf, tf_buf_free, tf_buf_put,
    tf_fence, tf_load32, tf_load64, tf_lock, tf_store32, tf_store64, tf_unlock,
)
from triton_fast._native.core.shape cimport elements_of, mul_overflow
from triton_fast._native.pyworker.layout cimport (
    BlsRecord, CANCEL_AT, CONTROL_BYTES, Control, DONE_EXECUTED, DoneRecord, HEADER, HOLD_AT, LAYOUT_MAGIC,
    LAYOUT_VERSION, MAX_SLOTS, Message, ParamRecord, RECORD_BY_SENDER, RECORD_FINAL, RECORD_NONE, RECORD_RESCHEDULED,
    RECORD_RESPONSE, RequestRecord, ResponseRecord, RING_ANSWERS, RING_ASLEEP, RING_BYTES, RING_COUNT, RING_DONE,
    RING_EVENTS, RING_SLOTS, RING_SLOTS_AT, RING_TAIL, RING_WORK, RINGS_AT, TensorRecord, padded,
)


cdef extern from "<sys/mman.h>" nogil:
    void* mmap(void* addr, size_t n, int prot, int flags, int fd, long offset)
    int munmap(void* addr, size_t n)
    int madvise(void* addr, size_t n, int advice)
    int PROT_READ, PROT_WRITE, MAP_SHARED, MAP_NORESERVE, MADV_REMOVE, MADV_DONTDUMP
    void* MAP_FAILED

cdef extern from "<poll.h>" nogil:
    cdef struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd* fds, unsigned long n, int timeout_ms)
    short POLLIN

cdef extern from "<sched.h>" nogil:
    int sched_yield()

cdef extern from "Python.h":
    const char* PyUnicode_AsUTF8AndSize(object text, Py_ssize_t* n) except NULL
    object PyUnicode_DecodeUTF8(const char* p, Py_ssize_t n, const char* errors)
    void PyTuple_SET_ITEM(object t, Py_ssize_t i, object o)

cdef extern from * nogil:
    int __builtin_clzl(unsigned long x)

cdef enum:
    WAIT_NS = 30000000000   # how long a message waits for the server to read what it has, if nobody says otherwise
    SPARE_BYTES = 1 << 20   # records of an encoder that is kept

cdef Py_ssize_t one = 1
cdef tuple no_arguments = ()
cdef object numpy_ndarray = numpy.ndarray
cdef object numpy_array = numpy.array
cdef object numpy_empty = numpy.empty
cdef object numpy_frombuffer = numpy.frombuffer
cdef object object_type = numpy.dtype(object)
# By number of inference.DataType; BF16 as what its bits are.
cdef list dtypes_by_number = [None, *map(numpy.dtype, (
    "bool", "uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64",
    "object", "uint16",
))]


cdef void pause(int64_t ns) noexcept nogil:
    cdef timespec ts
    ts.tv_sec = ns // 1000000000
    ts.tv_nsec = ns % 1000000000
    nanosleep(&ts, NULL)


include "client_memory.pxi"
include "client_bytes.pxi"
include "client_objects.pxi"
include "client_decode.pxi"
include "client_encode.pxi"
include "client_fork.pxi"


cdef enum:                  # what waiting came to
    THERE = 1
    NOTHING = 0
    INTERRUPTED = -1
    LIES = -2
    NO_EVENTS = -3

# The worker's side of one ring: consumer or producer.
cdef struct Ring:
    uint8_t* at
    uint64_t n              # messages taken or published; the region's own copy is not read
    int fd
    int32_t lock            # of the producers


# Take the next message: THERE, NOTHING or LIES.
cdef int ring_take(Ring* r, Message* m) noexcept nogil:
    cdef uint64_t there = <uint64_t>tf_load64(<int64_t*>r.at) - r.n
    if there == 0:
        return NOTHING
    if there > RING_SLOTS:
        return LIES
    memcpy(m, r.at + RING_SLOTS_AT + (r.n % RING_SLOTS) * sizeof(Message), sizeof(Message))
    r.n += 1
    tf_store64(<int64_t*>(r.at + RING_TAIL), <int64_t>r.n)
    return THERE


# Look for `spin_ns` whether a message has come. Whether it has.
cdef bint ring_look(Ring* r, int64_t spin_ns) noexcept nogil:
    cdef int64_t end = now_ns() + spin_ns
    while <uint64_t>tf_load64(<int64_t*>r.at) == r.n:
        if now_ns() >= end:
            return False
        sched_yield()       # the server may need this processor
    return True


# Sleep until the eventfd says something, or until `until` (now_ns() time, 0 = no limit).
cdef int ring_sleep(Ring* r, int64_t until) noexcept nogil:
    cdef int32_t* asleep = <int32_t*>(r.at + RING_ASLEEP)
    cdef uint64_t count
    cdef int64_t left
    cdef pollfd p
    cdef int status = THERE, ready = 1
    tf_store32(asleep, 1)
    tf_fence()
    if <uint64_t>tf_load64(<int64_t*>r.at) == r.n:
        if until:
            left = (until - now_ns() + 999999) // 1000000
            if left < 0:
                left = 0
            if left > 1000000:
                left = 1000000
            p.fd = r.fd
            p.events = POLLIN
            p.revents = 0
            ready = poll(&p, 1, <int>left)
            status = NOTHING
        if ready < 0 or (ready > 0 and read(r.fd, &count, 8) < 0):
            status = INTERRUPTED if errno == EINTR else NO_EVENTS
        elif ready > 0:
            status = THERE
    tf_store32(asleep, 0)
    return status


# Whether there was room.
cdef bint ring_publish(Ring* r, const Message* m) noexcept nogil:
    cdef uint64_t value = 1
    cdef bint room
    tf_lock(&r.lock)
    room = r.n - <uint64_t>tf_load64(<int64_t*>(r.at + RING_TAIL)) < RING_SLOTS
    if room:
        memcpy(r.at + RING_SLOTS_AT + (r.n % RING_SLOTS) * sizeof(Message), m, sizeof(Message))
        r.n += 1
        tf_store64(<int64_t*>r.at, <int64_t>r.n)
    tf_unlock(&r.lock)
    if room:
        tf_fence()
        if tf_load32(<int32_t*>(r.at + RING_ASLEEP)) != 0:
            write(r.fd, &value, 8)
    return room


cdef class Transport:
    """A worker's region, rings and eventfds.

    Parameters
    ----------
    region_fd, work_fd, answers_fd, done_fd, events_fd
        As on the worker's command line. The eventfds stay the caller's and must outlive this.
    spin_us
        How long to look for work before sleeping; None: 20, or 0 on one processor.
    """
    cdef readonly Region region
    cdef Ring[4] rings
    cdef int64_t spin_ns
    cdef object tensor_type
    cdef object request_type
    cdef object response_type
    cdef object error_type
    cdef list inputs
    cdef list outputs
    cdef dict indices       # of the outputs by name
    cdef Encoder spare

    def __cinit__(self, int region_fd, int work_fd, int answers_fd, int done_fd, int events_fd, *, spin_us=None):
        cdef int i
        self.region = Region(region_fd)
        fds = (work_fd, answers_fd, done_fd, events_fd)
        for i in range(RING_COUNT):
            self.rings[i].at = self.region.base + RINGS_AT + <size_t>i * RING_BYTES
            self.rings[i].fd = fds[i]
            # A ring starts where it is: consumers at what was taken, producers at what was published.
            self.rings[i].n = <uint64_t>tf_load64(<int64_t*>(self.rings[i].at + (RING_TAIL if i < RING_DONE else 0)))
        if spin_us is None:
            spin_us = 20 if len(os.sched_getaffinity(0)) > 1 else 0
        self.spin_ns = <int64_t>(spin_us * 1000)
        self.inputs = []
        self.outputs = []
        self.indices = {}

    def bind(self, tensor, request, response, error, inputs, outputs):
        """Set the classes to make and the names of the model's inputs and outputs in the config's order.

        ``tensor``, ``request`` and ``response`` derive from the cores; ``error(message, code)`` makes an error.
        """
        if not (issubclass(tensor, TensorCore) and issubclass(request, RequestCore)
                and issubclass(response, ResponseCore)):
            raise TypeError("the classes do not derive from the cores")
        self.inputs = [str(name) for name in inputs]
        self.outputs = [str(name) for name in outputs]
        self.indices = {name: i for i, name in enumerate(self.outputs)}
        self.error_type = error
        self.response_type = response
        self.tensor_type = tensor
        self.request_type = request

    # The next message of a ring, waiting for it until `until`.
    cdef int wait(self, int ring, int64_t until, Message* m) except? -1:
        cdef Ring* r = &self.rings[ring]
        cdef int status
        while True:
            status = ring_take(r, m)
            if status == THERE:
                return 1
            if status == LIES:
                raise RuntimeError("the server's ring counts more messages than it can hold")
            status = NOTHING
            if self.spin_ns:
                with nogil:
                    status = ring_look(r, self.spin_ns)
                if status:
                    continue
            self.region.settle()
            with nogil:
                status = ring_sleep(r, until)
            if status == INTERRUPTED:
                PyErr_CheckSignals()
            elif status == NO_EVENTS:
                raise OSError(errno, f"can not wait for the server: {os.strerror(errno)}")
            elif status == NOTHING and now_ns() >= until:
                return 0

    cdef int publish(self, int ring, const Message* m) except -1:
        cdef Ring* r = &self.rings[ring]
        cdef int64_t pause_ns = 2000
        while not ring_publish(r, m):
            with nogil:
                pause(pause_ns)
            if pause_ns < 1000000:
                pause_ns *= 2
            PyErr_CheckSignals()
        return 0

    def wait_work(self):
        """Wait for the next message of the work ring; return (kind, id, off, len, arg)."""
        cdef Message m
        self.wait(RING_WORK, 0, &m)
        return m.kind, m.id, m.off, m.len, m.arg

    def take_answer(self, timeout=None):
        """The same for the answers ring; None after ``timeout`` seconds without one."""
        cdef Message m
        cdef int64_t until = 0
        if timeout is not None:
            until = now_ns() + <int64_t>(max(0.0, min(float(timeout), 1e9)) * 1e9)
        if not self.wait(RING_ANSWERS, until, &m):
            return None
        return m.kind, m.id, m.off, m.len, m.arg

    def publish_done(self, uint32_t batch, uint64_t off=0, uint64_t n=0):
        """Say that execution ``batch`` is done; offset and bytes as `encode_done` gave, 0 for none. Any thread may."""
        cdef Message m
        m.kind = DONE_EXECUTED
        m.id = batch
        m.off = off
        m.len = n
        m.arg = 0
        self.publish(RING_DONE, &m)

    def publish_event(self, uint32_t kind, uint32_t call=0, uint64_t off=0, uint64_t n=0):
        """Publish an event; offset and bytes as `encode_response` or `encode_bls` gave. Any thread may."""
        cdef Message m
        m.kind = kind
        m.id = call
        m.off = off
        m.len = n
        m.arg = 0
        self.publish(RING_EVENTS, &m)

    def answer(self, uint32_t batch, list requests not None, responses):
        """`encode_done` and `publish_done` in one."""
        cdef Message m
        done_into(self, requests, responses, &m)
        m.kind = DONE_EXECUTED
        m.id = batch
        self.publish(RING_DONE, &m)

    def is_cancelled(self, uint32_t slot, uint32_t generation):
        """Return whether the client has cancelled the request."""
        return self.region.word(CANCEL_AT, slot) == generation

    def is_held(self, uint32_t slot, uint32_t generation):
        """Return whether the server wants no further response of the request now."""
        return self.region.word(HOLD_AT, slot) == generation

    def wait_hold(self, uint32_t slot, uint32_t generation):
        """Wait until the server takes a further response of the request."""
        cdef int64_t pause_ns = 20000
        while self.region.word(HOLD_AT, slot) == generation:
            with nogil:
                pause(pause_ns)
            if pause_ns < 1000000:
                pause_ns *= 2
            PyErr_CheckSignals()
