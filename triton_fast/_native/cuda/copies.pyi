"""Streams, events and copies between host and device memory; device addresses are plain integers.

Errors of the driver are Internal, or Unavailable when memory ran out; each says what was asked and on which GPU.
"""

from __future__ import annotations

from typing import TypedDict

from typing_extensions import Buffer

class Stats(TypedDict):
    """Open streams, events in use, and events that are kept for reuse."""

    live_streams: int
    live_events: int
    kept_events: int

def stats() -> Stats:
    """Return the counters; exact when no other thread is at work."""

def trim() -> None:
    """Give the driver back the events that are kept."""

def look(ns: int) -> int:
    """Set how long every wait looks before it sleeps, 0: not at all; return what it was (0.1 ms, 0 on one core)."""

def wait_stream(device: int, stream: int) -> None:
    """Wait, without the GIL, until what is queued in a stream of anybody's is done; ``stream`` is the driver's handle.

    Looks for 0.1 ms, then sleeps. Raises what went wrong in the stream.
    """

class Event:
    """A mark in a stream. ``timed`` ones can tell the time between two of them."""

    def __init__(self, device: int, timed: bool = False) -> None: ...
    def wait(self) -> None:
        """Sleep, without the GIL, until the mark is reached; at once where it was never recorded."""

    def done(self) -> bool:
        """Tell whether the mark is reached."""

    def ms_since(self, earlier: Event) -> float:
        """Return the milliseconds between two timed marks that are reached."""

class Stream:
    """A stream of a device. Copies return at once where the host memory is pinned, and both sides' memory must then
    stay as it is until `wait`, or the wait for an event recorded after them, has returned."""

    device: int

    def __init__(self, device: int) -> None: ...
    @property
    def handle(self) -> int:
        """The driver's handle, which is the runtime API's too."""

    def copy_in(self, dst: int, data: Buffer) -> None:
        """Copy host bytes to device memory."""

    def copy_out(self, into: Buffer, src: int) -> None:
        """Copy device memory to host bytes."""

    def copy_device(self, dst: int, src: int, n: int) -> None:
        """Copy within the device's memory."""

    def copy_peer(self, dst: int, to: int, src: int, origin: int, n: int) -> None:
        """Copy from memory of device ``origin`` to that of device ``to``."""

    def fill(self, dst: int, value: int, n: int) -> None:
        """Set bytes of device memory."""

    def record(self, event: Event) -> None:
        """Mark the end of what is queued now."""

    def follow(self, event: Event) -> None:
        """Have what is queued from now on begin after the mark; does not wait."""

    def wait(self) -> None:
        """Sleep, without the GIL, until what was queued is done. Raises what went wrong in it."""
