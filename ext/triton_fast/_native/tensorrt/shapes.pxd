# What an instance of a TensorRT model has learnt about the shapes that it was asked for. A key is the numbers that
# decide about a run: the dims of all inputs, or the values of those that are shape tensors. Knows no requests.
from libc.stdint cimport int32_t, int64_t, uint64_t

cdef enum:
    TRT_RANK = 8            # dimensions that TensorRT has at most
    MAX_SEEN = 256          # keys that are remembered

# An optimization profile: the ranges of a key's numbers.
cdef struct Profile:
    int32_t index           # TensorRT's number of it
    int64_t* low
    int64_t* best
    int64_t* high
    int64_t* now            # what its context was told last
    uint64_t serial         # of the Seen that it is ready for; 0: none
    uint64_t* bound         # addresses that its context has, inputs first, then outputs

# A key, and what a run with it is like.
cdef struct Seen:
    uint64_t hash
    uint64_t serial         # never 0, never used again
    int64_t* key
    int32_t profile         # its place among the profiles
    bint known              # the shapes of outputs below are
    int64_t* dims           # TRT_RANK of each output
    int32_t* ndim
    size_t* nbytes
    bint wants_graph
    void* graph             # an executable CUDA graph; NULL: there is none
    int64_t runs

cdef struct Shapes:
    int32_t length          # of a key
    int32_t n_outputs
    int32_t n_profiles
    Profile* profiles
    int32_t n_seen
    int32_t victim
    uint64_t serial
    Seen* seen


# 0, or -1 when memory ran out.
cdef int shapes_init(Shapes* s, int32_t length, int32_t n_outputs) noexcept nogil
# The owner has let go of all graphs.
cdef void shapes_free(Shapes* s) noexcept nogil
# Add a profile; low, best and high have a key's length and are copied. addresses: how many its context has.
cdef int shapes_add(Shapes* s, int32_t index, const int64_t* low, const int64_t* best, const int64_t* high,
                    int32_t addresses) noexcept nogil
# The entry of a key, or NULL.
cdef Seen* shapes_find(Shapes* s, const int64_t* key) noexcept nogil
# The profile that takes the key and whose best shape is nearest; -1: none does.
cdef int32_t shapes_choose(const Shapes* s, const int64_t* key) noexcept nogil
# Make an entry for a key; when all places are taken the oldest goes, and its graph is left in dropped[0] for the caller
# to destroy (else NULL).
cdef Seen* shapes_put(Shapes* s, const int64_t* key, int32_t profile, void** dropped) noexcept nogil
