"""The numbers of docs/python_worker.md, which the server's layout.pxd states too; a test compares the two."""

from __future__ import annotations

from struct import Struct

MAGIC = 0x31574654
VERSION = 1
REGION_HEADER = Struct("<IIQQQQQ")

RINGS_OFF = 0x1000
RING_STRIDE = 0x21000
RING_HEAD = 0
RING_TAIL = 64
RING_ASLEEP = 128
RING_SLOTS = 0x1000
SLOTS = 4096
SLOT_BYTES = 32
SLOT = Struct("<IIQQQ")
RING_WORK, RING_ANSWERS, RING_DONE, RING_EVENTS = range(4)

CANCEL_OFF = 0x90000
HOLD_OFF = 0xD0000
WORDS = 65536
CONTROL_END = 0x110000

ALLOC_HEADER = 64
ALIGN = 64

# Kinds of messages, by ring.
WORK_EXECUTE, WORK_FINALIZE, WORK_TRIM = 1, 2, 3
DONE_BATCH = 1
ANSWER_RESPONSE = 1
EVENT_RESPONSE, EVENT_BLS, EVENT_BLS_CANCEL, EVENT_BLS_CLOSED = 1, 2, 3, 4

# Kinds of response records.
RESPONSE, ANSWERED, RESCHEDULED, FLAGS_ONLY = 0, 1, 2, 3
FLAG_FINAL = 1
BLS_STREAM, BLS_WAITS = 1, 2
PARAM_STRING, PARAM_INT, PARAM_BOOL = 0, 1, 2

TENSOR = Struct("<HHiQQ")
COUNTED = Struct("<II")
REQUEST = Struct("<IIIIQQQIIIIII")
REPLY = Struct("<IIIIiIIIII")
DONE = Struct("<IiII")
BLS = Struct("<IIIIQQqIIIIIIII")
PARAM = Struct("<IIQ")

FRAME = Struct("<II")
MAX_JSON = 64 << 20
# What the server takes of a worker's JSON: its largest texts, all of them characters that take 12 bytes, fit.
MAX_SENT_JSON = 2 << 20
MAX_SENT_CONFIG = 16 << 20
MAX_TEXT = 128 << 10
MAX_BLOB = 1 << 30


def padded(length: int) -> int:
    return (length + 7) & ~7


def aligned(length: int) -> int:
    return (length + ALIGN - 1) & ~(ALIGN - 1)
