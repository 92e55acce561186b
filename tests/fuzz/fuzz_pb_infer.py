"""Fuzz the native decoder of ModelInferRequest against protobuf: no crash, no leak, the same messages refused as
broken, the same meaning of those that are taken.

Run for TF_FUZZ_SECONDS (default 5). A failing case prints itself; put it into tests/native as a named test.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from google.protobuf.message import DecodeError
from google.protobuf.unknown_fields import UnknownFieldSet

from tests.helpers import pb
from triton_fast import errors, protos
from triton_fast._native.core import memory, request
from triton_fast._native.wire.pb_infer import decode

SECONDS = float(os.environ.get("TF_FUZZ_SECONDS", "5"))
BROKEN = "the request message is not a valid ModelInferRequest: "
KEYS = [b"sequence_id", b"sequence_start", b"priority", b"timeout", b"shared_memory_region", b"classification", b"k",
        b"shared_memory_byte_size", b"triton_enable_empty_final_response", b"binary_data_output", b"", b"\xff"]
BYTES = [0, 1, 2, 4, 8, 0x0A, 0x10, 0x12, 0x18, 0x1A, 0x22, 0x2A, 0x32, 0x3A, 0x3B, 0x3C, 0x7F, 0x80, 0x81, 0xFF]


def counters() -> tuple[int, int]:
    return memory.stats()["live_blocks"], request.stats()["live_requests"]


def chance(rng: random.Random, p: float) -> bool:
    return rng.random() < p


def number(rng: random.Random) -> int:
    return rng.choice([0, 1, 2, 127, 128, 300, 2**31 - 1, 2**31, 2**32, 2**63, 2**64 - 1, rng.getrandbits(64)])


def value(rng: random.Random) -> bytes:
    parts = [
        pb.integer(1, rng.getrandbits(1)), pb.integer(2, number(rng)), pb.span(3, b"text"), pb.tag(4, 1) + bytes(8),
        pb.integer(5, number(rng)), unknown(rng),
    ]
    return b"".join(rng.choices(parts, k=rng.choice([0, 1, 1, 1, 2])))


def unknown(rng: random.Random) -> bytes:
    n = rng.choice([1, 9, 15, 16, 2000, 2**29 - 1])
    inner = unknown(rng) if chance(rng, 0.3) else b""
    return rng.choice([
        pb.integer(n, number(rng)), pb.tag(n, 1) + bytes(8), pb.tag(n, 5) + bytes(4),
        pb.tag(n, 3) + inner + pb.tag(n, 4), pb.span(50, b"\x0a\x01x"),
    ])


def contents(rng: random.Random) -> bytes:
    parts = []
    for _ in range(rng.choice([0, 1, 1, 2, 3])):
        field = rng.choice([1, 2, 2, 3, 4, 5, 6, 7, 8])
        count = rng.choice([0, 1, 2, 9, 40, 300])
        if field == 8:
            parts += [pb.span(8, rng.randbytes(rng.choice([0, 1, 200]))) for _ in range(min(count, 9))]
        elif field >= 6:
            size = 4 if field == 6 else 8
            if chance(rng, 0.3):
                parts += [pb.tag(field, 5 if field == 6 else 1) + rng.randbytes(size) for _ in range(min(count, 9))]
            else:
                parts.append(pb.span(field, rng.randbytes(size * count)))
        elif chance(rng, 0.3):
            parts += [pb.integer(field, number(rng)) for _ in range(min(count, 9))]
        else:
            parts.append(pb.span(field, b"".join(pb.varint(number(rng)) for _ in range(count))))
    rng.shuffle(parts)
    return b"".join(parts)


def tensor(rng: random.Random, raw: bool) -> bytes:
    parts = [pb.span(1, b"in"), pb.span(2, rng.choice([*pb.TYPED, "FP16", "X", ""]).encode())]
    parts += [pb.integer(3, number(rng)) if chance(rng, 0.4) else pb.span(3, pb.varint(number(rng)) * 2)]
    if not raw:
        parts += [pb.span(5, contents(rng)) for _ in range(rng.choice([0, 1, 1, 1, 2]))]
    if chance(rng, 0.1):
        parts.append(pb.entry(4, rng.choice(KEYS), value(rng)))
    if chance(rng, 0.2):
        parts.append(unknown(rng))
    rng.shuffle(parts)
    return b"".join(parts)


def message(rng: random.Random) -> bytes:
    raw = chance(rng, 0.5)
    parts = [pb.span(1, b"m"), pb.span(3, "é7".encode()), pb.span(2, b"")]
    count = rng.choice([0, 1, 1, 2, 6])
    parts += [pb.span(5, tensor(rng, raw)) for _ in range(count)]
    parts += [pb.span(7, rng.randbytes(rng.choice([0, 4, 130]))) for _ in range(count if raw else 0)]
    parts += [pb.entry(4, rng.choice(KEYS), value(rng)) for _ in range(rng.choice([0, 0, 1, 3, 20]))]
    for _ in range(rng.choice([0, 0, 1, 5])):
        extra = pb.entry(2, rng.choice(KEYS), value(rng)) if chance(rng, 0.3) else b""
        parts.append(pb.span(6, pb.span(1, b"out") + extra))
    if chance(rng, 0.3):
        parts.append(unknown(rng))
    rng.shuffle(parts)
    return b"".join(parts)


def mutate(text: bytes, rng: random.Random) -> bytes:
    data = bytearray(text)
    for _ in range(rng.choice([1, 1, 1, 2, 5])):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(5)
        if how == 0:
            del data[at : at + rng.choice([1, 1, 4, 30])]
        elif how == 1:
            data[at:at] = bytes(rng.choices(BYTES, k=rng.choice([1, 2, 11])))
        elif how == 2:
            data[at : at + 1] = bytes([rng.choice(BYTES)])
        elif how == 3:
            data[at:at] = data[: rng.randrange(len(data) + 1)][-40:]
        else:
            del data[at:]
    return bytes(data)


def entry_unknown(text: bytes) -> bool:
    """This protobuf takes a map entry that has a field it does not know for no entry; its C++ twin, and we, take it."""
    m = protos.ModelInferRequest.FromString(text)
    parts = [(m, 4), *((t, 4) for t in m.inputs), *((o, 2) for o in m.outputs)]
    return any(f.field_number == number and f.wire_type == 2 for part, number in parts for f in UnknownFieldSet(part))


def check(text: bytes, max_input: int) -> bool:
    """Whether the message was taken."""
    try:
        protos.ModelInferRequest.FromString(text)
        well_formed = True
    except DecodeError:
        well_formed = False
    try:
        got = decode(text, max_input)
    except errors.ServerError as e:
        # Where the two may differ: the limit of dimensions is met while reading, perhaps before what is broken; this
        # protobuf takes tags of field 0 within unknown groups, which its C++ twin refuses as we do.
        differ = "more than 64 dimensions" in e.message or "an invalid tag" in e.message
        assert differ or e.message.startswith(BROKEN) == (not well_formed), (e.message, text)
        return False
    assert well_formed, text
    if entry_unknown(text):
        return True
    assert pb.comparable(got) == pb.meaning(text), text
    return True


def main() -> int:
    seed = int(os.environ.get("TF_FUZZ_SEED", str(time.time_ns() % 2**32)))
    rng = random.Random(seed)
    total = taken = 0
    stop = time.monotonic() + SECONDS
    while time.monotonic() < stop:
        before = counters()
        good = message(rng)
        for text in [good, *(mutate(good, rng) for _ in range(10))]:
            taken += check(text, rng.choice([64 << 20, 64 << 20, 100]))
            total += 1
        assert counters() == before, good
    assert taken, "no message was taken"
    sys.stdout.write(f"fuzz_pb_infer: {total} messages, {taken} taken, seed {seed}, no finding\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
