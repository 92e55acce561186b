# Part of client.pyx: arrays of strings from and to Triton's serialized form, u32 length and content for each element.
# The elements' pointers are read and written through the array's own buffer.

cdef extern from *:
    """
    /* A bytes object at the first of `count` elements, and so on. -1: exception set; -2: the lengths lie. */
    static int tf_decode_bytes(const unsigned char *p, size_t left, PyObject **to, Py_ssize_t count) {
        uint32_t n;
        for (; count > 0; count--, to++) {
            PyObject *old = *to, *made;
            if (left < 4) return -2;
            memcpy(&n, p, 4);
            p += 4;
            left -= 4;
            if (n > left) return -2;
            made = PyBytes_FromStringAndSize((const char *)p, n);
            if (!made) return -1;
            *to = made;
            Py_XDECREF(old);
            p += n;
            left -= n;
        }
        return left ? -2 : 0;
    }
    /* How many elements p[0:left] holds; -1 when its lengths lie. */
    static Py_ssize_t tf_count_bytes(const unsigned char *p, size_t left) {
        Py_ssize_t count = 0;
        uint32_t n;
        for (; left; count++) {
            if (left < 4) return -1;
            memcpy(&n, p, 4);
            left -= 4;
            if (n > left) return -1;
            p += 4 + n;
            left -= n;
        }
        return count;
    }
    /* Content of an element that is bytes or str. NULL without exception: it is neither. */
    static inline const char *tf_content(PyObject *o, Py_ssize_t *n) {
        if (PyBytes_CheckExact(o)) {
            *n = PyBytes_GET_SIZE(o);
            return PyBytes_AS_STRING(o);
        }
        if (PyUnicode_CheckExact(o)) return PyUnicode_AsUTF8AndSize(o, n);
        return NULL;
    }
    """
    int tf_decode_bytes(const unsigned char* p, size_t left, PyObject** to, Py_ssize_t count) except -1
    Py_ssize_t tf_count_bytes(const unsigned char* p, size_t left)
    const char* tf_content(PyObject* o, Py_ssize_t* n) except? NULL


# A string array that is being serialized: size first, then write. `others` are the elements that are neither str nor
# bytes, as bytes, in their order.
cdef struct Strings:
    Py_buffer view
    bint is_open
    bint fixed              # elements of fixed size, padded with zeros (dtype S)
    Py_ssize_t count
    size_t nbytes


cdef inline size_t unpadded(const char* p, size_t n) noexcept nogil:
    while n > 0 and p[n - 1] == 0:
        n -= 1
    return n


cdef inline void strings_close(Strings* s):
    if s.is_open:
        PyBuffer_Release(&s.view)
        s.is_open = False


# What an element of no plain type becomes, as serialize_byte_tensor has it.
cdef bytes bytes_of(PyObject* o):
    if o == NULL:
        return b"None"
    return str(<object>o).encode("utf-8")


# Take the array's buffer and find its serialized size.
cdef int strings_open(Strings* s, array, list others) except -1:
    cdef PyObject** at
    cdef const char* text
    cdef Py_ssize_t i, n = 0
    cdef uint64_t total = 0
    cdef bytes made
    s.is_open = False
    kind = array.dtype.kind
    if kind != "O" and kind != "S":
        array = array.astype(object)
    try:
        PyObject_GetBuffer(array, &s.view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    except (BufferError, ValueError):
        array = numpy_array(array, copy=True, order="C")
        PyObject_GetBuffer(array, &s.view, PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    s.is_open = True
    s.fixed = kind == "S"
    try:
        if s.fixed:
            s.count = s.view.len // s.view.itemsize if s.view.itemsize else <Py_ssize_t>array.size
            for i in range(s.count):
                total += unpadded(<const char*>s.view.buf + i * s.view.itemsize, s.view.itemsize)
        else:
            if s.view.itemsize != sizeof(PyObject*) or s.view.format == NULL or s.view.format[0] != c"O":
                raise ValueError("not an array of objects")
            s.count = s.view.len // <Py_ssize_t>sizeof(PyObject*)
            at = <PyObject**>s.view.buf
            for i in range(s.count):
                text = tf_content(at[i], &n) if at[i] != NULL else NULL
                if text == NULL:
                    made = bytes_of(at[i])
                    others.append(made)
                    n = len(made)
                if n > <Py_ssize_t>0xFFFFFFFF:
                    raise ValueError(f"an element of {n} bytes is too long")
                total += <uint64_t>n
        s.nbytes = total + 4 * <uint64_t>s.count
    except BaseException:
        strings_close(s)
        raise
    return 0


# Write what strings_open measured; a str() of some element may have changed the array in between.
cdef int strings_write(Strings* s, list others, uint8_t* to) except -1:
    cdef PyObject** at
    cdef const char* text
    cdef Py_ssize_t i, n = 0, other = 0
    cdef uint32_t length
    cdef size_t left = s.nbytes
    for i in range(s.count):
        if s.fixed:
            text = <const char*>s.view.buf + i * s.view.itemsize
            n = <Py_ssize_t>unpadded(text, s.view.itemsize)
        else:
            at = <PyObject**>s.view.buf
            text = tf_content(at[i], &n) if at[i] != NULL else NULL
            if text == NULL:
                if other >= len(others):
                    raise ValueError("the array was changed while it was read")
                text = PyBytes_AS_STRING(<bytes>others[other])
                n = len(<bytes>others[other])
                other += 1
        if left < 4 or <size_t>n > left - 4:
            raise ValueError("the array was changed while it was read")
        length = <uint32_t>n
        memcpy(to, &length, 4)
        memcpy(to + 4, text, n)
        to += 4 + n
        left -= 4 + <size_t>n
    if left:
        raise ValueError("the array was changed while it was read")
    return 0


cdef object strings_array(const uint8_t* p, size_t nbytes, Py_ssize_t count):
    cdef Py_buffer view
    if count < 0:
        count = tf_count_bytes(p, nbytes)
    # Each element has four bytes or more: a count that lies makes no large array.
    if count < 0 or <size_t>count > nbytes // 4:
        raise ValueError("serialized strings do not end where their lengths say")
    array = numpy_empty(count, object_type)
    if count == 0 and nbytes == 0:
        return array
    PyObject_GetBuffer(array, &view, PyBUF_WRITABLE | PyBUF_FORMAT | PyBUF_C_CONTIGUOUS)
    try:
        if tf_decode_bytes(p, nbytes, <PyObject**>view.buf, count) != 0:
            raise ValueError("serialized strings do not end where their lengths say")
    finally:
        PyBuffer_Release(&view)
    return array


def decode_bytes(buffer, Py_ssize_t count=-1):
    """Return the strings of a buffer in Triton's serialized form as a 1-D object array of bytes.

    Raises
    ------
    ValueError
        The lengths do not fit: the buffer ends within an element, or has more or fewer than ``count`` (-1: any number).
    """
    cdef Py_buffer view
    PyObject_GetBuffer(buffer, &view, PyBUF_SIMPLE)
    try:
        return strings_array(<const uint8_t*>view.buf, <size_t>view.len, count)
    finally:
        PyBuffer_Release(&view)


def encode_bytes(array):
    """Return the elements of an array in serialized form, in C order: bytes as is, others as UTF-8 of ``str()``."""
    cdef Strings s
    cdef list others = []
    strings_open(&s, array, others)
    try:
        made = PyBytes_FromStringAndSize(NULL, <Py_ssize_t>s.nbytes)
        strings_write(&s, others, <uint8_t*>PyBytes_AS_STRING(made))
    finally:
        strings_close(&s)
    return made
