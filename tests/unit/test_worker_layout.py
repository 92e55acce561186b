"""Server and worker state the wire between them each for itself: the numbers must be the same."""

from __future__ import annotations

import re
import struct
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
WORKER = ROOT / "triton_fast/backends/python/worker"
sys.path.append(str(WORKER))
from triton_fast_worker import layout  # noqa: E402

DECLARED = (ROOT / "ext/triton_fast/_native/pyworker/layout.pxd").read_text()
OTHER_NAMES = {
    "LAYOUT_MAGIC": "MAGIC", "LAYOUT_VERSION": "VERSION", "RINGS_AT": "RINGS_OFF", "RING_BYTES": "RING_STRIDE",
    "RING_SLOTS_AT": "RING_SLOTS", "RING_SLOTS": "SLOTS", "CANCEL_AT": "CANCEL_OFF", "HOLD_AT": "HOLD_OFF",
    "CONTROL_BYTES": "CONTROL_END", "MAX_SLOTS": "WORDS", "HEADER": "ALLOC_HEADER", "DONE_EXECUTED": "DONE_BATCH",
    "RECORD_RESPONSE": "RESPONSE", "RECORD_BY_SENDER": "ANSWERED", "RECORD_RESCHEDULED": "RESCHEDULED",
    "RECORD_NONE": "FLAGS_ONLY", "RECORD_FINAL": "FLAG_FINAL",
}  # fmt: skip
# What only one side needs.
SERVER_ONLY = {"RING_COUNT"}
FORMATS = {
    "int32_t": "i", "uint32_t": "I", "int64_t": "q", "uint64_t": "Q", "uint16_t": "H",
}  # fmt: skip
STRUCTS = {
    "Control": "REGION_HEADER", "Message": "SLOT", "TensorRecord": "TENSOR", "RequestRecord": "REQUEST",
    "ResponseRecord": "REPLY", "DoneRecord": "DONE", "BlsRecord": "BLS", "ParamRecord": "PARAM",
}  # fmt: skip


def test_constants_agree() -> None:
    constants = dict(re.findall(r"^    ([A-Z_]+) = (0x[0-9A-Fa-f]+|\d+)", DECLARED, re.MULTILINE))
    assert len(constants) > 30
    for name, text in constants.items():
        if name not in SERVER_ONLY:
            assert getattr(layout, OTHER_NAMES.get(name, name)) == int(text, 0), name


def test_records_agree() -> None:
    found = re.findall(r"^cdef struct (\w+):\n((?:    \w+ \w+.*\n)+)", DECLARED, re.MULTILINE)
    assert {name for name, _ in found} == set(STRUCTS)
    for name, body in found:
        fields = re.findall(r"^    (\w+) \w+", body, re.MULTILINE)
        code = "<" + "".join(FORMATS[kind] for kind in fields)
        ours: struct.Struct = getattr(layout, STRUCTS[name])
        assert ours.format == code, name
        # The compiler adds no padding: every field is aligned by itself.
        assert struct.calcsize("@" + code[1:]) == ours.size, name
