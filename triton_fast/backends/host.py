"""What backends may ask of the server around them, as protocols and hooks; the application fills it in.

Knows nothing of repositories, front ends or the engine beyond the names of types.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, NoReturn, Protocol

from triton_fast.errors import Unavailable
from triton_fast.observability.custom import CustomMetrics

if TYPE_CHECKING:
    from triton_fast._native.sched.model import Epoch, NativeModel


class Caller(NamedTuple):
    """The model that asks for something, and whether it is still being loaded itself."""

    model: str
    loading: bool


class ModelControl(Protocol):
    """What models may do to models. Each call may block, never on the caller's own progress; raises ServerError."""

    def load_model(self, caller: Caller, name: str, config: str, files: Mapping[str, bytes]) -> None:
        """Load or reload; empty ``config`` and ``files``: as it is on disk."""

    def unload_model(self, caller: Caller, name: str, unload_dependents: bool) -> None: ...

    def is_model_ready(self, caller: Caller, name: str, version: str) -> bool: ...


class NoControl:
    """Of a server that gives models no control."""

    def load_model(self, caller: Caller, name: str, config: str, files: Mapping[str, bytes]) -> None:
        self._refuse()

    def unload_model(self, caller: Caller, name: str, unload_dependents: bool) -> None:
        self._refuse()

    def is_model_ready(self, caller: Caller, name: str, version: str) -> bool:
        self._refuse()

    @staticmethod
    def _refuse() -> NoReturn:
        raise Unavailable("this server has no model control")


def _nobody(name: str, version: int) -> NativeModel:
    raise Unavailable("this server resolves no models")


def _no_gpu(device: int) -> None:
    raise Unavailable(f"GPU {device} can not be used: the server uses no GPU")


def _nothing() -> None:
    """Nobody listens."""


@dataclass(frozen=True)
class Host:
    """The server around the backends.

    Attributes
    ----------
    control
        Loads and unloads for models.
    resolve
        (name, version or -1) -> the engine's handle of a served version; raises ServerError.
    epoch
        Changes whenever ``resolve`` may answer otherwise; None: ask each time.
    metrics
        Where models' own metrics go.
    changed
        To be called after a change of a model's readiness, from any thread.
    explicit_control
        ``--model-control-mode=explicit``.
    backend_directory
        ``--backend-directory``.
    gpus
        Ids of the GPUs that may be used.
    use_gpu
        To be called with its id before a GPU is used in this process: makes its context, and pinned memory. Raises
        ServerError where it can not be used.
    variables
        The environment that the server was started with. What libraries set in this process later is not the models':
        it would be there or not as other models come and go.
    """

    control: ModelControl = field(default_factory=NoControl)
    resolve: Callable[[str, int], NativeModel] = _nobody
    epoch: Epoch | None = None
    metrics: CustomMetrics = field(default_factory=CustomMetrics)
    changed: Callable[[], None] = _nothing
    explicit_control: bool = False
    backend_directory: Path | None = None
    gpus: tuple[int, ...] = ()
    use_gpu: Callable[[int], None] = _no_gpu
    variables: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
