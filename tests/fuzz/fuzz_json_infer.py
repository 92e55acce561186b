"""Fuzz the native v2 JSON decoder: no crash, no leak, an answer for everything, right tensors when it takes one.

Run for TF_FUZZ_SECONDS (default 5). A failing case prints itself; put it into tests/native as a named test.
"""

from __future__ import annotations

import json
import os
import random
import sys
import time

import numpy as np
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from triton_fast import errors
from triton_fast._native.core import memory, request
from triton_fast._native.wire.json_infer import decode

SECONDS = float(os.environ.get("TF_FUZZ_SECONDS", "5"))
KINDS = {"FP32": np.float32, "FP64": np.float64, "INT8": np.int8, "INT64": np.int64, "UINT16": np.uint16}
TOKENS = [
    b"{", b"}", b"[", b"]", b",", b":", b'"', b"\\", b"0", b"-", b".", b"e", b"E+", b"null", b"true", b"NaN", b"Inf",
    b" ", b"\n", b"\x01", b"\0", b"\xff", b"\\u", b"\\ud800", b"\\udc00", b"1e400", b"9" * 25, b'"data":', b'"shape":',
    b'"binary_data_size":', b'"parameters":{', b"[[[[[[[[", b"18446744073709551616", b"-9223372036854775808",
]


def counters() -> tuple[int, int]:
    return memory.stats()["live_blocks"], request.stats()["live_requests"]


@st.composite
def bodies(draw: st.DrawFn) -> tuple[bytes, list[bytes]]:
    """A good request in random layout, and the bytes its inputs must decode to."""
    inputs, wanted = [], []
    for n in range(draw(st.integers(0, 4))):
        kind = draw(st.sampled_from([*KINDS, "BYTES", "BOOL"]))
        shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
        count = int(np.prod(shape))
        if kind == "BYTES":
            flat = draw(st.lists(st.text(st.characters(exclude_categories=("Cs",))), min_size=count, max_size=count))
            wanted.append(b"".join(len(s.encode()).to_bytes(4, "little") + s.encode() for s in flat))
        elif kind == "BOOL":
            flat = draw(st.lists(st.booleans(), min_size=count, max_size=count))
            wanted.append(bytes(flat))
        else:
            dtype = KINDS[kind]
            if issubclass(dtype, np.floating):
                one = st.floats(allow_nan=False, width=32 if kind == "FP32" else 64)
            else:
                one = st.integers(int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
            flat = draw(st.lists(one, min_size=count, max_size=count))
            wanted.append(np.array(flat, dtype).tobytes())
        nested = np.array(flat, object).reshape(shape).tolist() if draw(st.booleans()) else flat
        members = list({"name": f"i{n}", "shape": shape, "datatype": kind, "data": nested}.items())
        inputs.append(dict(draw(st.permutations(members))))
    root = list({"inputs": inputs, "id": draw(st.text(max_size=5)), "outputs": [{"name": "o"}], "x": [{}]}.items())
    text = json.dumps(
        dict(draw(st.permutations(root))),
        ensure_ascii=draw(st.booleans()),
        indent=draw(st.sampled_from([None, 1])),
    )
    return text.encode("utf-8", "surrogatepass"), wanted


def mutate(text: bytes, rng: random.Random) -> bytes:
    data = bytearray(text)
    for _ in range(rng.choice([1, 1, 2, 3, 8])):
        at = rng.randrange(len(data) + 1)
        how = rng.randrange(5)
        if how == 0:
            del data[at : at + rng.choice([1, 1, 4, 30])]
        elif how == 1:
            data[at:at] = rng.choice(TOKENS)
        elif how == 2:
            data[at : at + 1] = rng.choice(TOKENS)
        elif how == 3:
            data[at:at] = data[: rng.randrange(len(data) + 1)][-40:]
        else:
            del data[at:]
    return bytes(data)


def check(case: tuple[bytes, list[bytes]], rng: random.Random) -> int:
    text, wanted = case
    before = counters()
    assert [t["data"] for t in decode(text)["inputs"]] == wanted, text
    rounds = 30
    for _ in range(rounds):
        bad = mutate(text, rng)
        try:
            got = decode(bad, rng.randbytes(rng.randrange(20)), rng.random() < 0.5, rng.choice([64 << 20, 200]))
        except errors.ServerError as e:
            assert e.message, bad
        else:
            assert got["inputs"] is not None
    assert counters() == before, text
    return rounds + 1


def main() -> int:
    seed = int(os.environ.get("TF_FUZZ_SEED", str(time.time_ns() % 2**32)))
    rng = random.Random(seed)
    total = 0
    stop = time.monotonic() + SECONDS

    @settings(max_examples=50, deadline=None, database=None, phases=[Phase.generate],
              suppress_health_check=list(HealthCheck))
    @given(bodies())
    def run(case: tuple[bytes, list[bytes]]) -> None:
        nonlocal total
        if time.monotonic() < stop:
            total += check(case, rng)

    while time.monotonic() < stop:
        run()
    sys.stdout.write(f"fuzz_json_infer: {total} bodies, seed {seed}, no finding\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
