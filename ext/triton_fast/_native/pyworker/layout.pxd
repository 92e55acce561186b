# The wire between server and worker (docs/python_worker.md): constants and records. Declarations only.
from libc.stdint cimport int32_t, int64_t, uint16_t, uint32_t, uint64_t

cdef enum:
    LAYOUT_MAGIC = 0x31574654
    LAYOUT_VERSION = 1

cdef enum:
    RINGS_AT = 0x1000
    RING_BYTES = 0x21000
    RING_TAIL = 64
    RING_ASLEEP = 128
    RING_SLOTS_AT = 0x1000
    RING_SLOTS = 4096
    CANCEL_AT = 0x90000
    HOLD_AT = 0xD0000
    CONTROL_BYTES = 0x110000
    MAX_SLOTS = 65536       # requests of one worker in flight
    HEADER = 64             # before the data of an allocation

cdef enum:
    RING_WORK = 0
    RING_ANSWERS = 1
    RING_DONE = 2
    RING_EVENTS = 3
    RING_COUNT = 4

cdef enum:                  # kinds by ring
    WORK_EXECUTE = 1
    WORK_FINALIZE = 2
    WORK_TRIM = 3
    ANSWER_RESPONSE = 1
    DONE_EXECUTED = 1
    EVENT_RESPONSE = 1
    EVENT_BLS = 2
    EVENT_BLS_CANCEL = 3
    EVENT_BLS_CLOSED = 4

cdef enum:                  # kinds of response records
    RECORD_RESPONSE = 0
    RECORD_BY_SENDER = 1
    RECORD_RESCHEDULED = 2
    RECORD_NONE = 3

cdef enum:
    RECORD_FINAL = 1        # flag of a response record
    BLS_STREAM = 1          # options of a BLS record
    BLS_WAITS = 2

cdef struct Control:
    uint32_t magic
    uint32_t version
    uint64_t region_bytes
    uint64_t in_off
    uint64_t in_bytes
    uint64_t out_off
    uint64_t out_bytes

cdef struct Message:
    uint32_t kind
    uint32_t id
    uint64_t off
    uint64_t len
    uint64_t arg

cdef struct TensorRecord:
    uint16_t dtype
    uint16_t ndim
    int32_t name            # an index; -1 - n: n bytes of text after the dims
    uint64_t off
    uint64_t nbytes

cdef struct RequestRecord:
    uint32_t bytes
    uint32_t slot
    uint32_t generation
    uint32_t flags
    uint64_t correlation
    uint64_t timeout_us
    uint64_t priority
    uint32_t id_len
    uint32_t correlation_len
    uint32_t params_len
    uint32_t trace_len
    uint32_t n_inputs
    uint32_t n_wanted

cdef struct ResponseRecord:
    uint32_t bytes
    uint32_t kind
    uint32_t slot
    uint32_t generation
    int32_t code
    uint32_t error_len
    uint32_t params_len
    uint32_t n_outputs
    uint32_t flags
    uint32_t spare

cdef struct DoneRecord:
    uint32_t n
    int32_t code
    uint32_t error_len
    uint32_t spare

cdef struct BlsRecord:
    uint32_t bytes
    uint32_t options
    uint32_t flags
    uint32_t n_inputs
    uint64_t correlation
    uint64_t timeout_us
    int64_t version
    uint32_t n_wanted
    uint32_t model_len
    uint32_t id_len
    uint32_t correlation_len
    uint32_t params_len
    uint32_t trace_len
    uint32_t parent_slot
    uint32_t parent_generation

cdef struct ParamRecord:
    uint32_t kind
    uint32_t key_len
    uint64_t value


cdef inline size_t padded(size_t n) noexcept nogil:
    return (n + 7) & ~<size_t>7
