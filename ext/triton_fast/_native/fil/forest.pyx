# Reading a model file. Treelite trusts what it reads: a checkpoint's nodes may point anywhere, so every tree is walked
# once here. It may also crash or never end while it reads one, which is why backends/fil/probe.py reads it first.
from libc.stddef cimport size_t
from libc.stdint cimport int8_t, int32_t, int64_t, uint8_t, uint64_t
from libc.stdlib cimport free, malloc
from libc.string cimport memset

from triton_fast._native.fil.treelite cimport Frame, Treelite, refuse, treelite

from triton_fast.errors import InvalidArg, Unavailable

cdef enum:
    MAX_WIDTH = 1 << 20     # numbers of a row
    MAX_FEATURES = 1 << 28

TYPES = ("xgboost", "xgboost_json", "xgboost_ubj", "lightgbm", "treelite_checkpoint")


# A field of the header (tree < 0) or of a tree, whose items must have `size` bytes; count: how many, -1 any.
cdef void* field(void* model, int64_t tree, const char* name, size_t size, int64_t count, size_t* n) except? NULL:
    cdef Frame frame
    cdef int status
    memset(&frame, 0, sizeof(frame))
    if tree < 0:
        status = treelite().header(model, name, &frame)
    else:
        status = treelite().tree(model, <uint64_t>tree, name, &frame)
    if status != 0:
        refuse()
    if (frame.nitem and (frame.itemsize != size or frame.buf == NULL)) or \
            (count >= 0 and frame.nitem != <size_t>count):
        where = "the header" if tree < 0 else f"tree {tree}"
        raise InvalidArg(f"the model is corrupt: field '{name.decode()}' of {where} has {frame.nitem} items of "
                         f"{frame.itemsize} bytes")
    if n != NULL:
        n[0] = frame.nitem
    return frame.buf


cdef int corrupt(int64_t tree, int64_t node, str what) except -1:
    raise InvalidArg(f"the model is corrupt: node {node} of tree {tree} {what}")


# What GTIL reads of a tree, by the names it has there.
cdef struct Tree:
    int64_t n
    int32_t* left
    int32_t* right
    int32_t* feature
    int8_t* kind
    uint64_t* leaf_begin
    uint64_t* leaf_end
    size_t leaves
    uint64_t* category_begin
    uint64_t* category_end
    size_t categories


cdef int read_tree(void* model, int64_t at, Tree* t, size_t size) except -1:
    cdef int64_t n
    t.n = n = (<int32_t*>field(model, at, b"num_nodes", 4, 1, NULL))[0]
    if n < 1:
        raise InvalidArg(f"the model is corrupt: tree {at} has {n} nodes")
    t.left = <int32_t*>field(model, at, b"cleft", 4, n, NULL)
    t.right = <int32_t*>field(model, at, b"cright", 4, n, NULL)
    t.feature = <int32_t*>field(model, at, b"split_index", 4, n, NULL)
    t.kind = <int8_t*>field(model, at, b"node_type", 1, n, NULL)
    field(model, at, b"default_left", 1, n, NULL)
    field(model, at, b"leaf_value", size, n, NULL)
    field(model, at, b"threshold", size, n, NULL)
    field(model, at, b"cmp", 1, n, NULL)
    field(model, at, b"category_list_right_child", 1, n, NULL)
    field(model, at, b"leaf_vector", size, -1, &t.leaves)
    t.leaf_begin = <uint64_t*>field(model, at, b"leaf_vector_begin", 8, n, NULL)
    t.leaf_end = <uint64_t*>field(model, at, b"leaf_vector_end", 8, n, NULL)
    field(model, at, b"category_list", 4, -1, &t.categories)
    t.category_begin = <uint64_t*>field(model, at, b"category_list_begin", 8, n, NULL)
    t.category_end = <uint64_t*>field(model, at, b"category_list_end", 8, n, NULL)
    return 0


# Every node that can be reached is reached once, and reads only what is there. `scalar`: a leaf of one number is of
# use, because the tree says where it is added; `vector`: numbers in a leaf that is a vector.
cdef int walk(Tree* t, int64_t at, int32_t features, bint scalar, uint64_t vector, uint8_t* seen,
              int32_t* stack) except -1:
    cdef int64_t depth = 1
    cdef int32_t k, node, child
    memset(seen, 0, <size_t>t.n)
    stack[0] = 0
    seen[0] = 1
    while depth:
        depth -= 1
        node = stack[depth]
        if t.left[node] == -1:
            if t.leaf_begin[node] > t.leaf_end[node] or t.leaf_end[node] > t.leaves:
                corrupt(at, node, "has its values outside of the tree")
            if t.leaf_end[node] == t.leaf_begin[node]:
                if not scalar:
                    corrupt(at, node, "has no values")
            elif t.leaf_end[node] - t.leaf_begin[node] != vector:
                corrupt(at, node, f"has {t.leaf_end[node] - t.leaf_begin[node]} values, expected {vector}")
            continue
        if t.feature[node] < 0 or t.feature[node] >= features:
            corrupt(at, node, f"asks for feature {t.feature[node]} of {features}")
        if t.category_begin[node] > t.category_end[node] or t.category_end[node] > t.categories:
            corrupt(at, node, "has its categories outside of the tree")
        for k in range(2):
            child = t.right[node] if k else t.left[node]
            if child < 0 or child >= t.n:
                corrupt(at, node, f"has child {child} of {t.n}")
            if seen[child]:
                corrupt(at, child, "has two parents")
            seen[child] = 1
            stack[depth] = child    # < n entries: each node is put here once
            depth += 1
    return 0


cdef class Forest:
    """A model file, read and checked; see the stub."""

    def __init__(self, str path not None, str kind not None, bint unknown_fields=False):
        cdef const Treelite* api = treelite()
        cdef const char* p
        cdef const char* c
        cdef int status
        cdef size_t n
        cdef Py_ssize_t number
        if self.model != NULL:
            raise InvalidArg("a forest can not be read twice")
        if api == NULL:
            raise Unavailable("the treelite library is not open")
        if kind not in TYPES:
            raise InvalidArg(f"unknown model_type '{kind}'")
        number = TYPES.index(kind)
        # Not by its name: treelite would look where that leads, and open what is there by then.
        try:
            with open(path, "rb") as file:
                data = file.read()
        except OSError as error:
            raise InvalidArg(f"can not read the file: {error.strerror}") from None
        options = b'{"allow_unknown_field": true}' if unknown_fields and number in (1, 2) else b"{}"
        p = data
        n = <size_t>len(data)
        c = options
        with nogil:
            if number == 0:
                status = api.load_binary(p, n, c, &self.model)
            elif number == 1:
                status = api.load_json(p, n, c, &self.model)
            elif number == 2:
                status = api.load_ubjson(p, n, c, &self.model)
            elif number == 3:
                status = api.load_lightgbm(p, c, &self.model)     # it ends with the 0 that Python puts behind it
            else:
                status = api.load_checkpoint(p, n, &self.model)
        if status != 0:
            self.model = NULL
            refuse()
        if self.model == NULL:
            raise InvalidArg("treelite gave no model")
        self.check()

    def __dealloc__(self):
        cdef void* model = self.model
        if model != NULL:
            with nogil:
                treelite().free_model(model)

    cdef int check(self) except -1:
        cdef const Treelite* api = treelite()
        cdef size_t n = 0, trees = 0, largest = 0, size
        cdef int32_t* classes
        cdef int32_t* shape
        cdef int32_t* target
        cdef int32_t* class_
        cdef int32_t targets, most
        cdef int64_t i, k
        cdef int count = 0
        cdef const char* type_name = NULL
        cdef char* text
        cdef Tree tree
        cdef uint8_t* seen
        cdef int32_t* stack
        if api.count_features(self.model, &count) != 0 or api.count_trees(self.model, &trees) != 0 or \
                api.input_type(self.model, &type_name) != 0:
            refuse()
        if count < 1 or count > MAX_FEATURES:
            raise InvalidArg(f"the model is corrupt: it has {count} features")
        if trees > <size_t>1 << 31:
            raise InvalidArg(f"the model is corrupt: it has {trees} trees")
        self.features = count
        self.trees = <int64_t>trees
        self.threshold_type = type_name.decode()
        size = 8 if self.threshold_type == "float64" else 4
        self.task = (<uint8_t*>field(self.model, -1, b"task_type", 1, 1, NULL))[0]
        targets = (<int32_t*>field(self.model, -1, b"num_target", 4, 1, NULL))[0]
        if targets < 1 or targets > MAX_WIDTH:
            raise InvalidArg(f"the model is corrupt: it has {targets} targets")
        classes = <int32_t*>field(self.model, -1, b"num_class", 4, targets, NULL)
        most = 1
        for i in range(targets):
            if classes[i] < 1 or classes[i] > MAX_WIDTH // targets:
                raise InvalidArg(f"the model is corrupt: target {i} has {classes[i]} classes")
            most = max(most, classes[i])
        self.width = targets * most
        field(self.model, -1, b"base_scores", 8, self.width, NULL)
        shape = <int32_t*>field(self.model, -1, b"leaf_vector_shape", 4, 2, NULL)
        self.vector_leaves = shape[1] > 1
        if shape[0] not in (1, targets) or shape[1] not in (1, most):
            raise InvalidArg(f"the model is corrupt: its leaves are [{shape[0]},{shape[1]}]")
        target = <int32_t*>field(self.model, -1, b"target_id", 4, self.trees, NULL)
        class_ = <int32_t*>field(self.model, -1, b"class_id", 4, self.trees, NULL)
        text = <char*>field(self.model, -1, b"postprocessor", 1, -1, &n)
        self.postprocessor = text[:n].decode("utf-8", "replace")
        for i in range(self.trees):
            if not -1 <= target[i] < targets or \
                    not -1 <= class_[i] < (most if target[i] < 0 else classes[target[i]]):
                raise InvalidArg(f"the model is corrupt: tree {i} is of target {target[i]}, class {class_[i]}")
            # What belongs to all targets or classes must bring a number for each.
            if (target[i] < 0 and shape[0] != targets) or (class_[i] < 0 and shape[1] != most):
                raise InvalidArg(f"the model is corrupt: the leaves of tree {i} have too few values")
            read_tree(self.model, i, &tree, size)
            largest = max(largest, <size_t>tree.n)
        seen = <uint8_t*>malloc(largest + 1)
        stack = <int32_t*>malloc((largest + 1) * sizeof(int32_t))
        try:
            if seen == NULL or stack == NULL:
                raise MemoryError
            for i in range(self.trees):
                read_tree(self.model, i, &tree, size)
                # A tree of one target and class has leaves of one number or vectors of one.
                k = (shape[0] if target[i] < 0 else 1) * (shape[1] if class_[i] < 0 else 1)
                walk(&tree, i, self.features, target[i] >= 0 and class_[i] >= 0, <uint64_t>k, seen, stack)
        finally:
            free(seen)
            free(stack)
        return 0

    def set_postprocessor(self, str name not None):
        cdef Frame frame
        encoded = name.encode()
        frame.buf = <char*>encoded
        frame.format = b"=c"
        frame.itemsize = 1
        frame.nitem = <size_t>len(encoded)
        if treelite().set_header(self.model, b"postprocessor", frame) != 0:
            refuse()
        self.postprocessor = name

    def serialize(self):
        cdef const char* data = NULL
        cdef size_t n = 0
        cdef int status
        with nogil:
            status = treelite().serialize(self.model, &data, &n)
        if status != 0:
            refuse()
        return data[:n]     # the memory is the thread's, until its next call
