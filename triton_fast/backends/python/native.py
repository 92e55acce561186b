"""What the backend uses of the native half, as protocols: tests put others in its place.

Source: triton_fast/_native/pyworker/instance.pyi, which is imported when the first model needs it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, NamedTuple, Protocol

from triton_fast.errors import Internal, Unsupported

if TYPE_CHECKING:
    from triton_fast._native.sched.instance import NativeInstance
    from triton_fast._native.sched.model import Epoch, NativeModel

INSTANCE_MODULE = "triton_fast._native.pyworker.instance"
CHANNEL_MODULE = "triton_fast._native.pyworker.channel"
CLIENT_MODULE = "triton_fast._native.pyworker.client"
MIN_HEAP = 16 << 20
# How long an instance looks for the end of an execution before it sleeps.
SPIN_NS = 50_000
Resolve = Callable[[str, int], "NativeModel"]
# Key of a model, "queued", "running" or "waiting" to be sent at all, key of who runs it or 0.
Wait = tuple[int, str, int]
# call id, key of the target model, whether the caller waits for it, "queued" or "running", key of who runs it or 0, age
# in ns, and what it waits for if the target is an ensemble
Call = tuple[int, int, int, str, int, int, tuple[Wait, ...]]


class Channel(Protocol):
    """One worker's region, rings and eventfds."""

    def fds(self) -> tuple[int, int, int, int, int]: ...


class Instance(Protocol):
    """One instance as the engine knows it; its worker changes, it stays."""

    name: str

    @property
    def in_flight(self) -> int: ...
    @property
    def broken(self) -> bool: ...
    @property
    def executing(self) -> bool: ...
    @property
    def execution_started_ns(self) -> int: ...
    @property
    def key(self) -> int: ...
    @property
    def model_key(self) -> int: ...
    def attach(self, channel: Channel) -> None: ...
    def fail(self, reason: str, code: int = 1) -> None: ...
    def give_up(self, reason: str) -> None: ...
    def finalize(self) -> None: ...
    def drain(self, timeout_s: float) -> bool: ...
    def trim(self, keep: int) -> None: ...
    def calls(self) -> list[Call]: ...
    def fail_call(self, call_id: int, text: str) -> bool: ...


class Engine(NamedTuple):
    """Constructors of both; ``as_native`` is the instance as ``NativeModel.start_instance`` takes it."""

    channel: Callable[[int, int], Channel]
    instance: Callable[[str, Resolve, Epoch | None], Instance]

    @staticmethod
    def as_native(instance: Instance) -> NativeInstance:
        return instance  # type: ignore[return-value]


def engine(wait_s: float) -> Engine:
    """Return the native half; ``wait_s``: how long a message waits for memory. Unsupported where it was not built."""
    try:
        instances = importlib.import_module(INSTANCE_MODULE)
        channels = importlib.import_module(CHANNEL_MODULE)
    except ImportError as error:
        raise Unsupported(f"the Python backend's native part can not be used: {error}") from None
    spin_ns = SPIN_NS if len(os.sched_getaffinity(0)) > 1 else 0
    return Engine(channels.WorkerChannel, partial(instances.PythonInstance, spin_ns=spin_ns, wait_ns=int(wait_s * 1e9)))


def client_path() -> str:
    """Return the file of the compiled client for workers of this interpreter; empty when there is none."""
    try:
        found = importlib.util.find_spec(CLIENT_MODULE)
    except ImportError:
        return ""
    return (found.origin or "") if found is not None else ""


def open_channel(made: Engine, region_bytes: int) -> Channel:
    """Return a channel of that size, or of the half, the quarter and so on where the system refuses.

    Raises
    ------
    Internal
        Not even a small region can be had.
    """
    half = region_bytes // 2
    while True:
        try:
            return made.channel(half, half)
        except (MemoryError, OSError) as error:
            if half <= MIN_HEAP:
                raise Internal(f"no memory for a worker's region: {error}") from None
            half //= 2
