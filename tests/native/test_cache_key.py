"""The keyed digest: SipHash against OpenSSL, NH against whole numbers, framing; keys differ where they must."""

from __future__ import annotations

import random
import shutil
import struct
import subprocess

import pytest

from triton_fast._native.sched.key import digest

NH_WORDS = 130
SECRET = random.Random(1).randbytes(16 + 8 * NH_WORDS)


def openssl(key: bytes, message: bytes) -> bytes:
    command = ["openssl", "mac", "-macopt", f"hexkey:{key.hex()}", "-macopt", "size:16", "-binary", "SIPHASH"]
    return subprocess.run(command, input=message, check=True, capture_output=True).stdout


@pytest.mark.skipif(not shutil.which("openssl"), reason="needs the openssl command")
@pytest.mark.parametrize("n", [0, 1, 2, 7, 31, 32, 255])
def test_words_are_siphash(n):
    words = [random.Random(n + k).getrandbits(64) for k in range(n)]
    assert digest(SECRET, words) == openssl(SECRET[:16], struct.pack(f"<{n}Q", *words))


@pytest.mark.parametrize("n", [0, 1, 7, 8, 9, 15, 16, 50, 63])
def test_short_fields_are_their_length_and_words(n):
    data = random.Random(n).randbytes(n)
    words = struct.unpack(f"<{-(-n // 8)}Q", data + bytes(-n % 8))
    assert digest(SECRET, [data]) == digest(SECRET, [n, *words])


def nh(data: bytes) -> list[int]:
    """The sums of products, by whole numbers."""
    keys = struct.unpack(f"<{NH_WORDS}Q", SECRET[16:])
    data += bytes(-len(data) % 16)
    words = struct.unpack(f"<{len(data) // 8}Q", data)
    found = []
    for shift in (0, 2):
        total = sum(
            ((words[k] + keys[k + shift]) % 2**64) * ((words[k + 1] + keys[k + 1 + shift]) % 2**64)
            for k in range(0, len(words), 2)
        )  # fmt: skip
        found += [total % 2**64, total >> 64 & 2**64 - 1]
    return found


@pytest.mark.parametrize("n", [64, 65, 79, 80, 100, 512, 1000, 1023, 1024, 1025, 1040, 2048, 3001])
def test_long_fields_are_hashed_by_kilobyte(n):
    data = random.Random(n).randbytes(n)
    pieces = [word for at in range(0, n, 1024) for word in nh(data[at : at + 1024])]
    assert digest(SECRET, [data]) == digest(SECRET, [n, *pieces])


def test_fields_do_not_run_into_each_other():
    fields = [[b"ab", b"c"], [b"a", b"bc"], [b"abc"], [b"abc", b""], [b"", b"abc"], [b"abc\0"], [b"ab", b"c\0"], []]
    assert len({digest(SECRET, field) for field in fields}) == len(fields)


def test_each_bit_counts():
    data = bytearray(random.Random(5).randbytes(2100))
    found = {digest(SECRET, [bytes(data)])}
    for bit in range(0, 8 * len(data), 7):
        data[bit // 8] ^= 1 << bit % 8
        found.add(digest(SECRET, [bytes(data)]))
        data[bit // 8] ^= 1 << bit % 8
    assert len(found) == 1 + len(range(0, 8 * len(data), 7))


def test_the_key_counts():
    other = bytearray(SECRET)
    other[16 + 8 * 40] ^= 1
    data = bytes(1024)
    assert digest(SECRET, [data]) != digest(bytes(other), [data])
    with pytest.raises(ValueError, match="1056 bytes"):
        digest(b"short", [])
