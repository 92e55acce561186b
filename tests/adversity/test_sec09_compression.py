"""Compressed bodies: what they inflate to is bounded, what is broken is named, what failed leaves nothing behind."""

from __future__ import annotations

import gzip
import json
import zlib

import pytest

from tests.helpers.bombs import GZIP, MIB, ZLIB, packed
from tests.helpers.raw import Client, binary_body, chunked, fp32, infer_object, infer_path, post, values_of
from tests.helpers.server import ServerProcess, until

LIMIT = 64 * MIB
INFER = infer_path("m")
JSON = json.dumps(infer_object([1.5])).encode()
TOO_LARGE = (
    f"Decompressed data size exceeds the maximum allowed value of {LIMIT} bytes. "
    "Use --http-max-input-size to increase the limit."
)


GIB = 1024 * MIB


def test_bombs(server: ServerProcess) -> None:
    """1 MB that is 1 GB: refused at the limit, and the memory of the attempt is given back."""
    for path, body, coding in (
        (INFER, packed(GZIP, GIB, byte=b" "), "gzip"), (infer_path("big"), packed(ZLIB, GIB), "deflate"),
    ):  # fmt: skip
        for headers in ([], ["Inference-Header-Content-Length: 50"], ["Inference-Header-Content-Length: 0"]):
            with Client(server.http) as client:
                answer = client.ask(post(path, body, f"Content-Encoding: {coding}", *headers))
                assert (answer.status, answer.error) == (400, TOO_LARGE)


def test_ten_megabytes_of_bomb(server: ServerProcess) -> None:
    """10 MB that would be 10 GB, as one member and as ten; what comes after the limit is not even looked at."""
    server.reset_peak()
    before = server.rss()
    with Client(server.http) as client:
        answer = client.ask(post(INFER, packed(GZIP, GIB, byte=b" ") * 10, "Content-Encoding: gzip"))
        assert (answer.status, answer.error) == (400, TOO_LARGE)
    assert server.peak_rss() < before + 3 * LIMIT


def test_failed_bombs_leave_memory_flat(server: ServerProcess) -> None:
    small = packed(GZIP, LIMIT + MIB)
    before = server.rss()
    with Client(server.http) as client:
        rss = []
        for _ in range(14):
            assert client.ask(post(INFER, small, "Content-Encoding: gzip")).error == TOO_LARGE
            # The answer may come before the attempt's memory is given back.
            assert until(lambda: server.rss() < before + LIMIT)
            rss.append(server.rss())
        assert min(rss[7:]) < before + 16 * MIB


def test_broken_bodies_leave_memory_flat(server: ServerProcess) -> None:
    """Hundreds of truncated ones: each inflates a megabyte before it fails."""
    cut = gzip.compress(b" " * MIB)[:-9]
    request = post(INFER, cut, "Content-Encoding: gzip")
    with Client(server.http) as client:
        rss = []
        for _ in range(12):
            client.send(request * 40)
            for _ in range(40):
                assert client.answer().status == 400
            rss.append(server.rss())
        # A look may come before the attempt's memory is given back: what is kept shows in the least of several.
        assert min(rss[7:]) < min(rss[:7]) + 4 * MIB
        assert max(rss) < min(rss) + 3 * LIMIT


def test_many_members(server: ServerProcess) -> None:
    """Members end to end are one body; too many of them are no body but work."""
    parts = [JSON[i : i + 10] for i in range(0, len(JSON), 10)]
    with Client(server.http) as client:
        whole = b"".join(gzip.compress(part) for part in parts)
        assert values_of(client.ask(post(INFER, whole, "Content-Encoding: gzip"))) == [1.5]
        empty = gzip.compress(b"")
        padded = empty * 100 + gzip.compress(JSON)
        assert values_of(client.ask(post(INFER, padded, "Content-Encoding: gzip"))) == [1.5]
        assert client.ask(post(INFER, empty * 500_000, "Content-Encoding: gzip")).status == 400
        # The limit counts all members together.
        tenth = gzip.compress(b" " * (LIMIT // 10))
        assert client.ask(post(INFER, tenth * 11, "Content-Encoding: gzip")).error == TOO_LARGE


def test_nested(server: ServerProcess) -> None:
    """One layer is taken off, not two."""
    twice = gzip.compress(gzip.compress(JSON))
    with Client(server.http) as client:
        answer = client.ask(post(INFER, twice, "Content-Encoding: gzip"))
        assert answer.status == 500
        assert "failed to parse the request JSON buffer" in answer.error
        for coding in ("gzip, gzip", "gzip, deflate", "identity, gzip"):
            assert client.ask(post(INFER, twice, f"Content-Encoding: {coding}")).status == 501


PACKED = gzip.compress(JSON, mtime=0)
BROKEN = {
    "truncated": (PACKED[:-1], "gzip"),
    "only a header": (PACKED[:10], "gzip"),
    "one byte": (PACKED[:1], "gzip"),
    "wrong checksum": (PACKED[:-8] + bytes([PACKED[-8] ^ 1]) + PACKED[-7:], "gzip"),
    "wrong length": (PACKED[:-1] + b"\x01", "gzip"),
    "no gzip": (JSON, "gzip"),
    "garbage after": (PACKED + b"xxxx", "gzip"),
    "zlib as gzip": (zlib.compress(JSON), "gzip"),
    "gzip as deflate": (PACKED, "deflate"),
    "two deflates": (zlib.compress(JSON) * 2, "deflate"),
    "deflate truncated": (zlib.compress(JSON)[:-2], "deflate"),
    "empty": (b"", "gzip"),
    "empty deflate": (b"", "deflate"),
    "dictionary": (b"\x78\xbb\x00\x00\x00\x01" + bytes(20), "deflate"),
}


@pytest.mark.parametrize("name", BROKEN)
@pytest.mark.parametrize("in_chunks", [False, True])
def test_broken(server: ServerProcess, name: str, in_chunks: bool) -> None:
    body, coding = BROKEN[name]
    header = f"Content-Encoding: {coding}"
    pieces = [body[i : i + 7] for i in range(0, len(body), 7)]
    with Client(server.http) as client:
        answer = client.ask(chunked(INFER, pieces, header) if in_chunks else post(INFER, body, header))
        assert answer.status == 400
        assert "compressed" in answer.error
        assert values_of(client.ask(post(INFER, PACKED, "Content-Encoding: gzip"))) == [1.5]


@pytest.mark.parametrize("coding", ["br", "zstd", "compress", "gzipp", "x", "gzip;q=1", "gzip,", "\xff", "g" * 5000])
def test_unknown_codings(server: ServerProcess, coding: str) -> None:
    with Client(server.http) as client:
        answer = client.ask(post(INFER, PACKED, f"Content-Encoding: {coding}"))
        assert (answer.status, answer.error) == (501, "Unsupported compression type")
        assert answer.headers["accept-encoding"] == "gzip, deflate"
        assert values_of(client.ask(post(INFER, JSON))) == [1.5]


@pytest.mark.parametrize("coding", ["gzip", "GZIP", "x-gzip", "deflate", "identity", " gzip "])
def test_known_codings(server: ServerProcess, coding: str) -> None:
    name = coding.strip().lower()
    body = {"deflate": zlib.compress(JSON), "identity": JSON}.get(name, PACKED)
    with Client(server.http) as client:
        assert values_of(client.ask(post(INFER, body, f"Content-Encoding: {coding}"))) == [1.5]


def test_exactly_the_limit(server: ServerProcess) -> None:
    """The last byte allowed is allowed: JSON padded to the limit inflates and serves, one more does not."""
    with Client(server.http) as client:
        fits = gzip.compress(JSON + b" " * (LIMIT - len(JSON)), 1)
        assert values_of(client.ask(post(INFER, fits, "Content-Encoding: gzip"))) == [1.5]
        over = gzip.compress(JSON + b" " * (LIMIT - len(JSON) + 1), 1)
        assert client.ask(post(INFER, over, "Content-Encoding: gzip")).error == TOO_LARGE


def test_header_length_is_of_the_inflated_body(server: ServerProcess) -> None:
    body, size = binary_body(fp32([1, 2]), [1, 2])
    small = gzip.compress(body)
    with Client(server.http) as client:
        header = "Content-Encoding: gzip"
        good = client.ask(post(INFER, small, header, f"Inference-Header-Content-Length: {size}"))
        assert values_of(good) == [1, 2]
        bad = client.ask(post(INFER, small, header, f"Inference-Header-Content-Length: {len(body) + 1}"))
        assert bad.error == f"inference header size should be in range (0, {len(body)}), got: {len(body) + 1}"
