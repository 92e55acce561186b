"""Configs of ensembles for tests. Those of engine models, without a repository: ``tests.helpers.ensemble_models``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


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
