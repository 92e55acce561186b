# What the parts of the sequence batcher share: sequences, the seats they sit at (one for each instance), and what
# requests carry. Declarations only. All of it is under Sequences.lock, but for what says otherwise.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint32_t, uint64_t

from triton_fast._native.core.memory cimport Block
from triton_fast._native.core.pthread cimport pthread_cond_t, pthread_mutex_t, pthread_t
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Request, Sink
from triton_fast._native.core.tensor cimport Tensor
from triton_fast._native.sched.policy cimport Policy
from triton_fast._native.sched.scheduler cimport Scheduler
from triton_fast._native.sched.tap cimport Tap

cdef enum:
    MAX_ID = 128            # bytes of a string id

cdef enum:
    CONTROL_START = 0       # numbers of ModelSequenceBatching.Control.Kind
    CONTROL_READY = 1
    CONTROL_END = 2
    CONTROL_CORRID = 3

cdef struct Control:
    int32_t input           # in Model.inputs
    int32_t kind
    int32_t dtype
    int32_t size
    uint8_t[8] on           # the bytes for true and false; CORRID has none
    uint8_t[8] off

cdef struct StateSpec:
    int32_t input
    int32_t output          # in Model.outputs
    int32_t dtype
    int32_t ndim            # with the batch dimension
    int64_t* dims           # -1 = variable
    int64_t* first_dims     # what a sequence starts with
    Block* first            # one ref
    size_t first_bytes

# What one state of a sequence holds, or what a response brought for it.
cdef struct State:
    Block* block            # one ref; NULL: nothing
    uint8_t* ptr
    size_t nbytes
    int64_t* dims           # StateSpec.ndim

cdef struct List:
    Sequence* head
    Sequence* tail

cdef struct Sequence:
    Sequence* chain         # same hash slot, or the list of spare ones
    Sequence* born          # all there are
    List* where             # the list it is in; NULL: in none
    Sequence* next
    Sequence* prev
    uint64_t hash
    uint64_t number         # its id
    uint32_t text_len       # else this text, if it has one
    char[MAX_ID] text
    bint named              # requests with this id come here
    bint closed             # nothing more will come: it goes with the last that it has
    bint busy               # a request of it is executed
    bint picked             # for the batch that is being chosen
    int32_t seat            # -1: waits in the backlog
    int32_t slot
    Request* head           # what is queued, linked by q_next
    Request* tail
    int32_t count
    int64_t since           # when it became idle, or ready
    int64_t deadline        # in the backlog: the earliest of its requests; 0 = none
    int32_t heap_at         # in the heap of deadlines; -1: not there
    State* states           # behind this struct; untouched by others while it is busy

# What a request carries, in its own memory.
cdef struct Entry:
    Tap tap                 # first
    Sequences* owner
    Sequence* sequence
    Tensor* inputs          # the request's and those added: r.inputs once it is taken over
    Tensor** by_index
    int32_t n_inputs
    int64_t* dims           # of controls
    int64_t* state_dims     # of states as inputs
    uint8_t* values         # of controls, 8 bytes each; a text id last
    State* brought          # what its responses said of the states; n_states

# One instance and the sequences that stay with it.
cdef struct Seat:
    pthread_cond_t wake
    List ready              # have a request that may go, oldest first
    List out                # executed now
    int32_t n_ready         # atomic for readers without the lock
    int32_t n_queued        # requests
    int32_t n_used          # slots
    Sequence** slots        # direct only
    bint asleep
    int32_t poked           # atomic; to be woken by the caller of submit
    int32_t spinning
    int32_t spin_luck
    bint ended              # its thread will not look again
    Block* zeros            # data of padding; one ref; instance thread only

cdef struct Sequences:
    Scheduler base          # first
    pthread_mutex_t lock
    int32_t refs            # atomic: the owner, and each request that goes through a tap
    Model* model            # one ref
    bint direct
    bint tapped             # responses are looked at: states, iterative models
    bint closed             # aborted
    bint ending             # the reaper is to end
    int32_t n_seats
    int32_t n_slots         # of each seat
    Seat* seats
    int64_t idle_ns
    int32_t enough          # direct: ready slots that make a batch go before its delay is over
    Policy policy
    int32_t count           # atomic for readers without the lock
    uint64_t next_id        # of iterative sequences without one
    int32_t n_controls
    int32_t n_states
    int32_t state_ranks     # dims of all states together
    bint states_vary        # some dims are variable: a batch must agree on them
    Control* controls
    StateSpec* states
    Sequence** table
    uint64_t table_size     # power of two
    uint64_t n_named
    uint64_t[2] keys        # of the hash
    Sequence* spare
    Sequence* born
    int32_t n_born
    List backlog            # in order of arrival
    int32_t n_waiting       # in the backlog
    int32_t max_waiting
    int32_t max_requests    # of one sequence that wait
    int64_t bytes           # of the inputs of what waits, counted where there is a limit
    int64_t max_bytes       # 0 = no limit
    int32_t full_code       # TF_* of a request for which there is no place
    List idle               # seated, nothing queued: in order of their last activity
    Sequence** heap         # of the backlog: earliest deadline first; room for all that are born
    int32_t n_heap
    int32_t heap_room
    pthread_cond_t watch    # the reaper sleeps on it until reap_at
    int64_t reap_at         # 0 = no end
    pthread_t reaper
    bint reaping            # there is a thread
    bint faked              # tests say what time it is
    int64_t fake_now
    Sink drop               # where responses to padding end
