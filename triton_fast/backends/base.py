"""The contract between the server and a backend. One that is written in Python begins with ``arrays.ArrayBackend``.

A backend is one class with three duties: say what a model file contains (``complete_config``), open it (``load``), and
hand out instances. An instance is a ``NativeInstance`` (see ext/triton_fast/_native/sched/instance.pxd): one C function
that executes a batch without the GIL. A backend knows nothing of front ends, schedulers or the repository.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_fast.backends import host_policy
from triton_fast.backends.host import Host
from triton_fast.backends.host_policy import HostPolicy
from triton_fast.backends.paths import PathParameter
from triton_fast.types import TYPES, DataType

if TYPE_CHECKING:
    from triton_fast._native.sched.instance import NativeInstance
    from triton_fast._native.sched.model import NativeModel


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
    host
        The server around the backend.
    native
        The engine's handle of this version, when ``load`` is called.
    settings
        ``--backend-config`` of this backend laid over the global ones.
    namespace
        The repository it is from, where each is a namespace of its own; else empty.
    threads_per_instance
        Threads one instance may use so that all instances together stay within the cores this process may use.
    given_up
        Whether nobody wants the load any more, while it is under way.
    """

    name: str
    version: int
    model_dir: Path
    version_dir: Path
    config: Any
    settings: Mapping[str, str] = field(default_factory=dict)
    threads_per_instance: int = 1
    given: frozenset[str] = frozenset()
    host: Host = field(default_factory=Host)
    native: NativeModel | None = None
    namespace: str = ""
    given_up: Callable[[], bool] = bool


@dataclass(frozen=True)
class InstanceSpec:
    """One instance to make: its name (``<group>_<n>``), its kind and, for GPU kinds, its device.

    ``host_policy`` is in force already on the thread that asks for the instance; a backend applies it where it starts
    threads or processes on others. ``resources`` (name, whether global, amount) and ``priority`` are what the rate
    limiter is told. ``secondary_devices``: kind (``KIND_NVDLA``) and id of the accelerators beside the GPU.
    ``profiles``: TensorRT's, as the group names them.
    """

    name: str
    kind: str
    device: int = 0
    passive: bool = False
    host_policy: HostPolicy = host_policy.NONE
    resources: tuple[tuple[str, bool, int], ...] = ()
    priority: int = 0
    secondary_devices: tuple[tuple[str, int], ...] = ()
    profiles: tuple[str, ...] = ()


class BackendModel(ABC):
    """One opened model version. ``close`` is called once, after its last instance thread has ended."""

    @property
    def ready_may_block(self) -> bool:
        """Whether ``is_ready`` may wait. Read when the version is published, so it has to be known by then."""
        return False

    def prepare(self, specs: Sequence[InstanceSpec]) -> None:  # noqa: B027
        """Get ready for these instances, which are asked for next; what can be done in parallel begins here."""

    def is_ready(self) -> bool:
        """Tell whether the model can answer now, as far as it knows. May block for 5 s where it says that it may."""
        return True

    def trim(self, keep: int) -> None:  # noqa: B027
        """Give back idle memory but for ``keep`` bytes an instance. Called when the server has been idle."""

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
    # Whether its models may be decoupled: its instances answer with any number of responses, or always with one
    # (core/respond.pxd).
    decoupled: bool = False
    # Whether it makes batch_input tensors and cuts batch_output tensors.
    makes_batch_tensors: bool = False
    # Everything in a config that it takes for the place of a file (or for an address, or for code).
    path_parameters: tuple[PathParameter, ...] = ()

    def datatypes(self) -> frozenset[DataType]:
        """Return the datatypes that tensors of its models may have, with the framework that is installed."""
        return frozenset(TYPES)

    @property
    def gpu(self) -> bool:
        """Whether its instances can run on NVIDIA GPUs, as it is installed. Asked only where there is such a GPU."""
        return False

    @property
    def no_gpu(self) -> str:
        """Why they can not, and what would help; empty where there is no more to say than that. Asked as ``gpu`` is."""
        return ""

    def complete_config(self, context: LoadContext) -> Any:
        """Return the config with what the user left out and the model file knows; never change a given field.

        The default returns it as it is. Raises ``InvalidArg`` when the model and the given fields contradict.
        """
        return context.config

    @abstractmethod
    def load(self, context: LoadContext) -> BackendModel:
        """Open the model version. Raises a ``ServerError`` with the cause when it can not be opened."""
