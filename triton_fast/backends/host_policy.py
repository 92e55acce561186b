"""Host policies: which cores and which memory node the threads and processes of an instance use.

A thread or process inherits both from the thread that starts it, so whoever starts one does so inside ``bound``.
Knows the flag's settings and the kernel's calls; nothing of models.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import platform
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from triton_fast.errors import InvalidArg

_CORES = re.compile(r" *([0-9]{1,6}) *(?:- *([0-9]{1,6}) *)?")
# set_mempolicy, get_mempolicy
_CALLS = {"x86_64": (238, 239), "aarch64": (237, 236)}
_MPOL_BIND = 2
MAX_NODES = 1024


@dataclass(frozen=True)
class HostPolicy:
    """``cores``: empty for all; ``node``: -1 for any."""

    name: str = ""
    cores: frozenset[int] = frozenset()
    node: int = -1

    @property
    def is_anywhere(self) -> bool:
        """Whether it binds nothing."""
        return not self.cores and self.node < 0

    @contextlib.contextmanager
    def bound(self) -> Iterator[None]:
        """Have this thread, and what it starts meanwhile, run on these cores and take memory of this node.

        Raises
        ------
        InvalidArg
            The kernel refuses.
        """
        cores_before = os.sched_getaffinity(0) if self.cores else frozenset()
        memory_before = _memory_policy() if self.node >= 0 else None
        try:
            if self.cores:
                self._set_cores(self.cores)
            if memory_before is not None:
                self._set_node(_MPOL_BIND, _node_mask(self.node))
            yield
        finally:
            if self.cores:
                os.sched_setaffinity(0, cores_before)
            if memory_before is not None:
                self._set_node(*memory_before)

    def _set_cores(self, cores: frozenset[int]) -> None:
        try:
            os.sched_setaffinity(0, cores)
        except OSError as error:
            raise InvalidArg(f"host policy '{self.name}' can not be applied: {error.strerror}") from None

    def _set_node(self, mode: int, mask: ctypes.Array[ctypes.c_ulong]) -> None:
        number, _ = _CALLS[platform.machine()]
        if _libc().syscall(number, mode, mask if any(mask) else None, MAX_NODES if any(mask) else 0) != 0:
            reason = os.strerror(ctypes.get_errno())
            raise InvalidArg(f"host policy '{self.name}': memory can not be bound to NUMA node {self.node}: {reason}")


NONE = HostPolicy()


def parse(given: Mapping[str, Mapping[str, str]]) -> dict[str, HostPolicy]:
    """Return the policies of ``--host-policy``, by name, after applying each once.

    Raises
    ------
    InvalidArg
        A setting is malformed, names cores that this process may not use, or is refused by the kernel.
    """
    found = {}
    for name, settings in given.items():
        cores, node = settings.get("cpu-cores", ""), settings.get("numa-node", "")
        policy = HostPolicy(name, _cores(name, cores), _node(name, node))
        with policy.bound():
            found[name] = policy
    return found


def _cores(name: str, text: str) -> frozenset[int]:
    cores: set[int] = set()
    for part in text.split(",") if text else ():
        match = _CORES.fullmatch(part)
        low, high = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if low > high:
            raise InvalidArg(
                f"host policy setting 'cpu-cores' format is '<lower_cpu_core_id>-<upper_cpu_core_id>'. Got {part} "
                f"(policy '{name}'; several are separated by commas, a single core may stand alone)"
            )
        cores.update(range(low, high + 1))
    allowed = os.sched_getaffinity(0)
    if cores - allowed:
        raise InvalidArg(
            f"host policy '{name}' names cores {_listed(cores - allowed)}, which this process may not use; it may use "
            f"{_listed(allowed)}"
        )
    return frozenset(cores)


def _node(name: str, text: str) -> int:
    if not text:
        return -1
    if not re.fullmatch("[0-9]{1,4}", text) or int(text) >= MAX_NODES:
        raise InvalidArg(f"host policy setting 'numa-node' must be the number of a node. Got {text} (policy '{name}')")
    if platform.machine() not in _CALLS:
        raise InvalidArg(f"host policy '{name}': this machine's memory nodes can not be chosen")
    return int(text)


def _listed(cores: set[int] | frozenset[int]) -> str:
    """Return cores as ranges: ``0-3,5``."""
    parts: list[list[int]] = []
    for core in sorted(cores):
        if parts and core == parts[-1][1] + 1:
            parts[-1][1] = core
        else:
            parts.append([core, core])
    shown = [f"{low}-{high}" if high > low else str(low) for low, high in parts[:20]]
    return ",".join(shown + ["..."] * (len(parts) > 20))


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def _node_mask(node: int) -> ctypes.Array[ctypes.c_ulong]:
    bits = 8 * ctypes.sizeof(ctypes.c_ulong)
    mask = (ctypes.c_ulong * (MAX_NODES // bits))()
    mask[node // bits] = 1 << node % bits
    return mask


def _memory_policy() -> tuple[int, ctypes.Array[ctypes.c_ulong]]:
    """Return mode and nodes of this thread. Raises InvalidArg where the kernel knows none."""
    _, number = _CALLS[platform.machine()]
    mode = ctypes.c_int(0)
    mask = (ctypes.c_ulong * (MAX_NODES // (8 * ctypes.sizeof(ctypes.c_ulong))))()
    if _libc().syscall(number, ctypes.byref(mode), mask, MAX_NODES, None, 0) != 0:
        raise InvalidArg(f"memory nodes can not be chosen here: {os.strerror(ctypes.get_errno())}")
    return mode.value, mask
