"""Running execute on a batch: the rules for what it returns, coroutines, and what each request gets.

Knows only the runtime: a model in the server's own process is run by the same code.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import threading
from typing import Any

from . import tracing
from .errors import TritonError, TritonModelException, describe
from .request import RELEASE_RESCHEDULE, InferenceRequest
from .response import BY_SENDER, REQUEUED, InferenceResponse
from .runtime import Runtime
from .sender import FINAL


class Execution:
    """Of one model instance. ``run`` is called by one thread at a time."""

    def __init__(self, runtime: Runtime, model: Any, model_path: str) -> None:
        self._runtime = runtime
        self._model = model
        self._model_path = model_path
        self._execute = getattr(model, "execute", None)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopped = False

    def run(self, requests: list[InferenceRequest]) -> tuple[str | None, list[Any] | None]:
        """(error, None) when all fail; else (None, results): for each request a response, BY_SENDER or REQUEUED.

        Results are None when a decoupled execution ended without anything to say.
        """
        tracing.now.requests = requests
        try:
            return self._run(requests)
        finally:
            tracing.now.requests = ()

    def _run(self, requests: list[InferenceRequest]) -> tuple[str | None, list[Any] | None]:
        try:
            if self._execute is None:
                # Looked up late: a model may get it while it runs.
                self._execute = getattr(self._model, "execute", None)
                if self._execute is None:
                    return self._fail(
                        requests, f"Python model {self._model_path} does not implement `execute` method."
                    )
            returned = self._execute(requests)
            if type(returned) is not list and asyncio.iscoroutine(returned):
                returned = self._run_coroutine(returned, requests)
        except BaseException as error:
            return self._fail(requests, describe(error))
        fault = self._fault(requests, returned)
        if fault is not None:
            return self._fail(requests, fault)
        if returned is None:
            returned = [None] * len(requests)
        results: list[Any] = []
        said = not self._runtime.decoupled
        for request, response in zip(requests, returned):
            if response is not None:
                request._answered = True
                results.append(response)
            elif request._release == RELEASE_RESCHEDULE:
                # The same request comes back as a new one.
                self._close(request)
                results.append(REQUEUED)
                said = True
            else:
                # From here on the sender's end is the request's, if it is not answered before.
                request.get_response_sender()
                results.append(BY_SENDER)
        return None, results if said else None

    def is_ready(self) -> bool:
        """The model's own opinion. TritonModelException when it is not a bool."""
        check = getattr(self._model, "is_ready", None)
        if check is None:
            return True
        result = check()
        if asyncio.iscoroutine(result):
            result = asyncio.run_coroutine_threadsafe(result, self._event_loop()).result()
        if not isinstance(result, bool):
            raise TritonModelException("is_ready() must return a boolean value")
        return result

    def stop(self) -> None:
        """Before finalize: no coroutine goes on."""
        self._stopped = True
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # closed already
                self._loop.call_soon_threadsafe(self._loop.stop)

    def _fault(self, requests: list[InferenceRequest], returned: Any) -> str | None:
        """What is wrong with the value of execute, None for nothing; responses are counted as sent."""
        if returned is None:
            return None
        if self._runtime.decoupled:
            return (
                f"Python model '{self._runtime.name}' is using the decoupled mode and the execute function must return "
                "None."
            )
        if not isinstance(returned, list):
            return f"Expected a list in the execute return, found type '{type(returned)}'."
        if len(returned) != len(requests):
            return (
                "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
                f"InferenceRequest(s) size is:{len(requests)}, and InferenceResponse(s) size is:{len(returned)}\n"
            )
        for request, response in zip(requests, returned):
            if response is None:
                continue
            if request._release == RELEASE_RESCHEDULE:
                return (
                    "Expected a None object in the execute function return list for reschduled request, found type "
                    f"'{type(response)}'."
                )
            if not isinstance(response, InferenceResponse):
                return (
                    "Expected an 'InferenceResponse' object in the execute function return list, found type "
                    f"'{type(response)}'."
                )
            sender = getattr(request, "_sender", None)
            if sender is not None:
                try:
                    sender.account(response, FINAL)
                except TritonModelException as error:
                    return str(error)
        return None

    def _fail(self, requests: list[InferenceRequest], text: str) -> tuple[str, None]:
        message = self._message(text)
        for request in requests:
            self._close(request)
        self._runtime.log(2, "pb_stub.cc", 0, message)
        return message, None

    def _message(self, text: str) -> str:
        return f"Failed to process the request(s) for model '{self._runtime.name}', message: {text}"

    @staticmethod
    def _close(request: InferenceRequest) -> None:
        request._answered = True
        sender = getattr(request, "_sender", None)
        if sender is not None:
            sender.close()

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            asyncio.set_event_loop(self._loop)
            threading.Thread(target=self._run_loop, args=(self._loop,), name="triton_fast loop", daemon=True).start()
        return self._loop

    def _run_loop(self, loop: asyncio.AbstractEventLoop) -> None:
        while not self._stopped:
            # SystemExit and KeyboardInterrupt leave the loop, too, though a coroutine's belongs to its requests only.
            with contextlib.suppress(SystemExit, KeyboardInterrupt):
                loop.run_forever()
        loop.close()

    def _run_coroutine(self, coroutine: Any, requests: list[InferenceRequest]) -> Any:
        token = tracing.told.set(tracing.about_of(requests))
        try:
            context = contextvars.copy_context()
            future = asyncio.run_coroutine_threadsafe(coroutine, self._event_loop())
        finally:
            tracing.told.reset(token)
        if not self._runtime.decoupled:
            return future.result()
        # Not waited for: the next batch starts meanwhile.
        senders = [request.get_response_sender() for request in requests]
        future.add_done_callback(lambda done: context.run(self._background_done, done, senders))
        return None

    def _background_done(self, future: Any, senders: list[Any]) -> None:
        error = future.exception() if not future.cancelled() else None
        if error is None:
            return
        text = self._message(describe(error))
        self._runtime.log(2, "pb_stub.cc", 0, text)
        for sender in senders:
            if not sender.closed():
                try:
                    sender.send(InferenceResponse([], TritonError(text)), FINAL)
                except TritonModelException as failure:
                    self._runtime.log(2, "pb_stub.cc", 0, str(failure))
