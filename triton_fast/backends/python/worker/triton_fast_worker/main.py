"""The worker process: completes a configuration, or serves one instance until it is told to end."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Any

from triton_fast_worker import codec, layout, loader, runtime
from triton_fast_worker.control import Control
from triton_fast_worker.errors import TritonError, describe
from triton_fast_worker.log import LogLevel
from triton_fast_worker.model import Failed, Model
from triton_fast_worker.model_config import ModelConfig
from triton_fast_worker.outside import WorkerRuntime
from triton_fast_worker.region import OutOfMemory, Region, Ring
from triton_fast_worker.response import InferenceResponse

_PR_SET_PDEATHSIG = 1


def main(arguments: list[str]) -> int:
    """Run. ``arguments``: the descriptors of docs/python_worker.md."""
    control_fd, *fds = (int(text) for text in arguments)
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is the server's to handle
    for fd in (control_fd, *fds):
        if fd >= 0:
            os.set_inheritable(fd, False)
    control = Control(control_fd)
    message = control.next()
    if message["type"] == "auto_complete":
        _auto_complete(control, message)
        return 0
    outside = _outside(control, message, fds)
    runtime.use_everywhere(outside)
    context = message["context"]
    try:
        made = loader.load_class(context["model_path"])()
        if hasattr(made, "initialize"):
            made.initialize(message["args"])
    except BaseException as error:  # noqa: BLE001 - the load fails with it
        control.answer(message["call"], error=describe(error))
        return 1
    model = Model(
        made, path=context["model_path"], instance=context["instance_name"], decoupled=message["decoupled"],
        log_error=lambda text: outside.log(LogLevel.ERROR, __file__, 0, text),
    )  # fmt: skip
    control.handlers["is_ready"] = lambda _: model.is_ready()
    control.answer(message["call"], {"is_ready": hasattr(made, "is_ready")})
    _serve(outside, model)
    outside.executing = False
    control.send({"type": "finalized", "error": model.finalize()})
    sys.stdout.flush()
    return 0


def _outside(control: Control, message: dict[str, Any], fds: list[int]) -> WorkerRuntime:
    region = Region(fds[0])
    work, answers, done, events = (Ring(region, number, fd) for number, fd in enumerate(fds[1:]))
    return WorkerRuntime(
        control, region, (work, answers, done, events), inputs=message["inputs"], outputs=message["outputs"],
        decoupled=message["decoupled"], context=message["context"],
    )  # fmt: skip


def _auto_complete(control: Control, message: dict[str, Any]) -> None:
    context = message["context"]
    try:
        made = loader.load_class(context["model_path"])
        config = message["config"]
        if hasattr(made, "auto_complete_config"):
            completed = made.auto_complete_config(ModelConfig(config))
            if not isinstance(completed, ModelConfig):
                control.answer(
                    message["call"],
                    error=f"auto_complete_config function in model '{context['model_name']}' must return a valid "
                    "pb.ModelConfig object.",
                )
                return
            config = completed.as_dict()
        control.answer(message["call"], config)
    except BaseException as error:  # noqa: BLE001 - the load fails with it
        control.answer(message["call"], error=describe(error))


def _serve(outside: WorkerRuntime, model: Model) -> None:
    """Execute until the server says that it is enough."""
    while True:
        kind, number, off, size, arg = outside.work.wait()
        if kind == layout.WORK_EXECUTE:
            _execute(outside, model, number, off, size)
        elif kind == layout.WORK_TRIM:
            outside.region.trim(arg)
        elif kind == layout.WORK_FINALIZE:
            return


def _execute(outside: WorkerRuntime, model: Model, number: int, off: int, size: int) -> None:
    requests = codec.decode_batch(
        outside.region, off, size, outside.inputs, outside.outputs, outside.model, outside.origin
    )
    for request in requests:
        request._origin.wanted = request._wanted
    outside.executing = True
    try:
        outcomes = model.execute(requests)
    except Failed as error:
        _fail(outside, number, str(error))
        return
    if not outside.decoupled:
        outside.executing = False
    if outcomes is None:
        outside.done.publish(layout.DONE_EXECUTED, number)
        return
    try:
        _answer(outside, number, requests, outcomes)
    except OutOfMemory:
        error = InferenceResponse([], TritonError(codec.NO_MEMORY))
        _answer(
            outside, number, requests,
            [(kind, error if kind == layout.RECORD_RESPONSE else None) for kind, _ in outcomes],
        )  # fmt: skip


def _answer(outside: WorkerRuntime, number: int, requests: list[Any], outcomes: list[Any]) -> None:
    message = codec.Message(outside.region)
    message.put(layout.DONE_HEAD.pack(len(requests), layout.NO_ERROR, 0, 0))
    for request, (kind, response) in zip(requests, outcomes):
        request._origin.put(message, kind, response, True)
    off, size = message.write()
    outside.done.publish(layout.DONE_EXECUTED, number, off, size, hold=message.held)


def _fail(outside: WorkerRuntime, number: int, text: str) -> None:
    if not outside.decoupled:
        outside.executing = False
    message = codec.Message(outside.region)
    data = text.encode("utf-8", "replace")[:65536]
    message.put(layout.DONE_HEAD.pack(0, 1, len(data), 0))
    message.put_text(data)
    off, size = message.write()
    outside.done.publish(layout.DONE_EXECUTED, number, off, size)
