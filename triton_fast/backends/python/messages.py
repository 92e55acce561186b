"""What a worker asks of the server over its control socket: log, model control, metrics.

Runs on the supervisor's thread, but for model control, which gets threads of its own. Nothing here trusts a field.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from triton_fast.backends.host import Caller, Host
from triton_fast.backends.python import frames
from triton_fast.backends.python.frames import BadFrame, Message
from triton_fast.errors import InvalidArg, ServerError
from triton_fast.observability import log
from triton_fast.observability.custom import CustomScope

MAX_FILES = 10_000
# A worker's own numbers of what it made.
MAX_HELD = 65536


class Process(Protocol):
    """What is needed of a worker process here."""

    def send(self, message: Message, blob: bytes = b"") -> None: ...
    def serve(self, call: int, outcome: Callable[[], object]) -> None: ...


class WorkerMessages:
    """The messages of one worker process, from its start to its end.

    Parameters
    ----------
    fields
        Whose worker it is, for the log: ``Launch.fields``.
    is_loading
        Whether the model is being loaded still: what it then asks for must not wait for itself.
    """

    def __init__(self, host: Host, fields: Mapping[str, Any], is_loading: Callable[[], bool]) -> None:
        self._host = host
        self._fields = dict(fields)
        self._is_loading = is_loading
        self._scope: CustomScope = host.metrics.scope()
        # The worker's numbers -> the scope's.
        self._families: dict[int, int] = {}
        self._metrics: dict[int, int] = {}
        self._handlers: dict[str, Callable[[Process, Message, bytes], None]] = {
            "log": self._log,
            "load_model": self._load_model,
            "unload_model": self._unload_model,
            "is_model_ready": self._is_model_ready,
            "metric_family": self._metric_family,
            "metric": self._metric,
            "metric_update": self._metric_update,
            "metric_value": self._metric_value,
            "metric_drop": self._metric_drop,
            "metric_family_drop": self._metric_family_drop,
            "finalized": self._finalized,
        }

    def take(self, process: Process, message: Message, blob: bytes) -> None:
        """Act on one message. Raises BadFrame."""
        handler = self._handlers.get(message["type"])
        if handler is None:
            raise BadFrame(f"a message of unknown type {message['type'][:64]!r}")
        handler(process, message, blob)

    def close(self) -> None:
        """Let go of the worker's metrics."""
        self._scope.close()

    # ---- log

    def _log(self, process: Process, message: Message, blob: bytes) -> None:
        level = frames.whole(message, "level", 0, 3)
        text = frames.text(message, "message")
        file = os.path.basename(frames.text(message, "file", frames.MAX_NAME))
        source = (file, frames.whole(message, "line"))
        about = {key: frames.text(message, key, frames.MAX_NAME) for key in ("id", "ids", "trace") if message.get(key)}
        fields = {**self._fields, **about}
        if level == 3:
            log.verbose(1, text, source=source, **fields)
        else:
            (log.info, log.warning, log.error)[level](text, source=source, **fields)

    def _finalized(self, process: Process, message: Message, blob: bytes) -> None:
        if message.get("error") is not None:
            text = frames.text(message, "error")
            log.error(f"Failed to finalize: {text}", **self._fields)

    # ---- model control

    def _caller(self) -> Caller:
        return Caller(str(self._fields["model"]), self._is_loading())

    def _load_model(self, process: Process, message: Message, blob: bytes) -> None:
        name = frames.text(message, "model", frames.MAX_NAME)
        config = frames.text(message, "config") if message.get("config") is not None else ""
        files = _files(message.get("files"), blob)
        self._serve(process, message, lambda: self._host.control.load_model(self._caller(), name, config, files))

    def _unload_model(self, process: Process, message: Message, blob: bytes) -> None:
        name = frames.text(message, "model", frames.MAX_NAME)
        dependents = frames.flag(message, "unload_dependents")
        self._serve(process, message, lambda: self._host.control.unload_model(self._caller(), name, dependents))

    def _is_model_ready(self, process: Process, message: Message, blob: bytes) -> None:
        name = frames.text(message, "model", frames.MAX_NAME)
        version = frames.text(message, "version", frames.MAX_NAME)
        self._serve(process, message, lambda: self._host.control.is_model_ready(self._caller(), name, version))

    def _serve(self, process: Process, message: Message, function: Callable[[], object]) -> None:
        process.serve(frames.call_number(message), function)

    # ---- metrics: quick, so done here

    def _answer(self, process: Process, message: Message, function: Callable[[], object]) -> None:
        call = frames.call_number(message)
        try:
            process.send(frames.answer(call, function()))
        except ServerError as error:
            process.send(frames.failure(call, error))

    def _metric_family(self, process: Process, message: Message, blob: bytes) -> None:
        number = frames.whole(message, "family")
        name, kind = frames.text(message, "name", frames.MAX_NAME), frames.text(message, "kind", frames.MAX_NAME)
        description = frames.text(message, "description", frames.MAX_NAME)
        _check_new(number, self._families)

        def make_it() -> None:
            self._families[number] = self._scope.family(name, description, kind)

        self._answer(process, message, make_it)

    def _metric(self, process: Process, message: Message, blob: bytes) -> None:
        number, family = frames.whole(message, "metric"), frames.whole(message, "family")
        _check_new(number, self._metrics)
        labels, buckets = message.get("labels"), message.get("buckets")
        if not isinstance(labels, dict) or not (buckets is None or isinstance(buckets, list)):
            raise BadFrame("'metric' with bad labels or buckets")

        def make_it() -> None:
            if not all(isinstance(value, str) for value in labels.values()):
                raise InvalidArg("attempt to access JSON non-string as string")
            if family not in self._families:
                raise InvalidArg("no such metric family")
            bounds = [frames.number({"type": "metric", "buckets": bound}, "buckets") for bound in buckets or ()]
            self._metrics[number] = self._scope.metric(self._families[family], labels, bounds)

        self._answer(process, message, make_it)

    def _metric_update(self, process: Process, message: Message, blob: bytes) -> None:
        number, op = frames.whole(message, "metric"), frames.text(message, "op", 64)
        value = frames.number(message, "value")
        if number not in self._metrics:
            raise BadFrame("'metric_update' of no metric")
        try:
            self._scope.update(self._metrics[number], op, value)
        except ServerError as error:
            # The worker has checked it: one that sends it all the same is not as it should be.
            raise BadFrame(f"'metric_update' that is refused: {error}") from None

    def _metric_value(self, process: Process, message: Message, blob: bytes) -> None:
        number = frames.whole(message, "metric")

        def value() -> float:
            if number not in self._metrics:
                raise InvalidArg("no such metric")
            return self._scope.value(self._metrics[number])

        self._answer(process, message, value)

    def _metric_drop(self, process: Process, message: Message, blob: bytes) -> None:
        held = self._metrics.pop(frames.whole(message, "metric"), None)
        if held is not None:
            self._scope.drop_metric(held)

    def _metric_family_drop(self, process: Process, message: Message, blob: bytes) -> None:
        held = self._families.pop(frames.whole(message, "family"), None)
        if held is not None:
            self._scope.drop_family(held)


def _check_new(number: int, held: dict[int, int]) -> None:
    if number in held or len(held) >= MAX_HELD:
        raise BadFrame("a metric with a number that is in use, or too many of them")


def _files(listed: object, blob: bytes) -> dict[str, bytes]:
    """Return the files of a load request: names and lengths from the message, contents from the blob."""
    if listed is None:
        listed = []
    if not isinstance(listed, list) or len(listed) > MAX_FILES:
        raise BadFrame("'load_model' with bad files")
    files: dict[str, bytes] = {}
    at = 0
    for entry in listed:
        if not isinstance(entry, list) or len(entry) != 2:
            raise BadFrame("'load_model' with bad files")
        name, length = entry
        if not isinstance(name, str) or type(length) is not int or not 0 <= length <= len(blob) - at or name in files:
            raise BadFrame("'load_model' with bad files")
        files[name] = blob[at : at + length]
        at += length
    if at != len(blob):
        raise BadFrame("'load_model' with bytes that belong to no file")
    return files
