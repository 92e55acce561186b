"""Ensembles of engine models for tests: members by name, ensembles over them, all stopped in order at the end.

Knows the native engine only, as ``tests.helpers.models`` does.
"""

from __future__ import annotations

import contextlib
import itertools
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from tests.helpers.models import INT32, Gate
from triton_fast._native.sched.ensemble import NativeEnsemble, Step
from triton_fast._native.sched.inline import InlineEcho
from triton_fast._native.sched.instance import NativeInstance
from triton_fast._native.sched.model import Epoch, NativeModel
from triton_fast._native.sched.pyinstance import PyInstance
from triton_fast.config import IoSpec
from triton_fast.errors import NotFound

Tensors = Mapping[str, Any]


def io(name: str, *dims: int, dtype: Any = INT32, **options: Any) -> IoSpec:
    return IoSpec(name, dtype, dims or (-1,), **options)


def step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str], **options: Any) -> Step:
    """``inputs`` and ``outputs``: the ensemble's tensor by the model's name."""
    return Step(model, options.pop("version", -1), tuple(inputs.items()), tuple(outputs.items()), **options)


def chain(model: str, *tensors: str, taken: str = "IN", given: str = "OUT") -> list[Step]:
    """Steps of one model, each taking what the one before gives: ``chain("m", "X", "t", "Y")`` are two."""
    return [step(model, {taken: one}, {given: other}) for one, other in itertools.pairwise(tensors)]


def ints(*values: int) -> tuple[Any, tuple[int, ...], bytes]:
    """A tensor of one row, as ``PyInstance`` gives it."""
    return (INT32, (1, len(values)), struct.pack(f"<{len(values)}i", *values))


def values(tensor: Any) -> list[int]:
    data = bytes(tensor[2])
    return list(struct.unpack(f"<{len(data) // 4}i", data))


class Zoo:
    """Models by name. ``stop`` ends the ensembles first, then their members."""

    def __init__(self) -> None:
        self.models: dict[str, NativeModel] = {}
        self.epoch = Epoch()
        self.gates: list[Gate] = []
        self.asked: list[str] = []

    def resolve(self, name: str, version: int) -> NativeModel:
        self.asked.append(name)
        try:
            return self.models[name]
        except KeyError:
            raise NotFound(f"Request for unknown model: '{name}' is not found") from None

    def add(
        self,
        name: str,
        *instances: NativeInstance | Gate | Callable[[list[Any]], Any],
        inputs: Sequence[IoSpec] = (),
        outputs: Sequence[IoSpec] = (),
        max_batch: int = 8,
        decoupled: bool = False,
        **policy: Any,
    ) -> NativeModel:
        """Start a model; IN and OUT are what it has unless told otherwise."""
        policy.setdefault("dynamic", True)
        model = NativeModel(name, 1, max_batch, inputs or (io("IN"),), outputs or (io("OUT"),), decoupled, **policy)
        for instance in instances:
            if isinstance(instance, Gate):
                self.gates.append(instance)
            model.start_instance(instance if isinstance(instance, NativeInstance) else PyInstance(instance, name))
        self.models[name] = model
        self.epoch.advance()
        return model

    def inline(self, name: str, inputs: Sequence[IoSpec] = (), outputs: Sequence[IoSpec] = ()) -> NativeModel:
        """A model that answers within the submit of a request: output k is input k."""
        model = NativeModel(name, 1, 8, inputs or (io("IN"),), outputs or (io("OUT"),))
        model.use(InlineEcho())
        self.models[name] = model
        self.epoch.advance()
        return model

    def ensemble(
        self,
        name: str,
        steps: Sequence[Step],
        *,
        inputs: Sequence[IoSpec] = (),
        outputs: Sequence[IoSpec] = (),
        max_batch: int = 8,
        decoupled: bool | None = None,
        **options: Any,
    ) -> NativeModel:
        """An ensemble with the tensors X and Y unless told otherwise; decoupled if a step is."""
        if decoupled is None:
            decoupled = any(one.decoupled for one in steps)
        model = NativeModel(name, 1, max_batch, inputs or (io("X"),), outputs or (io("Y"),), decoupled)
        model.use(NativeEnsemble(model, steps, self.resolve, epoch=self.epoch, **options))
        self.models[name] = model
        self.epoch.advance()
        return model

    def stop(self) -> None:
        for gate in self.gates:
            gate.open()
        for model in reversed(self.models.values()):
            model.stop()
        self.models.clear()


@contextlib.contextmanager
def zoo() -> Iterator[Zoo]:
    made = Zoo()
    try:
        yield made
    finally:
        made.stop()


def mapped(function: Callable[[dict[str, list[int]]], Mapping[str, list[int]]]) -> Callable[[list[Any]], Any]:
    """A callable for ``PyInstance``: ``function`` gets and gives numbers by tensor name, for each request."""

    def execute(requests: list[Any]) -> list[Any]:
        made = []
        for request in requests:
            given = {name: values(tensor) for name, tensor in request.items()}
            made.append({name: ints(*numbers) for name, numbers in function(given).items()})
        return made

    return execute
