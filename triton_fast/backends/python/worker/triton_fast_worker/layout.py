"""The wire between server and worker (docs/python_worker.md): constants and records. A test holds them equal to the
server's."""

from __future__ import annotations

import struct

MAGIC = 0x31574654
VERSION = 1
CONTROL = struct.Struct("<IIQQQQQ")

RINGS_AT = 0x1000
RING_BYTES = 0x21000
RING_TAIL = 64
RING_ASLEEP = 128
RING_SLOTS_AT = 0x1000
RING_SLOTS = 4096
CANCEL_AT = 0x90000
HOLD_AT = 0xD0000
HEADER = 64

WORK, ANSWERS, DONE, EVENTS = range(4)
WORK_EXECUTE, WORK_FINALIZE, WORK_TRIM = 1, 2, 3
ANSWER_RESPONSE = 1
DONE_EXECUTED = 1
EVENT_RESPONSE, EVENT_BLS, EVENT_BLS_CANCEL, EVENT_BLS_CLOSED = 1, 2, 3, 4

RECORD_RESPONSE, RECORD_BY_SENDER, RECORD_RESCHEDULED, RECORD_NONE = 0, 1, 2, 3
RECORD_FINAL = 1
BLS_STREAM, BLS_WAITS = 1, 2

# kind, id, off, len, arg
MESSAGE = struct.Struct("<IIQQQ")
# dtype, ndim, name, off, nbytes
TENSOR = struct.Struct("<HHiQQ")
# bytes, slot, generation, flags, correlation, timeout, priority, id, correlation text, params, trace, inputs, wanted
REQUEST = struct.Struct("<IIIIQQQIIIIII")
# bytes, kind, slot, generation, code, error, params, outputs, flags, spare
RESPONSE = struct.Struct("<IIIIiIIIII")
# n, code, error, spare
DONE_HEAD = struct.Struct("<IiII")
# bytes, options, flags, inputs, correlation, timeout, version, wanted, model, id, correlation text, params, trace, slot,
# generation
BLS = struct.Struct("<IIIIQQqIIIIIIII")
# kind, key, value
PARAM = struct.Struct("<IIQ")
PAIR = struct.Struct("<II")
NO_ERROR = -1


def padding(n: int) -> bytes:
    """Return what brings n bytes to a multiple of 8."""
    return b"\0" * (-n % 8)
