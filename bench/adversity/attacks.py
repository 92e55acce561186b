"""The attacks by name: every flood of tests/helpers/h2attacks.py, and clients that are slow, idle, or only large."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from multiprocessing.sharedctypes import Synchronized

from tests.helpers.h2attacks import FLOODS, flood
from tests.helpers.h2raw import (
    INITIAL_WINDOW,
    STREAM_CALL,
    Address,
    Http2,
    bytes_message,
    infer_message,
    message,
    repeat_message,
)  # fmt: skip

Attack = Callable[[Address], object]


def stall(address: Address) -> None:
    """300 answers of 60 kB and a decoupled stream that nobody takes."""
    with Http2(address, {INITIAL_WINDOW: 0}) as client:
        for _ in range(300):
            client.call(bytes_message(bytes(60_000)))
        client.open(STREAM_CALL, message(repeat_message(range(5000))))
        client.sync()


def drip(address: Address) -> None:
    """Unary calls, a byte a frame, each frame a packet."""
    body = message(infer_message())
    with Http2(address) as client:
        for _ in range(20):
            i = client.open()
            for k in range(len(body)):
                client.send(b"\0\0\1\0" + bytes([k == len(body) - 1]) + i.to_bytes(4, "big") + body[k : k + 1])
            client.answer(i)


def large(address: Address) -> None:
    """Honest calls of a megabyte each, to compare with."""
    payload = message(bytes_message(bytes(1 << 20)))
    with Http2(address) as client:
        for _ in range(20):
            client.ask_large(payload)


def connects(address: Address) -> None:
    for _ in range(200):
        Http2(address).close()


ATTACKS: dict[str, Attack] = {
    **{name: lambda address, name=name: flood(address, name) for name in FLOODS},  # type: ignore[misc]
    "windows of nothing": stall, "a byte a packet": drip, "connections": connects, "(honest large calls)": large,
}  # fmt: skip


def repeat(address: Address, name: str, times: Synchronized[int]) -> None:
    """Attack until this process is ended."""
    while True:
        with contextlib.suppress(OSError):
            ATTACKS[name](address)
        times.value += 1
