"""The contract between the server and a backend.

A backend is one class with three duties: say what a model file contains (``complete_config``), open it (``load``), and
hand out instances. An instance is a ``NativeInstance`` (see ext/triton_fast/_native/sched/instance.pxd): one C function
that executes a batch without the GIL. A backend knows nothing of front ends, schedulers or the repository.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from triton_fast._native.sched.instance import NativeInstance


@dataclass(frozen=True)
class LoadContext:
    """Everything a backend is told about the model version that it is asked to open.

    Attributes
    ----------
    name, version
        The model and the version number.
    model_dir, version_dir
        ``<repository>/<model>`` and ``<repository>/<model>/<version>``.
    config
        The ``inference.ModelConfig`` message; complete and normalised when ``load`` is called.
    given
        The top-level config fields that the user wrote, whatever their value: auto-complete leaves them alone.
    settings
        ``--backend-config`` of this backend laid over the global ones.
    threads_per_instance
        Threads one instance may use so that all instances together stay within the cores this process may use.
    """

    name: str
    version: int
    model_dir: Path
    version_dir: Path
    config: Any
    settings: Mapping[str, str] = field(default_factory=dict)
    threads_per_instance: int = 1
    given: frozenset[str] = frozenset()


@dataclass(frozen=True)
class InstanceSpec:
    """One instance to make: its name (``<group>_<n>``), its kind and, for GPU kinds, its device."""

    name: str
    kind: str
    device: int = 0
    passive: bool = False


class BackendModel(ABC):
    """One opened model version. ``close`` is called once, after its last instance thread has ended."""

    @abstractmethod
    def create_instance(self, spec: InstanceSpec) -> NativeInstance:
        """Return a new instance; raise a ``ServerError`` when it can not be made."""

    @abstractmethod
    def close(self) -> None:
        """Give back what the model holds. Called from a load-pool thread."""


class Backend(ABC):
    """One kind of model file. Stateless but for process-wide handles; methods may run on several load threads."""

    name: str
    # File or directory name in the version directory when the config names none.
    default_filename: str
    version: str = ""
    # Whether its instances can answer a request with other than one response (core/respond.pxd).
    decoupled: bool = False

    def complete_config(self, context: LoadContext) -> Any:
        """Return the config with what the user left out and the model file knows; never change a given field.

        The default returns it as it is. Raises ``InvalidArg`` when the model and the given fields contradict.
        """
        return context.config

    @abstractmethod
    def load(self, context: LoadContext) -> BackendModel:
        """Open the model version. Raises a ``ServerError`` with the cause when it can not be opened."""
