"""Ensembles for tests: their configs, and a scheduler in plain Python that executes a plan one step after the other.

What the scheduler does is what a plan means; it knows no decoupled steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.helpers.models import LONG_S
from triton_fast._native.sched.inprocess import InferCall
from triton_fast._native.sched.model import NativeModel
from triton_fast._native.sched.pyinstance import PyInstance
from triton_fast.config import EnsemblePlan
from triton_fast.config.ensemble_members import Batch, Wire


@dataclass(frozen=True)
class Chain:
    """An ensemble that passes INPUT0 through the members to OUTPUT0.

    ``takes`` and ``gives``: what the members call theirs.
    """

    name: str
    members: tuple[str, ...]
    datatype: str = "FP32"
    dims: str = "-1"
    max_batch: int = 8
    version: int = -1
    takes: str = "INPUT0"
    gives: str = "OUTPUT0"
    extra: str = ""

    def config(self) -> str:
        tensors = ["INPUT0", *(f"t{k}" for k in range(1, len(self.members))), "OUTPUT0"]
        steps = [
            f'step {{ model_name: "{member}" model_version: {self.version} '
            f'input_map {{ key: "{self.takes}" value: "{tensors[k]}" }} '
            f'output_map {{ key: "{self.gives}" value: "{tensors[k + 1]}" }} }}'
            for k, member in enumerate(self.members)
        ]
        io = [
            f'{side} {{ name: "{side.upper()}0" data_type: TYPE_{self.datatype} dims: [{self.dims}] }}'
            for side in ("input", "output")
        ]
        head = ['platform: "ensemble"', f"max_batch_size: {self.max_batch}"]
        return "\n".join([*head, *io, "ensemble_scheduling {", *steps, "}", self.extra, ""])


def ensembles(root: Path, *chains: Chain) -> Path:
    """Write them under ``root`` and return it."""
    for chain in chains:
        (root / chain.name / "1").mkdir(parents=True, exist_ok=True)
        (root / chain.name / "config.pbtxt").write_text(chain.config())
    return root


Value = tuple[Any, tuple[int, ...], bytes]


def fitted(wire: Wire, value: Value) -> Value:
    """Return a tensor as its taker wants it."""
    dtype, shape, data = value
    is_as_configured = len(shape) == len(wire.dims) and all(
        want in (-1, have) for want, have in zip(wire.dims, shape, strict=True)
    )
    if wire.batch is Batch.ADD and is_as_configured:
        shape = (1, *shape)
    elif wire.batch is Batch.DROP and not is_as_configured and shape[0] == 1:
        shape = shape[1:]
    return dtype, tuple(shape), data


class OneByOne:
    """A scheduler for ``attach_ensemble``: an instance that executes one request after the other."""

    def __init__(self, native: NativeModel, plan: EnsemblePlan, resolve: Callable[[str, int], NativeModel]) -> None:
        self.plan = plan
        self.resolve = resolve
        self.closed = False
        native.start_instance(PyInstance(self._execute, "ensemble"))

    def _execute(self, requests: list[Any]) -> list[Any]:
        return [self._one(inputs) for inputs in requests]

    def _one(self, inputs: dict[str, Any]) -> dict[str, Any]:
        plan = self.plan
        there = {
            slot: (dtype, tuple(shape), bytes(view))
            for slot in plan.inputs
            for dtype, shape, view in [inputs[plan.tensors[slot].name]]
        }
        left = list(plan.steps)
        while left:
            step = next(step for step in left if all(wire.slot in there for wire in step.inputs))
            left.remove(step)
            given = []
            for wire in step.inputs:
                dtype, shape, data = fitted(wire, there[wire.slot])
                given.append((wire.name, dtype, shape, data))
            made = InferCall(self.resolve(step.model, step.version), given).wait(LONG_S)
            for wire in step.outputs:
                dtype, shape, data = made[wire.name]
                there[wire.slot] = (dtype, tuple(shape), bytes(data))
        return {wire.name: fitted(wire, there[wire.slot]) for wire in plan.outputs}

    def close(self) -> None:
        self.closed = True
