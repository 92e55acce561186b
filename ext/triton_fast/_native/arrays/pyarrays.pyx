# Frameworks with a Python API: an instance that calls a Python function with the arrays of a batch. Gathering and
# slicing run without the GIL; what the function makes is lent to the responses with the object that owns it.
from cpython.ref cimport Py_INCREF, Py_XDECREF, PyObject
from libc.stdint cimport int32_t, int64_t, uint8_t, uintptr_t
from libc.stdlib cimport free, malloc
from libc.string cimport memcpy

from triton_fast._native.arrays.arrays cimport (
    Array, Arrays, arrays_free, arrays_gather, arrays_init, arrays_release, arrays_scatter,
)
from triton_fast._native.core.memory cimport PIN_FROM, Block, block_new, block_ref, block_unref, block_wrap
from triton_fast._native.core.model cimport MAX_RANK
from triton_fast._native.core.native cimport MEM_GPU, now_ns, tf_lock, tf_unlock
from triton_fast._native.core.request cimport Request, response_fail, response_fail_error
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.core.view cimport BlockView
from triton_fast._native.sched.instance cimport Batch, NativeInstance, raised_text

from triton_fast.errors import Internal, InvalidArg


cdef enum:
    LARGE = 32768           # bytes; less is copied, and its owner let go at once

# Objects whose memory no response needs any more, until somebody who has the GIL drops them.
cdef struct Owned:
    Owned* next
    PyObject* owner

cdef int32_t dropped_lock = 0
cdef Owned* dropped = NULL


cdef void drop_later(Block* block) noexcept nogil:
    global dropped
    cdef Owned* note = <Owned*>block.owner
    tf_lock(&dropped_lock)
    note.next = dropped
    dropped = note
    tf_unlock(&dropped_lock)


def drop():
    """Let go of the objects that responses needed and need no more; each execution does it too."""
    global dropped
    cdef Owned* note
    cdef Owned* rest
    if dropped == NULL:
        return
    tf_lock(&dropped_lock)
    note = dropped
    dropped = NULL
    tf_unlock(&dropped_lock)
    while note != NULL:
        rest = note.next
        Py_XDECREF(note.owner)
        free(note)
        note = rest


cdef BlockView view_of(Array* array):
    cdef BlockView view = BlockView.__new__(BlockView)
    if array.block != NULL:
        block_ref(array.block)
    view.block = array.block
    view.data = array.data
    view.size = <Py_ssize_t>array.nbytes
    return view


cdef class DeviceView:
    """One tensor in a GPU's memory, as the CUDA array interface tells of it: bytes."""

    cdef Block* block           # one reference; NULL: its request keeps it
    cdef uintptr_t start
    cdef size_t size
    cdef readonly int32_t device

    @property
    def address(self):
        return self.start

    @property
    def __cuda_array_interface__(self):
        return {"shape": (self.size,), "typestr": "|u1", "data": (self.start, False), "strides": None, "version": 3}

    def __len__(self):
        return self.size

    def __dealloc__(self):
        if self.block != NULL:
            with nogil:         # device memory is given back without it
                block_unref(self.block)


# An input of which some lies on a GPU: the tensors of all requests, in the order of the batch.
cdef list pieces_of(Request** requests, int32_t n, int32_t i):
    cdef const Tensor* t
    cdef DeviceView there
    cdef BlockView here
    cdef int32_t k
    pieces = []
    for k in range(n):
        t = requests[k].by_index[i]
        if t.kind == MEM_GPU:
            there = DeviceView.__new__(DeviceView)
            if t.block != NULL:
                block_ref(t.block)
            there.block = t.block
            there.start = <uintptr_t>t.ptr
            there.size = t.nbytes
            there.device = t.device
            pieces.append(there)
        else:
            here = BlockView.__new__(BlockView)
            here.data = <uint8_t*>t.ptr
            here.size = <Py_ssize_t>t.nbytes
            pieces.append(here)
    return pieces


def room(size_t nbytes):
    """See the stub."""
    cdef BlockView view = BlockView.__new__(BlockView)
    cdef Block* block = block_new(max(nbytes, <size_t>PIN_FROM))
    if block == NULL:
        raise MemoryError
    view.block = block
    view.data = block.data
    view.size = <Py_ssize_t>nbytes
    return view


# What the function made for one output: (DataType number, shape, address, bytes, owner of the memory).
cdef int take(Array* array, object made) except -1:
    cdef Owned* note
    cdef Py_ssize_t i, n
    dtype, shape, address, nbytes, owner = made
    n = len(shape)
    if n > MAX_RANK:
        raise InvalidArg(f"an output has {n} dimensions, the limit is {MAX_RANK}")
    array.dtype = dtype
    array.ndim = <int32_t>n
    for i in range(n):
        array.dims[i] = shape[i]
    array.nbytes = nbytes
    array.data = <uint8_t*><uintptr_t>address
    if isinstance(owner, BlockView) and (<BlockView>owner).data == array.data and (<BlockView>owner).block != NULL:
        array.block = (<BlockView>owner).block
        block_ref(array.block)
    elif array.nbytes <= LARGE:
        array.block = block_new(array.nbytes)
        if array.block == NULL:
            raise MemoryError
        if array.nbytes:
            memcpy(array.block.data, array.data, array.nbytes)
        array.data = array.block.data
    else:
        note = <Owned*>malloc(sizeof(Owned))
        if note == NULL:
            raise MemoryError
        note.owner = <PyObject*>owner
        array.block = block_wrap(array.data, array.nbytes, drop_later, note)
        if array.block == NULL:
            free(note)
            raise MemoryError
        Py_INCREF(owner)
    array.present = True
    return 0


cdef class ArrayInstance(NativeInstance):
    """Adapter from a Python function over arrays to an instance.

    Parameters
    ----------
    function : callable
        ``function(inputs, wanted) -> outputs``, see the stub.
    n_inputs, n_outputs : int
        Of the model, with those that its scheduler adds.
    max_batch : int
        0: the model has no batch dimension, and each request is a call of its own.
    each : bool
        The function is told of requests, and may fail some of them: ``function(inputs, wanted, rows) -> (outputs,
        failed)``, see the stub.
    gpu : int
        The device in whose memory the function takes pieces of an input; -1: it takes host memory only.
    """

    cdef object function
    cdef list failed            # (index of a request, its error), of the batch in hand
    cdef bint each
    cdef bint any_failed
    cdef Arrays arrays
    cdef int64_t calls
    cdef int64_t lent

    def __init__(self, function, int32_t n_inputs, int32_t n_outputs, int64_t max_batch, str name="", *,
                 bint each=False, int gpu=-1):
        if self.arrays.inputs != NULL:
            raise InvalidArg("an instance can not be initialised twice")
        if arrays_init(&self.arrays, n_inputs, n_outputs, max_batch) != 0:
            raise MemoryError
        self.arrays.lasting = True
        self.arrays.takes_gpu = self.takes_gpu = gpu >= 0
        self.device = gpu if gpu >= 0 else 0
        self.function = function
        self.each = each
        self.name = name
        self.execute = execute_arrays
        self.copies_from = 2 if gpu < 0 else 0
        self.state = <void*>self

    def __dealloc__(self):
        arrays_free(&self.arrays)

    def counters(self):
        """Return calls, arrays lent by requests, bytes copied to make others, and outputs lent to responses."""
        return {"calls": self.calls, "borrowed": self.arrays.borrowed, "copied_bytes": self.arrays.copied_bytes,
                "lent": self.lent}

    cdef int call(self, Request** requests, int32_t n) except -1:
        cdef Arrays* a = &self.arrays
        cdef int32_t i
        drop()
        self.calls += 1
        self.any_failed = False
        given = [
            (a.inputs[i].dtype, tuple([a.inputs[i].dims[k] for k in range(a.inputs[i].ndim)]),
             pieces_of(requests, n, i) if a.inputs[i].apart else view_of(&a.inputs[i]))
            if a.inputs[i].present else None
            for i in range(a.n_inputs)
        ]
        wanted = tuple([bool(a.outputs[i].wanted) for i in range(a.n_outputs)])
        if self.each:
            rows = tuple([requests[i].batch if a.max_batch > 0 else 1 for i in range(n)])
            outputs, failed = self.function(given, wanted, rows)
            self.failed = list(failed)
            self.any_failed = len(self.failed) > 0
        else:
            outputs = self.function(given, wanted)
        if len(outputs) != a.n_outputs:
            raise Internal(f"expected {a.n_outputs} outputs, got {len(outputs)}")
        for i in range(a.n_outputs):
            if a.outputs[i].wanted and outputs[i] is not None:
                take(&a.outputs[i], outputs[i])
                self.lent += a.outputs[i].nbytes > LARGE
        return 0


cdef void fail_all(Request** requests, int32_t n, object error) noexcept:
    cdef int32_t code
    cdef int32_t i
    cdef bytes text = raised_text(error, &code)
    for i in range(n):
        response_fail(&requests[i].response, code, <const char*>text, len(text))


cdef void fail_some(ArrayInstance self, Request** requests, int32_t n) noexcept:
    cdef Py_ssize_t at
    try:
        for index, error in self.failed:
            at = index
            if not 0 <= at < n:
                raise Internal(f"there is no request {index} in a batch of {n}")
            fail_all(requests + at, 1, error)
    except BaseException as error:
        fail_all(requests, n, error)
    self.failed = None


cdef void run_rows(ArrayInstance self, Request** requests, int32_t n, int64_t rows, Batch* batch) noexcept nogil:
    cdef Arrays* a = &self.arrays
    cdef bint failed = arrays_gather(a, requests, n, rows) != 0
    cdef int32_t i
    batch.t_input = now_ns()
    if failed:
        for i in range(n):
            response_fail_error(&requests[i].response, &a.error)
    else:
        with gil:
            try:
                self.call(requests, n)
            except BaseException as error:
                failed = True
                fail_all(requests, n, error)
    batch.t_computed = now_ns()
    if not failed:
        arrays_scatter(a, requests, n)
        if self.any_failed:
            with gil:
                fail_some(self, requests, n)
    arrays_release(a)


cdef int execute_arrays(void* state, Batch* batch) noexcept nogil:
    cdef int32_t k
    if (<ArrayInstance>state).arrays.max_batch > 0 or batch.n == 1:
        run_rows(<ArrayInstance>state, batch.requests, batch.n, batch.rows, batch)
    else:
        for k in range(batch.n):
            run_rows(<ArrayInstance>state, &batch.requests[k], 1, 1, batch)
    return 0
