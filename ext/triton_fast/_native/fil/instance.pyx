# One instance of a forest: rows go to GTIL where they lie, and it writes into the memory that the responses are slices
# of. Only class numbers and pairs of probabilities need room in between, which the instance keeps.
from libc.stdint cimport int32_t, int64_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from triton_fast._native.arrays.arrays cimport (
    Array, Arrays, arrays_free, arrays_gather, arrays_init, arrays_release, arrays_scatter, elements,
)
from triton_fast._native.core.memory cimport block_new
from triton_fast._native.core.model cimport MAX_RANK
from triton_fast._native.core.native cimport (
    DT_FP32, TF_INTERNAL, TF_INVALID_ARG, TF_UNAVAILABLE, now_ns, tf_fail,
)
from triton_fast._native.core.request cimport Request, response_fail_error
from triton_fast._native.fil.forest cimport Forest
from triton_fast._native.fil.treelite cimport refuse, treelite
from triton_fast._native.sched.instance cimport Batch, NativeInstance

from triton_fast.errors import InvalidArg, Unavailable

cdef enum:
    SCORES = 0      # what GTIL makes
    CLASS = 1       # the number of the class
    PAIR = 2        # of one probability two


# What the run needs; the Forest that `model` belongs to is kept by the instance.
cdef struct Run:
    void* model
    void* config
    int32_t features
    int32_t width
    int32_t out_width
    int32_t shape
    float threshold
    int32_t ndim                # of the output, without the batch dimension
    int64_t[16] dims
    float* scores               # room for CLASS and PAIR
    size_t room                 # floats
    Arrays arrays
    int64_t calls


cdef inline int64_t best(const float* scores, int32_t n) noexcept nogil:
    cdef int32_t i, found = 0
    for i in range(1, n):
        if scores[i] > scores[found]:
            found = i
    return found


# From GTIL's numbers to the output's.
cdef void finish(const Run* s, const float* scores, float* out, int64_t rows) noexcept nogil:
    cdef int64_t i
    for i in range(rows):
        if s.shape == PAIR:
            out[2 * i] = <float>(1.0 - scores[i])
            out[2 * i + 1] = scores[i]
        elif s.width == 1:
            out[i] = 1.0 if scores[i] > s.threshold else 0.0
        else:
            out[i] = <float>best(scores + i * s.width, s.width)


# The output's memory and shape for this many rows. 0, or -1 with arrays.error filled.
cdef int make_output(Run* s, Array* out, int64_t rows) noexcept nogil:
    cdef Arrays* a = &s.arrays
    cdef int32_t i, lead = 1 if a.max_batch > 0 else 0
    out.ndim = s.ndim + lead
    if lead:
        out.dims[0] = rows
    for i in range(s.ndim):
        out.dims[lead + i] = s.dims[i] if s.dims[i] >= 0 else rows
    if elements(out.dims, out.ndim) != rows * s.out_width:
        return tf_fail(&a.error, TF_INVALID_ARG, b"%lld rows of %d values do not fit the shape of the output in the "
                       b"model configuration", <long long>rows, <int>s.out_width)
    out.dtype = DT_FP32
    out.nbytes = <size_t>rows * <size_t>s.out_width * sizeof(float)
    out.block = block_new(out.nbytes)
    if out.block == NULL:
        return tf_fail(&a.error, TF_UNAVAILABLE, b"out of memory for %zu bytes of output", out.nbytes)
    out.data = out.block.data
    return 0


cdef int run(Run* s) noexcept nogil:
    cdef Arrays* a = &s.arrays
    cdef Array* given = &a.inputs[0]
    cdef Array* out = &a.outputs[0]
    cdef float* scores
    cdef float* grown
    cdef int64_t rows
    cdef size_t need
    if not out.wanted:
        return 0
    if not given.present:
        return tf_fail(&a.error, TF_INVALID_ARG, b"the model needs its input")
    rows = <int64_t>(given.nbytes // (<size_t>s.features * sizeof(float)))
    if given.nbytes != <size_t>rows * <size_t>s.features * sizeof(float) or (a.max_batch > 0 and rows != a.rows):
        return tf_fail(&a.error, TF_INVALID_ARG, b"the input has %zu bytes, expected rows of %d features",
                       given.nbytes, <int>s.features)
    if rows > (<int64_t>1 << 40) // (s.width + s.out_width):
        return tf_fail(&a.error, TF_INVALID_ARG, b"too many rows")
    if make_output(s, out, rows) != 0:
        return -1
    scores = <float*>out.data
    if s.shape != SCORES:
        need = <size_t>rows * <size_t>s.width
        if need > s.room:
            grown = <float*>realloc(s.scores, need * sizeof(float))
            if grown == NULL:
                return tf_fail(&a.error, TF_UNAVAILABLE, b"out of memory for %zu scores", need)
            s.scores = grown
            s.room = need
        scores = s.scores
    if rows:
        # GTIL adds to what it finds.
        memset(scores, 0, <size_t>rows * <size_t>s.width * sizeof(float))
        s.calls += 1
        if treelite().predict(s.model, given.data, b"float32", <uint64_t>rows, scores, s.config) != 0:
            return tf_fail(&a.error, TF_INTERNAL, b"%s", treelite().last_error())
        if s.shape != SCORES:
            finish(s, scores, <float*>out.data, rows)
    out.present = True
    return 0


cdef void run_rows(Run* s, Request** requests, int32_t n, int64_t rows, Batch* batch) noexcept nogil:
    cdef Arrays* a = &s.arrays
    cdef int status = arrays_gather(a, requests, n, rows)
    cdef int32_t i
    batch.t_input = now_ns()
    if status == 0:
        status = run(s)
    batch.t_computed = now_ns()
    if status == 0:
        arrays_scatter(a, requests, n)
    else:
        for i in range(n):
            response_fail_error(&requests[i].response, &a.error)
    arrays_release(a)


cdef int execute_forest(void* state, Batch* batch) noexcept nogil:
    cdef Run* s = <Run*>state
    cdef int32_t k
    if s.arrays.max_batch > 0 or batch.n == 1:
        run_rows(s, batch.requests, batch.n, batch.rows, batch)
    else:
        for k in range(batch.n):
            run_rows(s, &batch.requests[k], 1, 1, batch)
    return 0


cdef class ForestInstance(NativeInstance):
    """Executes batches with GTIL, without the GIL; see the stub."""

    cdef Run state_
    cdef Forest forest

    def __init__(self, Forest forest not None, int64_t max_batch, dims, *, bint classes=False, bint pair=False,
                 float threshold=0.5, int threads=1, str name=""):
        cdef Run* s = &self.state_
        cdef int32_t i
        if self.forest is not None:
            raise InvalidArg("an instance can not be initialised twice")
        if treelite() == NULL or forest.model == NULL:
            raise Unavailable("the forest is not read")
        if (classes and pair) or (pair and forest.width != 1):
            raise InvalidArg("only a forest of one score per row gives pairs")
        if len(dims) > min(16, MAX_RANK - 1) or any(isinstance(d, bool) or d < -1 for d in dims):
            raise InvalidArg("the output's shape can not be used")
        s.ndim = <int32_t>len(dims)
        for i in range(s.ndim):
            s.dims[i] = dims[i]
        s.shape = CLASS if classes else PAIR if pair else SCORES
        s.features = forest.features
        s.width = forest.width
        s.out_width = 1 if classes else 2 if pair else forest.width
        s.threshold = threshold
        s.model = forest.model
        config = b'{"predict_type": "default", "nthread": %d}' % max(1, threads)
        if treelite().parse_config(<const char*>config, &s.config) != 0:
            refuse()
        if arrays_init(&s.arrays, 1, 1, max_batch) != 0:
            raise MemoryError
        s.arrays.lasting = False
        self.forest = forest
        self.name = name
        self.execute = execute_forest
        self.copies_from = 2
        self.state = <void*>s

    def __dealloc__(self):
        arrays_free(&self.state_.arrays)
        free(self.state_.scores)
        if self.state_.config != NULL:
            treelite().free_config(self.state_.config)

    def counters(self):
        return {"calls": self.state_.calls, "borrowed": self.state_.arrays.borrowed,
                "copied_bytes": self.state_.arrays.copied_bytes}


def predict(Forest forest not None, rows not None, int threads=1):
    """Scores of rows, a buffer of float32, as bytes."""
    cdef const unsigned char[::1] view = memoryview(rows).cast("B")
    cdef int64_t n = len(view) // (forest.features * 4)
    cdef void* config = NULL
    cdef int status
    cdef char* out
    cdef const void* data
    if n < 1 or len(view) != n * forest.features * 4:
        raise InvalidArg(f"expected rows of {forest.features} features")
    made = bytearray(n * forest.width * 4)
    out = made
    data = &view[0]
    text = b'{"predict_type": "default", "nthread": %d}' % max(1, threads)
    if treelite().parse_config(<const char*>text, &config) != 0:
        refuse()
    with nogil:
        status = treelite().predict(forest.model, data, b"float32", <uint64_t>n, out, config)
    treelite().free_config(config)
    if status != 0:
        refuse()
    return bytes(made)


def reduce(scores not None, out not None, int width, *, bint pair=False, float threshold=0.5):
    """From scores that another library made; see the stub."""
    cdef const float[::1] given = memoryview(scores).cast("B").cast("f")
    cdef float[::1] made = memoryview(out).cast("B").cast("f")
    cdef Py_ssize_t rows = len(given) // width if width > 0 else 0
    cdef Run s
    if rows < 1 or len(given) != rows * width or (pair and width != 1) or len(made) != rows * (2 if pair else 1):
        raise InvalidArg("the scores do not fit the output")
    memset(&s, 0, sizeof(s))
    s.width = width
    s.shape = PAIR if pair else CLASS
    s.threshold = threshold
    with nogil:
        finish(&s, &given[0], &made[0], rows)
