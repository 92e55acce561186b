# The numbers that a request is marked with on its way: its state, its stamps, its flags, and who looks on.
# Declarations only; whose fields they are is in request.pxd.

# Life of a request. Exactly one thread moves it out of QUEUED (compare-and-swap under the queue's lock).
cdef enum:
    REQ_NEW = 0
    REQ_QUEUED = 1
    REQ_RUNNING = 2
    REQ_DONE = 3
    REQ_CANCELLED = 4
    REQ_EXPIRED = 5

# Monotonic ns stamps of a request; 0 = not reached.
cdef enum:
    T_RECEIVED = 0      # first byte of the request's head (HTTP) or message (gRPC) was read
    T_DECODED = 1       # decoded and validated
    T_QUEUED = 2
    T_STARTED = 3       # an instance took it
    T_INPUT = 4         # inputs gathered
    T_COMPUTED = 5      # the backend's run returned
    T_OUTPUT = 6        # outputs scattered; the response is complete
    T_SENT = 7          # its first response, if it has several, was sent
    T_COUNT = 8

cdef enum:
    FLAG_SEQUENCE_START = 1
    FLAG_SEQUENCE_END = 2
    FLAG_EMPTY_FINAL = 4    # a decoupled model's end without outputs is told to the client too
    FLAG_PART = 8           # of a request that was cut: its rows count as executed, it does not count as a request
    FLAG_PADDING = 16       # fills an empty place of a batch: counts nowhere
    FLAG_REST = 32          # a part that shares the place in the queue of the request's first: no limit refuses it
    FLAG_DEVICE = 64        # it uses memory of a GPU that its client lent (sched/fetch.pxd)
    FLAG_LENT = 128         # an input lies in memory of the host that its client lent, and may change at any time
    FLAG_ORDERED = 256      # its end is counted when it is handed on; taken away once there is something to count

# Who looks at a request on its way, chosen when it is decoded; nobody: one test at its end is all it costs.
cdef enum:
    WATCH_TRACE = 1
    WATCH_LOG = 2           # the access log
    WATCH_TIMING = 4        # its client wants to know where the time went
    WATCH_ANSWERED = 8      # of a traced one: its trace has seen the response
