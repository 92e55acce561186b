"""Fuzz the reader of packed responses, as Redis may hold anything: no crash, no leak; what is read is whole, and packs
into what a plain reader finds there.

Run for TF_FUZZ_SECONDS (default 5). A failing case prints itself; put it into tests/native as a named test.
"""

from __future__ import annotations

import os
import random
import struct
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from triton_fast._native.core import memory, request
from triton_fast._native.core.model import ModelHandle
from triton_fast._native.sched.entry import read
from triton_fast.config import IoSpec
from triton_fast.types import TYPES, DataType

SECONDS = float(os.environ.get("TF_FUZZ_SECONDS", "5"))
KINDS = (DataType.INT32, DataType.STRING, DataType.BOOL, DataType.FP64, DataType.BF16)
NUMBERS = (
    0,
    1,
    2,
    3,
    4,
    63,
    64,
    65,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**62,
    2**63 - 1,
    2**63,
    2**64 - 64,
    2**64 - 1,
)


def counters() -> tuple[int, int]:
    return memory.stats()["live_blocks"], request.stats()["live_requests"]


def pad(data: bytes) -> bytes:
    return data + bytes(-len(data) % 64)


def tensor(rng: random.Random, kind: DataType) -> tuple[list[int], bytes]:
    shape = [rng.randrange(4) for _ in range(rng.randrange(4))]
    count = 1
    for dim in shape:
        count *= dim
    if kind != DataType.STRING:
        return shape, rng.randbytes(count * TYPES[kind].size)
    texts = [rng.randbytes(rng.choice((0, 1, 5, 70))) for _ in range(count)]
    return shape, b"".join(struct.pack("<I", len(text)) + text for text in texts)


def valid(rng: random.Random) -> bytes:
    head, data = b"", b""
    n = rng.randrange(len(KINDS) + 1)
    for output in rng.sample(range(len(KINDS)), n):
        shape, blob = tensor(rng, KINDS[output])
        head += struct.pack(f"<IIIIQ{len(shape)}Q", output, KINDS[output], len(shape), 0, len(blob), *shape)
        data += pad(blob)
    return pad(b"TFC\x01" + struct.pack("<I", n) + head) + data


def broken(rng: random.Random, data: bytes) -> bytes:
    made = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(len(made) + 1)
        match rng.randrange(5):
            case 0 if made:
                made[at % len(made)] = rng.randrange(256)
            case 1:
                size = rng.choice((4, 8))
                at -= at % 4
                made[at : at + size] = (rng.choice(NUMBERS) & (1 << 8 * size) - 1).to_bytes(size, "little")
            case 2:
                del made[at:]
            case 3:
                del made[at : at + rng.choice((1, 4, 8, 64))]
            case _:
                made[at:at] = rng.randbytes(rng.choice((1, 4, 8, 64)))
    return bytes(made)


def plain(data: bytes) -> dict[str, tuple[int, tuple[int, ...], bytes]] | None:
    """Read what is known to be whole; raises on anything else."""
    (n,) = struct.unpack_from("<I", data, 4)
    rows, at = [], 8
    for _ in range(n):
        output, kind, rank, _zero, nbytes = struct.unpack_from("<IIIIQ", data, at)
        rows.append((output, kind, struct.unpack_from(f"<{rank}q", data, at + 24), nbytes))
        at += 24 + 8 * rank
    at += -at % 64
    found = {}
    for output, kind, shape, nbytes in rows:
        found[f"O{output}"] = (kind, shape, data[at : at + nbytes])
        at += nbytes + -nbytes % 64
    assert at == len(data)
    return found


def main() -> int:
    seed = int(os.environ.get("TF_FUZZ_SEED", str(time.time_ns())))
    rng = random.Random(seed)
    outputs = [IoSpec(f"O{k}", kind, (-1,)) for k, kind in enumerate(KINDS)]
    model = ModelHandle("m", 1, 0, (), outputs)
    base, runs, whole = counters(), 0, 0
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        for _ in range(200):
            good = valid(rng)
            for data in (good, broken(rng, good)):
                found = read(model, data)
                runs += 1
                if data is good or found is not None:
                    whole += 1
                    if found != plain(data):
                        print(f"fuzz_cache_entry: seed {seed}: {data.hex()} was read as {found}")
                        return 1
        if counters() != base:
            print(f"fuzz_cache_entry: seed {seed}: left over {counters()}, before {base}")
            return 1
    print(f"fuzz_cache_entry: {runs} cases, {whole} whole, seed {seed}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
