"""Floods on an HTTP/2 connection as functions, and a neighbour that must not notice them.

Tests ask what is answered and what is left over, bench/adversity how long the neighbour waits.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import TracebackType
from typing import NamedTuple

from tests.helpers.h2raw import (
    CALL,
    CANCEL,
    CONTINUATION,
    END_HEADERS,
    ENHANCE_YOUR_CALM,
    HEADERS,
    NO_ERROR,
    PRIORITY,
    PROTOCOL_ERROR,
    STREAM_CALL,
    Address,
    Http2,
    block,
    bytes_message,
    data,
    frame,
    head,
    infer_message,
    literal,
    message,
    number,
    ping,
    request_fields,
    rst,
    settings,
    unary,
    window,
)  # fmt: skip

LAST_ID = (1 << 31) - 1


class Neighbour:
    """A client on a thread and connection of its own that makes one small call after the other.

    ``answered`` counts; ``took`` has the seconds of each call. Leaving raises what went wrong with it.
    """

    def __init__(self, address: Address) -> None:
        self.answered = 0
        self.took: list[float] = []
        self._client = Http2(address)
        self._stop = threading.Event()
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="neighbour")

    def __enter__(self) -> Neighbour:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()
        self._client.close()
        if self._error is not None and kind is None:
            raise self._error

    def _run(self) -> None:
        payload = infer_message([1.0, 2.0])
        try:
            while not self._stop.is_set():
                began = time.perf_counter()
                assert self._client.ask(payload).values() == [1.0, 2.0]
                self.took.append(time.perf_counter() - began)
                self.answered += 1
                self._client.streams.clear()
        except BaseException as error:
            self._error = error

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()


def beside(address: Address, attack: Callable[[], object], calls: int = 20) -> int:
    """Attack, again and again, until a neighbour had so many calls answered meanwhile; how often that was."""
    with Neighbour(address) as neighbour:
        for times in itertools.count(1):
            attack()
            if neighbour.answered >= calls or not neighbour.alive:
                return times
    raise AssertionError("not reached")


# ---- floods


def joined(frames: Iterable[bytes], n: int = 2000) -> Iterator[bytes]:
    """The frames in pieces of n, so that each costs no call of its own."""
    rest = iter(frames)
    while piece := b"".join(itertools.islice(rest, n)):
        yield piece


def ids(n: int) -> range:
    return range(1, 2 * n, 2)


class Flood(NamedTuple):
    """``frames(n)``: about n frames; ``code``: of the GOAWAY that answers them, None when they are just taken."""

    frames: Callable[[int], Iterable[bytes]]
    n: int
    code: int | None = None


SLOW = infer_message([1.0], "slow")
MALFORMED = block(request_fields("/x", ("Upper", "case")))
UNKNOWN_PATH = block(request_fields("/no.Service/Method"))
# A field of nearly the table's size, and a reference to it in one byte.
LARGE_FIELD = literal("a", "b" * 4000, index=True)
REFERENCE = b"\xbe"


def hpack_bomb(n: int) -> Iterator[bytes]:
    """Each head 150 kB that stand for 600 MB."""
    for k, i in enumerate(ids(n)):
        yield frame(HEADERS, 0, i, CALL + (b"" if k else LARGE_FIELD))
        for last in (False,) * 7 + (True,):
            yield frame(CONTINUATION, END_HEADERS * last, i, REFERENCE * 16384)


def trailer_bomb(n: int) -> Iterator[bytes]:
    """The same in the fields behind a message."""
    for k, i in enumerate(ids(n)):
        yield head(i, CALL + (b"" if k else LARGE_FIELD)) + frame(HEADERS, 1, i, REFERENCE * 16384)
        for last in (False,) * 7 + (True,):
            yield frame(CONTINUATION, END_HEADERS * last, i, REFERENCE * 16384)


FLOODS: dict[str, Flood] = {
    "rapid reset": Flood(lambda n: (head(i) + rst(i) for i in ids(n)), 100_000, ENHANCE_YOUR_CALM),
    "rapid reset, no error": Flood(lambda n: (head(i) + rst(i, NO_ERROR) for i in ids(n)), 20_000, ENHANCE_YOUR_CALM),
    "rapid reset of requests": Flood(
        lambda n: (unary(i, SLOW) + rst(i, CANCEL) for i in ids(n)), 20_000, ENHANCE_YOUR_CALM),
    "rapid reset of streams": Flood(
        lambda n: (head(i, STREAM_CALL) + data(i, message(SLOW) * 3) + rst(i) for i in ids(n)), 20_000,
        ENHANCE_YOUR_CALM),
    "resets by the server": Flood(
        lambda n: (unary(i, SLOW) + window(i, LAST_ID) for i in ids(n)), 20_000, ENHANCE_YOUR_CALM),
    "malformed heads": Flood(lambda n: (head(i, MALFORMED) for i in ids(n)), 20_000, ENHANCE_YOUR_CALM),
    "unknown methods": Flood(lambda n: (head(i, UNKNOWN_PATH, end=True) for i in ids(n)), 20_000),
    "endless head": Flood(
        lambda n: itertools.chain(
            [frame(HEADERS, 0, 1, CALL)], (frame(CONTINUATION, 0, 1, literal("a", "b" * 100)) for _ in range(n))),
        10_000, ENHANCE_YOUR_CALM),
    "empty continuations": Flood(
        lambda n: itertools.chain([frame(HEADERS, 0, 1, CALL)], (frame(CONTINUATION, 0, 1) for _ in range(n))),
        50_000, ENHANCE_YOUR_CALM),
    "pings": Flood(lambda n: (ping() for _ in range(n)), 50_000, ENHANCE_YOUR_CALM),
    "pings in a call": Flood(lambda n: itertools.chain([head(1)], (ping() for _ in range(n))), 50_000,
                             ENHANCE_YOUR_CALM),
    "settings": Flood(lambda n: (settings({4: 65535}) for _ in range(n)), 50_000, ENHANCE_YOUR_CALM),
    "many settings in one": Flood(
        lambda n: (frame(4, 0, 0, b"\0\4\0\0\xff\xff" * 2700) for _ in range(n)), 10, ENHANCE_YOUR_CALM),
    "ping answers": Flood(lambda n: (ping(ack=True) for _ in range(n)), 100_000),
    "window updates": Flood(lambda n: (window(0, 1) for _ in range(n)), 100_000),
    "priorities": Flood(lambda n: (frame(PRIORITY, 0, i, b"\0\0\0\0\1") for i in ids(n)), 100_000),
    "unknown frames": Flood(lambda n: (frame(77, 255, i, b"x" * 10) for i in ids(n)), 100_000),
    "empty data": Flood(lambda n: itertools.chain([head(1)], (data(1) for _ in range(n))), 100_000),
    "single bytes of data": Flood(
        lambda n: itertools.chain([head(1), data(1, message(bytes_message(bytes(n)))[:5])],
                                  (data(1, b"\x0a") for _ in range(n))), 50_000),
    "data on a closed stream": Flood(
        lambda n: itertools.chain([head(1) + rst(1)], (data(1, bytes(16384)) for _ in range(n))), 2_000),
    "hpack bomb": Flood(hpack_bomb, 20, ENHANCE_YOUR_CALM),
    "hpack bomb in trailers": Flood(trailer_bomb, 20, ENHANCE_YOUR_CALM),
    "table size updates": Flood(
        lambda n: (head(i, number(4096, 5, 0x20) * 2000 + CALL, end=True) for i in ids(n)), 100),
    "padding": Flood(
        lambda n: itertools.chain([head(1)], (frame(0, 8, 1, b"\xff" + bytes(255)) for _ in range(n))), 4_000),
    "empty streams": Flood(lambda n: (head(i) for i in ids(n)), 10_000, PROTOCOL_ERROR),
}  # fmt: skip


def flood(address: Address, name: str, share: float = 1.0) -> Http2:
    """Send one flood on a connection of its own; return the connection, with all that was answered, closed."""
    kind = FLOODS[name]
    with Http2(address) as client:
        client.sync()
        sent = client.send_until_refused(joined(kind.frames(max(1, int(kind.n * share)))))
        if kind.code is None:
            assert sent, f"refused: {client.code}"
            client.sync()
        else:
            client.drain()
        return client
