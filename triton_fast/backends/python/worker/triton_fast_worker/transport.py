"""The pure-Python transport, and the seam at which the compiled client replaces it.

``load()`` returns a namespace; native_transport.py is a module that has the same names:

- ``Transport(region_fd, work_fd, answers_fd, done_fd, events_fd)`` with the public methods of the class below. All are
  safe in any thread, except that one thread at a time waits for work and one for answers.
- ``decode_batch(transport, off, len) -> list[InferenceRequest]``: an execution's requests. The allocation stays leased
  while anything views it. ``encode_done(transport, requests, results) -> encoded``: ``results`` has for each request an
  InferenceResponse or one of response.BY_SENDER, response.REQUEUED. ``encode_failure(transport, text)`` likewise.
- ``encode_response(transport, ticket, response | None, wanted, flags) -> encoded``: of a sender.
- ``encode_bls(transport, request, options, parent) -> encoded``;
  ``decode_answer(transport, off, len) -> (kind, response)``.

``*encoded`` goes to publish_done or publish_event after the message's number; besides offset and length it may have
what must be kept until the server has taken the message. A ticket is ``(slot, generation)``. What cannot be allocated
raises TritonModelException.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

from . import byte_tensors, codec, cores
from .errors import TritonError, TritonModelException
from .gate import Gate
from .heap import Heap
from .layout import (
    ANSWER_RESPONSE,
    CANCEL_OFF,
    DONE_BATCH,
    EVENT_RESPONSE,
    HOLD_OFF,
    RING_ANSWERS,
    RING_DONE,
    RING_EVENTS,
    RING_WORK,
    WORDS,
)  # fmt: skip
from .region import Region
from .rings import Message, Ring
from .runtime import Runtime

_HELD_LOOK_S = 0.002
_MEMORY_LOOK_S, _MEMORY_LOOK_MOST_S = 0.00005, 0.002


class Transport:
    """``runtime``, ``inputs`` and ``outputs`` are set before the first batch is decoded."""

    __slots__ = (
        "_answers", "_done", "_events", "_gate", "_held", "_work", "decode_bytes", "encode_bytes", "heap", "inputs",
        "output_index", "outputs", "region", "runtime", "wait_s", "wanted",
    )  # fmt: skip

    def __init__(self, region_fd: int, work_fd: int, answers_fd: int, done_fd: int, events_fd: int) -> None:
        self.region = Region(region_fd)
        self.heap = Heap(self.region)
        self._work = Ring(self.region, RING_WORK, work_fd)
        self._answers = Ring(self.region, RING_ANSWERS, answers_fd)
        self._done = Ring(self.region, RING_DONE, done_fd)
        self._events = Ring(self.region, RING_EVENTS, events_fd)
        self._work.listen()
        self._answers.listen()
        self._gate = Gate()
        # Leases of outputs sent by reference, until the server has counted its own reference.
        self._held: list[tuple[Ring, int, Sequence[Any]]] = []
        self.runtime: Runtime = Runtime()
        self.inputs: list[str] = []
        self.outputs: list[str] = []
        self.output_index: dict[str, int] = {}
        self.wanted: dict[bytes, frozenset[str]] = {}
        self.encode_bytes = byte_tensors.encode_bytes
        self.wait_s = 30.0

    def names(self, inputs: list[str], outputs: list[str]) -> None:
        """The tensors of the model, in the order of its configuration."""
        self.inputs, self.outputs = inputs, outputs
        self.output_index = {name: index for index, name in enumerate(outputs)}

    def wait_work(self) -> Message:
        """The next message of the server; releases the GIL while it waits."""
        while self._held:
            message = self._work.wait(_HELD_LOOK_S)
            if message is not None:
                return message
            self.drop_taken()
        message = self._work.wait()
        assert message is not None
        return message

    def take_answer(self, timeout: float | None = None) -> Message | None:
        """The next answer to a BLS request; None when none came within ``timeout`` seconds."""
        return self._answers.wait(timeout)

    def publish_done(self, number: int, off: int = 0, length: int = 0, held: Sequence[Any] = ()) -> None:
        self._publish(self._done, DONE_BATCH, number, off, length, held)

    def publish_event(
        self, kind: int, number: int, off: int = 0, length: int = 0, held: Sequence[Any] = ()
    ) -> None:
        self._publish(self._events, kind, number, off, length, held)

    def release(self, off: int, length: int) -> None:
        """Give back an answer that is not decoded."""
        self.region.release(off)

    def wait_for_memory(self, seconds: float) -> None:
        """How long a message waits for the server to read what it has."""
        self.wait_s = seconds

    def allocate(self, nbytes: int, tickets: Sequence[tuple[int, int]] = ()) -> int:
        """Outbound memory for a message that belongs to these requests. Offset of the data.

        Waits for the server to read what it has, but not longer than one of the requests is wanted.
        """
        until, pause = 0.0, _MEMORY_LOOK_S
        while True:
            with self._gate:
                try:
                    return self.heap.allocate(nbytes)
                except TritonModelException:
                    if not self.heap.may_fit(nbytes):
                        raise
                    if not until:
                        until = time.monotonic() + self.wait_s
                    if time.monotonic() >= until or (tickets and all(map(self.cancelled, tickets))):
                        raise
            time.sleep(pause)
            pause = min(2 * pause, _MEMORY_LOOK_MOST_S)

    def end_later(self, ticket: tuple[int, int], error: TritonError | None) -> None:
        """For finalizers: the request's final event."""
        self._gate.later(self._end, ticket, error)

    def event_later(self, kind: int, number: int) -> None:
        """For finalizers: an event without payload."""
        self._gate.later(self._events.publish, kind, number, 0, 0)

    def trim(self, keep: int) -> None:
        with self._gate:
            self.heap.trim(keep)

    def cancelled(self, ticket: tuple[int, int]) -> bool:
        slot, generation = ticket
        return self.region.words[(CANCEL_OFF >> 2) + slot % WORDS] == generation

    def held_back(self, ticket: tuple[int, int]) -> bool:
        """Whether the server wants no further response of the request now."""
        slot, generation = ticket
        return self.region.words[(HOLD_OFF >> 2) + slot % WORDS] == generation

    def drop_taken(self) -> bool:
        """Let go of leases that the server no longer needs; whether any is left."""
        with self._gate:
            self._held = [one for one in self._held if one[1] >= one[0].taken()]
        return bool(self._held)

    def settle(self, timeout: float) -> None:
        """Before the end: wait until the server has taken everything, as long as ``timeout`` seconds."""
        until = time.monotonic() + timeout
        while self.drop_taken() and time.monotonic() < until:
            time.sleep(_HELD_LOOK_S)

    @staticmethod
    def parse_parameters(text: str) -> dict[str, Any]:
        """Parameters of a received request, for another one: numbers that are not whole cannot be passed on."""
        found: dict[str, Any] = json.loads(text) if text else {}
        return {key: value for key, value in found.items() if isinstance(value, (bool, int, str))}

    def _publish(self, ring: Ring, kind: int, number: int, off: int, length: int, held: Sequence[Any]) -> None:
        gone: Any = None
        with self._gate:
            at = ring.publish(kind, number, off, length)
            if self._held:
                gone, self._held = self._held, [one for one in self._held if one[1] >= one[0].taken()]
            if held:
                self._held.append((ring, at, held))
        del gone  # finalizers of leases run here, outside

    def _end(self, ticket: tuple[int, int], error: TritonError | None) -> None:
        try:
            off, length = codec.encode_end(self, ticket, error)
        except TritonModelException:
            # No memory now: somebody frees some, and publishes, later.
            again = threading.Timer(0.01, self.end_later, (ticket, error))
            again.daemon = True
            again.start()
            return
        self._events.publish(EVENT_RESPONSE, 0, off, length)


PURE = SimpleNamespace(
    Transport=Transport,
    decode_batch=codec.decode_batch,
    encode_done=codec.encode_done,
    encode_failure=codec.encode_failure,
    encode_response=codec.encode_response,
    encode_bls=codec.encode_bls,
    decode_answer=codec.decode_answer,
)
__all__ = ["ANSWER_RESPONSE", "PURE", "Transport", "load"]


def load() -> Any:
    """What the process's cores need: they and the transport are compiled both or neither."""
    if cores.client is None:
        return PURE
    from . import native_transport

    return native_transport
