"""A model's object and the rules of its methods, wherever it runs."""

from __future__ import annotations

import asyncio
import inspect
import threading
from typing import Any, Callable, Optional

from triton_fast_worker import layout
from triton_fast_worker.errors import TritonModelException, describe
from triton_fast_worker.request import RELEASE_RESCHEDULE, InferenceRequest
from triton_fast_worker.response import InferenceResponse

# What becomes of a request after an execution: its kind of record, and the response if that is one.
Outcome = tuple[int, Optional[InferenceResponse]]


class Failed(Exception):
    """Every request of an execution fails with this text."""


class Model:
    """An instance of ``TritonPythonModel``.

    Parameters
    ----------
    made : object
        The user's object.
    path, instance : str
        For error texts.
    log_error : callable
        Takes a line for the log.
    """

    def __init__(
        self, made: Any, *, path: str, instance: str, decoupled: bool, log_error: Callable[[str], None]
    ) -> None:
        self._made = made
        self._path = path
        self._instance = instance
        self._decoupled = decoupled
        self._log_error = log_error
        self._loop: Optional[asyncio.AbstractEventLoop] = None
        self._loop_lock = threading.Lock()

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        """Return the loop for coroutines, on a thread of its own from the first time on."""
        with self._loop_lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="coroutines", daemon=True).start()
            return self._loop

    def execute(self, requests: list[InferenceRequest]) -> Optional[list[Outcome]]:
        """Run ``execute``: what becomes of each request, None for a decoupled model. Raises Failed."""
        try:
            if not hasattr(self._made, "execute"):
                raise TritonModelException(f"Python model {self._path} does not implement `execute` method.")
            result = self._made.execute(requests)
            if inspect.iscoroutine(result):
                running = asyncio.run_coroutine_threadsafe(result, self._event_loop())
                if self._decoupled:
                    running.add_done_callback(lambda done: self._coroutine_done(done, requests))
                    return None
                result = running.result()
        except BaseException as error:  # noqa: BLE001 - whatever the model raises is its requests' answer
            raise Failed(self._text(error)) from None
        if self._decoupled:
            if result is not None:
                raise Failed(
                    self._wrap(
                        f"Python model '{self._instance}' is using the decoupled mode and the execute function must "
                        "return None."
                    )
                )
            return None
        return self._outcomes(requests, result)

    def _wrap(self, text: str) -> str:
        return f"Failed to process the request(s) for model '{self._instance}', message: {text}"

    def _text(self, error: BaseException) -> str:
        if isinstance(error, TritonModelException) and error.__traceback__ is not None:
            own = str(error)
            if own.endswith("does not implement `execute` method."):
                return self._wrap(own)
        return self._wrap(describe(error))

    def _coroutine_done(self, done: Any, requests: list[InferenceRequest]) -> None:
        error = done.exception()
        if error is None:
            if done.result() is not None:
                self._log_error(
                    f"Python model '{self._instance}' is using the decoupled mode and the execute function must return "
                    "None."
                )
            return
        from triton_fast_worker.errors import TritonError

        text = self._text(error)
        self._log_error(text)
        for request in requests:
            origin = request._origin
            if origin is not None and not origin.closed:
                origin.closed = True
                origin.send(InferenceResponse([], TritonError(text)), True)

    def _outcomes(self, requests: list[InferenceRequest], result: Any) -> list[Outcome]:
        if not isinstance(result, list):
            raise Failed(self._wrap(f"Expected a list in the execute return, found type '{type(result)}'."))
        if len(result) != len(requests):
            raise Failed(
                self._wrap(
                    "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
                    f"InferenceRequest(s) size is:{len(requests)}, and InferenceResponse(s) size is:{len(result)}\n"
                )
            )
        found: list[Outcome] = []
        for request, response in zip(requests, result):
            origin = request._origin
            assert origin is not None
            if origin.release == RELEASE_RESCHEDULE:
                if response is not None:
                    raise Failed(
                        self._wrap(
                            "Expected a None object in the execute function return list for reschduled request, found "
                            f"type '{type(response)}'."
                        )
                    )
                found.append((layout.RECORD_RESCHEDULED, None))
            elif response is None and origin.answered:
                found.append((layout.RECORD_BY_SENDER, None))
            elif not isinstance(response, InferenceResponse):
                raise Failed(
                    self._wrap(
                        "Expected an 'InferenceResponse' object in the execute function return list, found type "
                        f"'{type(response)}'."
                    )
                )
            elif origin.answered:
                raise Failed(
                    self._wrap("Unable to send response. Non-decoupled model cannot send more than one response.")
                )
            else:
                found.append((layout.RECORD_RESPONSE, response))
        for request in requests:
            if request._origin is not None:
                request._origin.answered = request._origin.closed = True
        return found

    def is_ready(self) -> bool:
        """Ask the user's ``is_ready``; True when there is none. Raises what it does, TypeError for no bool."""
        if not hasattr(self._made, "is_ready"):
            return True
        result = self._made.is_ready()
        if inspect.iscoroutine(result):
            result = asyncio.run_coroutine_threadsafe(result, self._event_loop()).result()
        if not isinstance(result, bool):
            raise TypeError("is_ready() must return a boolean value")
        return result

    def finalize(self) -> Optional[str]:
        """Run the user's ``finalize``; return the text of its exception, or None."""
        try:
            if hasattr(self._made, "finalize"):
                self._made.finalize()
        except BaseException as error:  # noqa: BLE001 - logged by the server
            return describe(error)
        return None
