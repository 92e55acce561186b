"""Models in the server's own process: imported, initialized, run on their instances' own threads, finalized.

The rules of ``execute`` are those of triton_fast_worker.execution. Imported with the first such model (in_process.py).
"""

from __future__ import annotations

import json
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from triton_fast_worker import errors, execution, loader, pure_cores, runtime, tensor
from triton_fast_worker.request import InferenceRequest
from triton_fast_worker.response import BY_SENDER, REQUEUED

from triton_fast._native.pyworker.client import decode_bytes
from triton_fast._native.pyworker.local import LocalInstance, LocalRequest
from triton_fast._native.sched.instance import NativeInstance
from triton_fast.backends.base import BackendModel, InstanceSpec
from triton_fast.backends.python import deadlock
from triton_fast.backends.python.in_process_import import ModelPackage
from triton_fast.backends.python.in_process_runtime import RUNTIMES, LocalRuntime, prepared
from triton_fast.backends.python.instance import READY_LIMIT_S
from triton_fast.backends.python.native import Call
from triton_fast.backends.python.plan import ModelPlan
from triton_fast.backends.python.readiness import told_ready
from triton_fast.config import to_json
from triton_fast.errors import Code, Internal, ServerError
from triton_fast.observability import log

T = TypeVar("T")
_LOOK_S = 0.005
_RESCHEDULED = (
    "Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not configured to handle "
    "such a flag."
)

pure_cores.use_decoder(decode_bytes)
errors.hide(str(Path(__file__).parent) + "/")


def auto_complete(plan: ModelPlan) -> object:
    """Return the config as JSON, after the model's ``auto_complete_config``."""
    context = plan.context
    seat = LocalRuntime(context, context.name, False)
    package = _package(plan, [seat])
    try:
        model = _of_model(seat, lambda: loader.model_of(package.load, str(plan.model_path)))
        text = json.dumps(to_json(context.config))
        return _of_model(seat, lambda: loader.auto_complete(model, text, context.name))
    finally:
        package.close()
        seat.close()


def _package(plan: ModelPlan, runtimes: list[LocalRuntime]) -> ModelPackage:
    try:
        _, folders = loader.locate(plan.context_fields(plan.context.name))
    except loader.ModelText as error:
        raise Internal(str(error)) from None
    return ModelPackage(folders, {RUNTIMES: runtimes})


def _of_model(seat: LocalRuntime, function: Callable[[], T]) -> T:
    """Call the model outside of ``execute``. Whatever it raises becomes Internal, in Triton's words."""
    token = runtime.bind(seat)
    try:
        return function()
    except loader.ModelText as error:
        raise Internal(str(error)) from None
    except BaseException as error:
        raise Internal(errors.describe(error)) from None
    finally:
        runtime.unbind(token)


class PythonInProcessModel(BackendModel):
    """One opened version; its instances share the module, and each has an object of its own."""

    def __init__(self, plan: ModelPlan) -> None:
        self._plan = plan
        self._lock = threading.Lock()
        self._instances: list[_Instance] = []
        self._runtimes: list[LocalRuntime] = []
        self._package: ModelPackage | None = None
        self._class: Any = None
        self._is_closed = False

    def create_instance(self, spec: InstanceSpec) -> NativeInstance:
        context = self._plan.context
        decoupled = bool(context.config.model_transaction_policy.decoupled)
        with self._lock:
            seat = LocalRuntime(context, spec.name, decoupled)
            try:
                if self._package is None:
                    self._package = _package(self._plan, self._runtimes)
                self._runtimes.append(seat)
                if self._class is None:
                    load = self._package.load
                    self._class = _of_model(seat, lambda: loader.model_of(load, str(self._plan.model_path)))
                arguments = self._plan.init(spec)["args"]
                # The object is known before it is initialized: threads that it starts there may want it.
                model = _of_model(seat, lambda: loader.initialize(self._class, arguments))
            except BaseException:
                if seat in self._runtimes:
                    self._runtimes.remove(seat)
                seat.close()
                raise
            instance = _Instance(seat, model, str(self._plan.model_path))
            self._instances.append(instance)
        deadlock.shared().add(instance, context.name)
        return instance.native

    @property
    def ready_may_block(self) -> bool:
        return any(one.defines_is_ready for one in self._instances)

    def is_ready(self) -> bool:
        until = time.monotonic() + READY_LIMIT_S
        name = self._plan.context.name
        asked = [(one, one.ask_ready()) for one in self._instances if one.defines_is_ready]
        return all(
            told_ready(call, max(0.0, until - time.monotonic()), model=name, instance=one.name) for one, call in asked
        )

    def close(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
        name = self._plan.context.name
        until = time.monotonic() + float(self._plan.settings.stub_timeout_s)
        for one in self._instances:
            if not one.drain(until):
                log.error("requests are still in flight at the model's end", model=name, instance=one.name)
        for one in self._instances:
            one.close(name)
            deadlock.shared().remove(one)
        self._instances.clear()
        self._runtimes.clear()
        self._class = None
        if self._package is not None:
            self._package.close()


class _Instance:
    """One object of the model with its engine's instance; also what the deadlock detector knows of it."""

    def __init__(self, seat: LocalRuntime, model: Any, model_path: str) -> None:
        self.name = seat.name
        self.native = LocalInstance(seat.name, self._execute)
        self.defines_is_ready = hasattr(model, "is_ready")
        self._runtime = seat
        self._model = model
        self._execution = execution.Execution(seat, model, model_path)
        self._ready_call: Future[Any] | None = None
        seat.model = model
        seat.loading = False
        seat.executing = True

    # ---- execution, on the instance's thread

    def _execute(self, items: list[LocalRequest]) -> None:
        seat = self._runtime
        token = runtime.bind(seat)
        try:
            requests = [_received(seat, item) for item in items]
            error, results = self._execution.run(requests)
            if error is not None:
                _fail(items, error)
            elif results is not None:
                self._answer(items, requests, results)
        finally:
            runtime.unbind(token)

    def _answer(self, items: list[LocalRequest], requests: list[InferenceRequest], results: list[Any]) -> None:
        # First all of them, for what one can not send fails the others, too.
        try:
            made = [
                None if result is BY_SENDER or result is REQUEUED else prepared(result, request._wanted)
                for request, result in zip(requests, results, strict=True)
            ]
        except BaseException as failure:
            text = str(failure) if isinstance(failure, errors.TritonModelException) else errors.describe(failure)
            _fail(items, f"Failed to process the request(s) for model '{self.name}', message: {text}")
            return
        for item, result, arguments in zip(items, results, made, strict=True):
            if result is REQUEUED and not item.over:
                _execute_again(item)
            elif arguments is not None and not item.over:
                _send(item, arguments)

    # ---- readiness

    def ask_ready(self) -> Future[Any]:
        """Return the call of the model's ``is_ready`` that is under way, or a new one."""
        call = self._ready_call
        if call is None or call.done():
            call = self._ready_call = Future()
            name = f"py-ready-{self.name}"[:64]
            threading.Thread(target=self._tell_ready, args=(call,), name=name, daemon=True).start()
        return call

    def _tell_ready(self, call: Future[Any]) -> None:
        token = runtime.bind(self._runtime)
        try:
            call.set_result(self._execution.is_ready())
        except errors.TritonModelException as error:
            call.set_exception(Internal(str(error)))
        except BaseException as error:
            call.set_exception(Internal(errors.describe(error)))
        finally:
            runtime.unbind(token)

    # ---- end

    def drain(self, until: float) -> bool:
        """Wait for requests that the model has still; whether none is left."""
        pause = threading.Event()
        while self.native.in_flight > 0:
            if time.monotonic() >= until:
                return False
            pause.wait(_LOOK_S)
        return True

    def close(self, model: str) -> None:
        seat = self._runtime
        seat.executing = False
        self._execution.stop()
        token = runtime.bind(seat)
        try:
            loader.finalize(self._model)
        except BaseException:
            log.error(f"Failed to finalize: {traceback.format_exc()}", model=model, instance=self.name)
        finally:
            runtime.unbind(token)
        self._model = None
        seat.close()

    # ---- as the deadlock detector knows an instance

    @property
    def key(self) -> int:
        return self.native.key

    @property
    def model_key(self) -> int:
        return self.native.model_key

    @property
    def executing(self) -> bool:
        return self.native.executing

    def calls(self) -> list[Call]:
        return self._runtime.calls.views()

    def fail_call(self, call_id: int, text: str) -> bool:
        return self._runtime.calls.fail(call_id, text)


def _received(seat: LocalRuntime, item: LocalRequest) -> InferenceRequest:
    request_id, number, text, flags, timeout, _, params, trace = item.facts()
    over = tensor.Tensor.over
    inputs = [over(name, dtype, shape, view, 0, len(view)) for name, dtype, shape, view in item.inputs()]
    made: InferenceRequest = InferenceRequest.received(
        seat, item, inputs, frozenset(item.wanted()), request_id, text or number, flags, timeout, params, trace
    )
    return made


def _fail(items: list[LocalRequest], text: str) -> None:
    for item in items:
        if not item.over:
            _send(item, {"error": (int(Code.INTERNAL), text)})


def _execute_again(item: LocalRequest) -> None:
    try:
        if not item.execute_again():
            item.send(error=(int(Code.INTERNAL), _RESCHEDULED), final=True)
    except ServerError as error:
        # A sender's thread was faster.
        log.verbose(1, str(error))


def _send(item: LocalRequest, arguments: dict[str, Any]) -> None:
    try:
        item.send(**arguments, final=True)
    except ServerError as error:
        # A sender's thread was faster.
        log.verbose(1, str(error))
