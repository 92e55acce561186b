# The state of one Python model instance on the server's side, over all the worker processes it has one after another.
# Shared by its instance thread, its service thread, Python threads that supervise it, and calls of its model to others.
from libc.stdint cimport int32_t, int64_t, uint32_t

from triton_fast._native.core.native cimport tf_buf
from triton_fast._native.core.pthread cimport pthread_cond_t, pthread_mutex_t, pthread_t
from triton_fast._native.core.model cimport Model
from triton_fast._native.core.request cimport Request, Response, Sink
from triton_fast._native.pyworker.channel cimport Channel
from triton_fast._native.pyworker.encode cimport Encoder

cdef enum:
    SLOT_FREE = 0
    SLOT_INSTANCE = 1       # its response comes with the end of the execution
    SLOT_SERVICE = 2        # its responses come as events
    SLOT_NEW = 3            # the worker has not been told: nothing it says reaches it

cdef enum:
    MAX_REASON = 1024

# A request that the worker has. The worker names it by slot and generation.
cdef struct Slot:
    Request* request
    uint32_t generation
    int32_t state
    Request* waiting        # carriers for which there is no place yet, oldest first, linked by q_next
    Request* waiting_last
    int32_t n_waiting
    bint is_over            # the final response is filled; it goes after those that wait
    int32_t next            # free list, or list of slots with carriers that wait; -1 ends

# A model that calls of this worker go to, looked up once per epoch. Holds a reference of the NativeModel.
cdef struct Target:
    Target* next
    char* name
    uint32_t name_len
    int64_t version
    long long epoch
    int32_t refs            # calls that use it
    void* owner             # NativeModel; NULL: a name that nothing has
    Model* model
    void* scheduler         # of model

# A request that the worker's model makes of another model.
cdef struct Call:
    Sink sink               # first
    Call* next
    Call* prev
    Worker* worker          # one reference
    Target* target
    Request* child          # until its end
    uint32_t id
    bint streams
    bint waits
    bint answered           # of a call that wants one response: it has had it
    bint closed             # nobody wants what still comes
    void* runner            # Worker that executes it, if it is a Python model
    int64_t stuck           # service thread: since when there was no room for its next response; 0: there was
    uint32_t skipped        # service thread: the round in which there was none
    int64_t began

cdef struct Worker:
    int32_t refs            # atomic
    pthread_mutex_t lock    # of what follows
    pthread_cond_t changed  # channel, executing, in_flight
    Channel* channel        # one reference; NULL: there is no worker now
    char[MAX_REASON] reason     # why there is none
    uint32_t reason_len
    int32_t code
    bint hopeless           # none will come soon: what is pulled fails at once, else it waits for the next
    int64_t execution_began     # 0: the instance thread executes nothing
    int32_t in_flight
    Slot* slots
    int32_t n_slots         # ever used
    int32_t free_slot
    int32_t waiting_slot    # list of slots with carriers that wait
    Call* calls
    int32_t n_calls
    Response* arrived       # responses of calls, newest first
    int64_t events_done     # atomic; events of this worker process that were dealt with
    bint serving            # a service thread takes what arrives
    bint stopping           # somebody waits for the end of what used the last channel
    Target* targets         # service thread; emptied with the lock when there is none
    Model* model            # that it serves, once it has executed
    void* resolve           # Python callable; its owner outlives the service thread
    long long* epoch        # NULL: look every name up again
    int64_t spin_ns
    int64_t wait_ns         # how long a response waits for memory that the worker has
    # Taken before `lock` by who answers requests that are the service thread's, while there is one: an event and the
    # error of an execution may be about the same request. Sinks are called under it.
    pthread_mutex_t turn
    # Instance thread only.
    uint32_t batch_no
    uint32_t* batch_slots   # slot and generation of each request of the batch
    Encoder encoder
    tf_buf scratch
    # Service thread only.
    pthread_t service
    Channel* served         # the thread's reference; `channel` may be another or none by the time it looks
    Encoder answers
    tf_buf record
    Response* unanswered    # of calls; there was no room, oldest first
    Response* unanswered_last
    uint32_t rounds         # of looking whether there is


cdef Worker* worker_new() noexcept nogil
cdef void worker_unref(Worker* w) noexcept nogil
# The lock is held. A slot for r; -1 when there are too many.
cdef int32_t slot_take(Worker* w, Request* r, int32_t state) noexcept nogil
# The lock is held. Its request is the caller's from now on; nothing the worker says reaches it.
cdef Request* slot_drop(Worker* w, int32_t slot) noexcept nogil
# The lock is held. The slot that the worker means; -1 when that request is over.
cdef int32_t slot_find(Worker* w, uint32_t slot, uint32_t generation) noexcept nogil
