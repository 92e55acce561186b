"""``WorkerRuntime``: the outside of a model in a worker process, over the rings and the control socket."""

from __future__ import annotations

import collections
import itertools
import threading
import time
from typing import Any, Optional

from triton_fast_worker import codec, layout
from triton_fast_worker.control import Control
from triton_fast_worker.errors import TritonError, TritonModelException
from triton_fast_worker.region import OutOfMemory, Region, Ring
from triton_fast_worker.request import InferenceRequest
from triton_fast_worker.response import InferenceResponse
from triton_fast_worker.runtime import Origin, Runtime

_HOLD_S = 0.0005


class WorkerOrigin(Origin):
    """A request that the server has written into the region."""

    __slots__ = ("_generation", "_outside", "_slot", "wanted")

    def __init__(self, outside: WorkerRuntime, slot: int, generation: int) -> None:
        super().__init__(outside.decoupled)
        self._outside = outside
        self._slot = slot
        self._generation = generation
        self.wanted: Optional[list[str]] = None

    def cancelled(self) -> bool:
        return self._outside.region.words[(layout.CANCEL_AT >> 2) + self._slot] == self._generation

    def send(self, response: Optional[InferenceResponse], final: bool) -> None:
        words, hold = self._outside.region.words, (layout.HOLD_AT >> 2) + self._slot
        while words[hold] == self._generation and not self.cancelled():
            time.sleep(_HOLD_S)
        kind = layout.RECORD_NONE if response is None else layout.RECORD_RESPONSE
        try:
            self._publish(kind, response, final)
        except OutOfMemory:
            self._publish(layout.RECORD_RESPONSE, InferenceResponse([], TritonError(codec.NO_MEMORY)), final)

    def _publish(self, kind: int, response: Optional[InferenceResponse], final: bool) -> None:
        outside = self._outside
        message = codec.Message(outside.region)
        self.put(message, kind, response, final)
        off, size = message.write()
        outside.events.publish(layout.EVENT_RESPONSE, 0, off, size, hold=message.held)

    def put(self, message: codec.Message, kind: int, response: Optional[InferenceResponse], final: bool) -> None:
        """Add a response record of this request to a message."""
        codec.put_response(
            message, kind, self._slot, self._generation, response, self._outside.output_numbers, self.wanted, final
        )


class WorkerRuntime(Runtime):
    """See ``Runtime``. ``inputs``, ``outputs``: the model's tensors in the configuration's order."""

    def __init__(
        self, control: Control, region: Region, rings: tuple[Ring, Ring, Ring, Ring], *, inputs: list[str],
        outputs: list[str], decoupled: bool, context: dict[str, Any],
    ) -> None:  # fmt: skip
        self.control = control
        self.region = region
        self.work, self.answers, self.done, self.events = rings
        self.inputs = inputs
        self.outputs = outputs
        self.output_numbers = {name: i for i, name in enumerate(outputs)}
        self.decoupled = decoupled
        self.model_dir = context["version_dir"]
        self.model = (context["model_name"], int(context.get("version", -1)))
        self.executing = False
        self._calls = itertools.count(1)
        # Raw messages by call; who waits reads the ring for all others too, if nobody does already.
        self._arrived: dict[int, collections.deque[tuple[int, int]]] = {}
        self._arrival = threading.Condition()
        self._reading = False
        self.work.expect()
        self.answers.expect()

    def origin(self, slot: int, generation: int) -> WorkerOrigin:
        return WorkerOrigin(self, slot, generation)

    # ---- requests to other models

    def _start(self, request: InferenceRequest, options: int) -> int:
        if not self.executing:
            raise TritonModelException("BLS is only supported during the 'execute' function.")
        message = codec.Message(self.region)
        codec.put_call(message, request, options)
        off, size = message.write()
        call = next(self._calls)
        with self._arrival:
            self._arrived[call] = collections.deque()
        self.events.publish(layout.EVENT_BLS, call, off, size, hold=message.held)
        return call

    def _next(self, call: int) -> tuple[Optional[InferenceResponse], bool]:
        while True:
            with self._arrival:
                while self._reading and not self._arrived[call]:
                    self._arrival.wait()
                if self._arrived[call]:
                    off, size = self._arrived[call].popleft()
                    break
                self._reading = True
            found = None
            try:
                found = self.answers.wait()
            finally:
                with self._arrival:
                    self._reading = False
                    if found is not None:
                        self._file(*found[1:4])
                    self._arrival.notify_all()
        response, final = codec.decode_answer(self.region, off, size)
        if final:
            with self._arrival:
                self._arrived.pop(call, None)
        return response, final

    def _file(self, call: int, off: int, size: int) -> None:
        waiting = self._arrived.get(call)
        if waiting is not None:
            waiting.append((off, size))
        else:
            self.region.lease(off, size)  # nobody wants it: dropped, its memory is the server's again

    def execute(self, request: InferenceRequest) -> InferenceResponse:
        try:
            call = self._start(request, layout.BLS_WAITS)
        except OutOfMemory:
            return InferenceResponse([], TritonError(codec.NO_MEMORY))
        response, _ = self._next(call)
        return response if response is not None else InferenceResponse([], TritonError("Unexpected empty response."))

    def stream(self, request: InferenceRequest) -> ResponseIterator:
        return ResponseIterator(self, self._start(request, layout.BLS_STREAM | layout.BLS_WAITS))

    def forget(self, call: int) -> None:
        """Nobody reads the rest of a stream."""
        with self._arrival:
            left = self._arrived.pop(call, ())
        for off, size in left:
            self.region.lease(off, size)
        self.events.publish(layout.EVENT_BLS_CLOSED, call)

    def cancel(self, call: int) -> None:
        self.events.publish(layout.EVENT_BLS_CANCEL, call)

    # ---- the rest

    def log(self, level: int, file: str, line: int, message: str) -> None:
        self.control.send({"type": "log", "level": level, "file": file, "line": line, "message": message})

    def ask(self, kind: str, blob: bytes = b"", **fields: Any) -> Any:
        return self.control.ask(kind, blob, **fields)

    def tell(self, kind: str, **fields: Any) -> None:
        self.control.send({"type": kind, **fields})


class ResponseIterator:
    """The responses of a request to another model. After the last one it can be iterated again."""

    def __init__(self, outside: WorkerRuntime, call: int) -> None:
        self._outside = outside
        self._call = call
        self._seen: list[InferenceResponse] = []
        self._over = False
        self._at = 0

    def __iter__(self) -> ResponseIterator:
        self._at = 0 if self._over else self._at
        return self

    def __next__(self) -> InferenceResponse:
        if self._over:
            if self._at >= len(self._seen):
                raise StopIteration
            self._at += 1
            return self._seen[self._at - 1]
        response, self._over = self._outside._next(self._call)
        found = response if response is not None else InferenceResponse()
        self._seen.append(found)
        self._at = len(self._seen)
        return found

    def cancel(self) -> None:
        """Ask for the request to be cancelled; its end is still to come."""
        if not self._over:
            self._outside.cancel(self._call)

    def __del__(self) -> None:
        if not self._over:
            self._outside.forget(self._call)
