# Part of client.pyx: what a model's tensors, requests and responses hold, and cheap access to it. The classes that
# models see derive from these; checks, conversions and texts are theirs: whatever is not plain goes to their
# `_construct`.

# The datatype of an array's dtype object, 0 for none. Compared by identity: numpy has one object for each builtin.
cdef inline int datatype_of(PyObject* dtype) noexcept:
    cdef int i
    for i in range(DT_BOOL, DT_STRING + 1):
        if <PyObject*>dtypes_by_number[i] == dtype:
            return i
    return 0


cdef class TensorCore:
    """Name, datatype, shape and data of a tensor, from the region or from an array.

    A subclass has ``_construct(*arguments)``, called for arguments that are not a name and a C-contiguous ndarray of a
    datatype numpy has natively; it calls `_set` or raises. ``_no_numpy()`` raises for BF16, and
    ``_bad_strings(raw, count)`` decides about serialized strings that do not hold together.
    """
    cdef object tensor_name         # None: names[index] of the transport
    cdef object array               # ndarray, or None: not made yet, or there is none
    cdef object dims                # tuple, or None: the record's, or the view's
    cdef Py_buffer view             # of what the model gave, while has_view
    cdef bint has_view
    cdef Lease lease                # of what the server sent, with its record
    cdef const TensorRecord* record
    cdef int dtype

    def __init__(self, *arguments):
        cdef int dtype = 0
        if len(arguments) != 2:
            self._construct(*arguments)
            return
        name = arguments[0]
        array = arguments[1]
        if type(name) is str and name and type(array) is numpy_ndarray:
            kind = array.dtype
            dtype = datatype_of(<PyObject*>kind)
            if dtype and tensor_hold(self, array):
                self.tensor_name = name
                self.array = array
                self.dtype = dtype
                return
        self._construct(name, array)

    def __dealloc__(self):
        if self.has_view:
            PyBuffer_Release(&self.view)

    def _set(self, name, int dtype, data, shape=None):
        """Take what ``_construct`` made of the arguments.

        Parameters
        ----------
        dtype
            A number of ``inference.DataType``.
        data
            An ndarray, or with ``shape`` anything with a C-contiguous buffer of the tensor's bytes.

        Raises
        ------
        ValueError
            The data are not C-contiguous or not as many as the shape says, or there is no such datatype.
        """
        cdef uint64_t nbytes
        if not DT_BOOL <= dtype < DT_COUNT:
            raise ValueError(f"no datatype has the number {dtype}")
        if self.has_view:
            raise ValueError("the tensor has data already")
        if not tensor_hold(self, data):
            raise ValueError(f"the data of tensor '{name}' are not contiguous")
        self.dims = tuple(shape) if shape is not None else None
        self.tensor_name = name
        self.dtype = dtype
        self.array = data if isinstance(data, numpy_ndarray) and dtype != DT_BF16 else None
        if dtype != DT_STRING:
            nbytes = dtype_size(dtype)
            for size in data.shape if shape is None else self.dims:
                nbytes *= <uint64_t>size
            if nbytes != <uint64_t>self.view.len:
                size = self.view.len
                PyBuffer_Release(&self.view)
                self.has_view = False
                raise ValueError(f"tensor '{name}' has {size} bytes, its shape needs {nbytes}")

    def name(self):
        """Return the name."""
        if self.tensor_name is None:
            self.tensor_name = record_name(self)
        return self.tensor_name

    def triton_dtype(self):
        """Return the number of ``inference.DataType``."""
        return self.dtype

    def shape(self):
        """Return the dims as a list."""
        return list(tensor_shape(self))

    def is_cpu(self):
        """Return whether the data lie in main memory: always."""
        return True

    def as_numpy(self):
        """Return the data as an ndarray: a view, or for BYTES an object array of bytes; always the same one."""
        if self.array is None:
            if self.dtype == DT_BF16:
                return self._no_numpy()
            self.array = record_array(self)
        return self.array

    def _raw(self):
        """Return the data as an ndarray, BF16 as uint16 and BYTES serialized as uint8; a view except for those."""
        if self.record != NULL and (self.dtype != DT_STRING or self.array is None):
            if self.dtype == DT_STRING:
                return numpy_ndarray((self.record.nbytes,), dtypes_by_number[DT_UINT8], self.lease, place_of(self))
            return record_array(self)
        if self.dtype == DT_STRING:
            return numpy_frombuffer(encode_bytes(self.array), dtypes_by_number[DT_UINT8])
        if self.array is not None:
            return self.array
        return numpy_ndarray(tensor_shape(self), dtypes_by_number[self.dtype], <object>self.view.obj)


# Take a view of C-contiguous data. Whether there is one.
cdef bint tensor_hold(TensorCore t, data) except -1:
    try:
        PyObject_GetBuffer(data, &t.view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    except (BufferError, ValueError, TypeError):
        return False
    t.has_view = True
    return True


cdef object record_name(TensorCore t):
    if t.record == NULL:
        return ""
    # Only answers have names as text; those of executions are given when the tensor is made.
    return PyUnicode_DecodeUTF8(<const char*>(t.record + 1) + <size_t>t.record.ndim * 8, -1 - <Py_ssize_t>t.record.name,
                                b"replace")


cdef tuple tensor_shape(TensorCore t):
    cdef const int64_t* dims
    cdef Py_ssize_t i
    cdef object size            # an object: a C integer would be converted anew each time it is named
    cdef tuple made
    if t.dims is None:
        if t.record != NULL:
            dims = <const int64_t*>(t.record + 1)
            made = PyTuple_New(t.record.ndim)
            for i in range(t.record.ndim):
                size = dims[i]
                Py_INCREF(size)
                PyTuple_SET_ITEM(made, i, size)
            t.dims = made
        elif t.has_view:
            made = PyTuple_New(t.view.ndim)
            for i in range(t.view.ndim):
                size = t.view.shape[i]
                Py_INCREF(size)
                PyTuple_SET_ITEM(made, i, size)
            t.dims = made
        else:
            t.dims = ()
    return <tuple>t.dims


# Where in the lease the data of a tensor with a record begin.
cdef inline Py_ssize_t place_of(TensorCore t) noexcept:
    return t.lease.region.base + t.record.off - t.lease.node.data if t.record.nbytes else 0


cdef object record_array(TensorCore t):
    cdef Lease lease = t.lease
    if t.record == NULL:
        raise ValueError("the tensor has no data")
    shape = tensor_shape(t)
    if t.dtype == DT_STRING:
        # Checked against the shape when the record came: the product does not overflow.
        count = count_of(t.record)
        try:
            array = strings_array(lease.node.data + place_of(t), t.record.nbytes, count)
        except ValueError:
            return t._bad_strings(t._raw(), count).reshape(shape)
        return array if t.record.ndim == 1 else array.reshape(shape)
    return numpy_ndarray(shape, dtypes_by_number[t.dtype], lease, place_of(t))


cdef class RequestCore:
    """What an inference request says: a record of the server's, read when asked for, or what `_set` was given.

    Attributes
    ----------
    _slot, _generation
        The server's numbers of it; (0, 0) in a request that a model made.
    _flags
        The sequence flags.
    _release
        The release flags the model set; `encode_done` reads them.
    _wanted
        The names of the outputs that are wanted, in the client's order, as a tuple.
    """
    cdef Transport transport        # None: made by a model
    cdef Lease lease
    cdef const RequestRecord* record
    cdef const char* after          # the inputs' records: the wanted outputs
    cdef object request_name        # each of these None until asked for
    cdef object correlation
    cdef list tensors
    cdef tuple wanted
    cdef object params_json
    cdef object params              # dict, of requests that a model made
    cdef object trace_text
    cdef uint64_t timeout_us
    cdef readonly uint32_t _slot
    cdef readonly uint32_t _generation
    cdef public uint32_t _flags
    cdef public uint32_t _release

    def _set(self, request_id, correlation_id, inputs, wanted, uint32_t flags, uint64_t timeout, params, params_json,
             trace=""):
        """Take checked values of a request that a model made: ``params`` a dict of str, int and bool."""
        if not all(isinstance(t, TensorCore) for t in inputs):
            raise TypeError("inputs must be tensors")
        self.request_name = request_id
        self.correlation = correlation_id
        self.tensors = list(inputs)
        self.wanted = tuple(wanted)
        self._flags = flags
        self.timeout_us = timeout
        self.params = params
        self.params_json = params_json
        self.trace_text = trace

    def inputs(self):
        """Return a list of the input tensors."""
        return list(request_tensors(self))

    def request_id(self):
        """Return the client's id, "" for none."""
        if self.request_name is None:
            self.request_name = request_text(self, 0)
        return self.request_name

    def correlation_id(self):
        """Return the sequence's id: an int, or a str when the client sent one."""
        if self.correlation is None:
            if self.record != NULL and self.record.correlation_len:
                self.correlation = request_text(self, 1)
            else:
                self.correlation = self.record.correlation if self.record != NULL else 0
        return self.correlation

    def flags(self):
        """Return the sequence flags."""
        return self._flags

    def timeout(self):
        """Return the timeout in microseconds, 0 for none."""
        return self.timeout_us

    def parameters(self):
        """Return the parameters as JSON text."""
        if self.params_json is None:
            self.params_json = request_text(self, 2) or "{}"
        return self.params_json

    def _trace_text(self):
        """Return the carrier of the trace as JSON text, "" for none."""
        if self.trace_text is None:
            self.trace_text = request_text(self, 3)
        return self.trace_text

    def requested_output_names(self):
        """Return the set of the outputs that are wanted."""
        return set(self._wanted)

    @property
    def _wanted(self):
        cdef const int32_t* index
        cdef uint32_t i
        if self.wanted is None:
            names = []
            if self.record != NULL:
                index = <const int32_t*>self.after
                for i in range(self.record.n_wanted):
                    names.append(self.transport.outputs[index[i]])
            self.wanted = tuple(names)
        return self.wanted

    def is_cancelled(self):
        """Return whether the client has cancelled it."""
        return self.transport is not None and self.transport.region.word(CANCEL_AT, self._slot) == self._generation


# Text k of id, correlation id, parameters and trace.
cdef object request_text(RequestCore r, int k):
    cdef const RequestRecord* h = r.record
    cdef const char* p
    if h == NULL:
        return ""
    p = r.after + padded(<size_t>h.n_wanted * 4)
    if k == 0:
        return text_of(p, h.id_len)
    p += padded(h.id_len)
    if k == 1:
        return text_of(p, h.correlation_len)
    p += padded(h.correlation_len)
    if k == 2:
        return text_of(p, h.params_len)
    return text_of(p + padded(h.params_len), h.trace_len)


cdef inline object text_of(const char* p, size_t n):
    return PyUnicode_DecodeUTF8(p, <Py_ssize_t>n, b"replace") if n else ""


# An object of a class, without its __init__.
cdef inline object new_of(type cls):
    return (<PyTypeObject*>cls).tp_new(cls, <PyObject*>no_arguments, NULL)


cdef inline TensorCore tensor_new(Transport transport, Lease lease, const TensorRecord* record):
    cdef TensorCore t = <TensorCore>new_of(transport.tensor_type)
    t.lease = lease
    t.record = record
    t.dtype = record.dtype
    return t


cdef list request_tensors(RequestCore r):
    cdef const char* p
    cdef const TensorRecord* record
    cdef TensorCore t
    cdef uint32_t i
    cdef list made
    if r.tensors is None:
        made = []
        if r.record != NULL:
            p = <const char*>(r.record + 1)
            for i in range(r.record.n_inputs):
                record = <const TensorRecord*>p
                t = tensor_new(r.transport, r.lease, record)
                t.tensor_name = r.transport.inputs[record.name]
                made.append(t)
                p += sizeof(TensorRecord) + <size_t>record.ndim * 8
        r.tensors = made
    return r.tensors


cdef object find_tensor(list tensors, name):
    cdef TensorCore t
    for item in tensors:
        t = <TensorCore>item
        if t.tensor_name is name or t.name() == name:
            return t
    return None


cdef class ResponseCore:
    """Output tensors, error and parameters of a response.

    A subclass has ``_construct(output_tensors, error, parameters)``, called for arguments that are not just a list of
    tensors; it calls `_set` or raises.
    """
    cdef list tensors
    cdef object failure
    cdef object params              # dict or None
    cdef object params_json

    def __init__(self, output_tensors=(), error=None, parameters=None):
        if error is None and parameters is None and type(output_tensors) is list:
            for item in <list>output_tensors:
                if not isinstance(item, TensorCore):
                    break
            else:
                self.tensors = list(<list>output_tensors)
                return
        self._construct(output_tensors, error, parameters)

    def _set(self, tensors, error, params, params_json):
        """Take checked values: ``error`` None or with ``code()`` and ``message()``, ``params`` a dict or None."""
        if not all(isinstance(t, TensorCore) for t in tensors):
            raise TypeError("outputs must be tensors")
        self.tensors = list(tensors)
        self.failure = error
        self.params = params
        self.params_json = params_json

    def output_tensors(self):
        """Return a list of the output tensors."""
        return list(self.tensors) if self.tensors is not None else []

    def has_error(self):
        """Return whether there is an error."""
        return self.failure is not None

    def error(self):
        """Return the error, or None."""
        return self.failure

    def parameters(self):
        """Return the parameters as JSON text."""
        return self.params_json if self.params_json is not None else "{}"


def get_input_tensor_by_name(RequestCore inference_request not None, name):
    """Return the input tensor of that name, or None."""
    return find_tensor(request_tensors(inference_request), name)


def get_output_tensor_by_name(ResponseCore inference_response not None, name):
    """Return the output tensor of that name, or None."""
    return find_tensor(inference_response.tensors or [], name)
