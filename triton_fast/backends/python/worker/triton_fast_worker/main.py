"""The worker's life: control messages until the model is initialized, then batches until it is finalized."""

from __future__ import annotations

import contextlib
import json
import queue
import signal
import sys
import threading
import time
import traceback
from types import FrameType
from typing import Any

from . import cores, loader, runtime
from .control import Control, cut
from .errors import TritonModelException, describe
from .layout import WORK_EXECUTE, WORK_FINALIZE, WORK_TRIM

_SETTLE_S = 5.0
_RETRY_S = 0.001


class Worker:
    def __init__(self, control_fd: int, region_fds: list[int]) -> None:
        self._fds = region_fds
        self._orders: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._control = Control(control_fd, self._on_message)
        self._runtime: Any = None
        self._execution: Any = None
        self._set_parent: Any = None
        self._model: Any = None
        self._client: Any = None
        self._transport: Any = None

    def run(self) -> None:
        self._control.start()
        while self._execution is None:
            # With a time limit, so that signals are seen.
            try:
                order = self._orders.get(timeout=3600)
            except queue.Empty:
                continue
            self._obey(order)
        try:
            self._serve(self._execution)
        finally:
            self._control.exit_code = 0
        self._finalize(self._execution)

    def _on_message(self, message: dict[str, Any], blob: bytes) -> None:
        if message["type"] == "is_ready":
            # A thread of its own: the model may ask the server something.
            threading.Thread(target=self._is_ready, args=(message["call"],), daemon=True).start()
        else:
            self._orders.put(message)

    def _obey(self, order: dict[str, Any]) -> None:
        call = order["call"]
        try:
            value = getattr(self, "_order_" + order["type"])(order)
        except loader.ModelText as error:
            self._control.answer(call, error=str(error))
        except BaseException as error:
            self._control.answer(call, error=describe(error))
        else:
            (self._control.answer_config if order["type"] == "auto_complete" else self._control.answer)(call, value)

    def _order_auto_complete(self, order: dict[str, Any]) -> Any:
        model = self._load(order["context"])
        config = order["config"]
        text = config if isinstance(config, str) else json.dumps(config)
        # The text names the model as the stub of that request is called.
        return loader.auto_complete(model, text, self._runtime.name)

    def _order_init(self, order: dict[str, Any]) -> Any:
        context = order["context"]
        model = self._load(context)
        from . import transport
        from .execution import Execution

        self._client = transport.load()
        self._transport = self._client.Transport(*self._fds)
        self._transport.runtime = self._runtime
        self._transport.names(order["inputs"], order["outputs"])
        self._transport.wait_for_memory(context["shm_wait"])
        self._runtime.attach(self._client, self._transport, order["decoupled"])
        self._model = loader.initialize(model, order["args"])
        self._runtime.executing = True
        self._execution = Execution(self._runtime, self._model, context["model_path"])
        return {"is_ready": hasattr(self._model, "is_ready")}

    def _load(self, context: dict[str, Any]) -> Any:
        # What the classes derive from is decided here: until now none has been imported.
        cores.use(context["native"])
        from .worker_runtime import WorkerRuntime, parent

        self._set_parent = parent.set
        self._runtime = WorkerRuntime(self._control, context)
        runtime.set_default(self._runtime)
        return loader.import_model(context)

    def _is_ready(self, call: int) -> None:
        if self._execution is None:
            self._control.answer(call, error="The model is not initialized.")
            return
        try:
            self._control.answer(call, self._execution.is_ready())
        except TritonModelException as error:
            self._control.answer(call, error=str(error))
        except BaseException as error:
            self._control.answer(call, error=describe(error))

    def _serve(self, execution: Any) -> None:
        pipe = self._transport
        while True:
            kind, number, off, length, arg = pipe.wait_work()
            if kind == WORK_EXECUTE:
                self._execute(execution, number, off, length)
            elif kind == WORK_TRIM:
                pipe.trim(arg)
            elif kind == WORK_FINALIZE:
                return

    def _execute(self, execution: Any, number: int, off: int, length: int) -> None:
        client, pipe = self._client, self._transport
        requests = client.decode_batch(pipe, off, length)
        if requests:
            self._set_parent(requests[0]._ticket)
        error, results = execution.run(requests)
        if error is None and results is None:
            pipe.publish_done(number)
            return
        if error is None:
            try:
                encoded = client.encode_done(pipe, requests, results)
            except Exception as failure:
                text = str(failure) if isinstance(failure, TritonModelException) else describe(failure)
                error = f"Failed to process the request(s) for model '{self._runtime.name}', message: {text}"
        if error is not None:
            encoded = self._failure(error)
        # Before it is published: of what the server sees as done, only the model may still view something.
        del requests, results
        pipe.publish_done(number, *encoded)

    def _failure(self, error: str) -> Any:
        while True:
            try:
                return self._client.encode_failure(self._transport, error)
            except TritonModelException:
                # Outbound memory is full of responses that clients still read.
                time.sleep(_RETRY_S)

    def _finalize(self, execution: Any) -> None:
        self._runtime.executing = False
        execution.stop()
        text = None
        try:
            loader.finalize(self._model)
        except BaseException:
            text = traceback.format_exc()
        self._transport.settle(_SETTLE_S)
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError, AttributeError):
                stream.flush()
        self._control.tell({"type": "finalized", "error": text and cut(text)})


def _ignore(number: int, frame: FrameType | None) -> None:
    """Signals to the server's group are the server's business; it ends its workers itself."""


def main(argv: list[str]) -> None:
    control_fd, *region_fds = map(int, argv)
    signal.signal(signal.SIGINT, _ignore)
    signal.signal(signal.SIGTERM, _ignore)
    Worker(control_fd, region_fds).run()
