"""The GPUs that a server may use, and their memory: found at the start, set up when a model first asks for one.

Knows flags' values and the driver; nothing of models. Source: spec/cli.md "Memory/Device Management".
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from triton_fast._native.cuda import device_pool, driver, pinned
from triton_fast._native.cuda.driver import Device
from triton_fast.errors import NotFound, ServerError, Unavailable


class Gpus:
    """The usable GPUs of one server.

    Parameters
    ----------
    devices
        All that the driver found.
    least
        ``--min-supported-compute-capability``.
    pinned_bytes
        ``--pinned-memory-pool-byte-size``.
    pool_bytes
        ``--cuda-memory-pool-byte-size`` by device.
    peers
        ``--enable-peer-access``.
    load_limit
        ``--model-load-gpu-limit`` by device.

    Attributes
    ----------
    devices
        Those that may be used.
    ids
        Their ids.
    notes
        What the log should say of the others, and of flags that name GPUs that are not there.
    """

    def __init__(
        self,
        devices: list[Device],
        *,
        least: float = 0.0,
        pinned_bytes: int = 0,
        pool_bytes: Mapping[int, int] | None = None,
        peers: bool = False,
        load_limit: Mapping[int, float] | None = None,
    ) -> None:
        self.devices = [device for device in devices if is_at_least(device, least)]
        self.ids = tuple(device.id for device in self.devices)
        self.notes = [
            f"GPU {device.id} ({device.name}) is not used: its compute capability is {capability(device)}, "
            f"--min-supported-compute-capability asks for {least:.1f}"
            for device in devices
            if device.id not in self.ids
        ]
        self._pinned_bytes = pinned_bytes
        self._pool_bytes = dict(pool_bytes or {})
        self._peers = peers
        self._load_limit = dict(load_limit or {})
        if self.ids:
            for flag, given in (("cuda-memory-pool-byte-size", self._pool_bytes),
                                ("model-load-gpu-limit", self._load_limit)):  # fmt: skip
                self.notes += [f"--{flag} names GPU {one}, which is not used" for one in given if one not in self.ids]
        self._lock = threading.Lock()
        self._used: list[int] = []

    def use(self, device: int) -> None:
        """Set a GPU up for this process: its context, and pinned memory for what is copied to and from it.

        A backend calls this before it uses the GPU; calling again costs little.

        Raises
        ------
        ServerError
            There is no such GPU, or the driver can not make a context on it.
        """
        with self._lock:
            if device in self._used:
                return
            if device not in self.ids:
                raise Unavailable(f"GPU {device} can not be used: {self._listed()}")
            driver.enter(device)
            if device in self._pool_bytes:
                device_pool.set_budget(device, self._pool_bytes[device])
            if not self._used:
                pinned.start(device, self._pinned_bytes)
            self._used.append(device)
            if self._peers and len(self._used) > 1:
                driver.enable_peer_access(self._used)

    def lost(self) -> list[tuple[int, str]]:
        """Return the GPUs that can not be used any more until the process is started anew, and why."""
        return driver.lost() if self._used else []

    def admit(self, model: str, device: int) -> None:
        """Refuse to load a model on a GPU of whose memory more is in use than ``--model-load-gpu-limit`` says."""
        limit = self._load_limit.get(device)
        if limit is None or device not in self.ids:
            return
        left, total = driver.memory_info(device)
        if total - left > limit * total:
            raise Unavailable(
                f"can not create model '{model}': memory limit set for GPU {device} has exceeded, model loading is "
                "rejected."
            )

    def pinned_usage(self) -> tuple[int, int]:
        """Return total and used bytes of the pool of pinned memory; of none where there is no GPU."""
        if not self.ids:
            return 0, 0
        return self._pinned_bytes, pinned.usage()[1] if self._used else 0

    def trim(self) -> None:
        """Give back idle memory. Called when the server has been idle; may take a while."""
        if self._used:
            pinned.trim()

    def close(self) -> None:
        """Give back what is kept. Contexts stay: frameworks in this process share them."""
        with self._lock:
            if self._used:
                pinned.stop()
                device_pool.trim()
                self._used.clear()

    def _listed(self) -> str:
        return f"the server uses {', '.join(map(str, self.ids))}" if self.ids else "the server uses no GPU"


def find() -> tuple[list[Device], str]:
    """Open the driver, where there is one; return the GPUs and, for the log, why they can not be used."""
    try:
        driver.open_driver()
    except NotFound:
        return [], ""
    except ServerError as error:
        return [], f"no GPU is used: {error}"
    return driver.devices(), ""


def capability(device: Device) -> str:
    return "{}.{}".format(*device.capability)


def is_at_least(device: Device, least: float) -> bool:
    # As numbers of two parts: 10.0 is more than 9.0, and 8.6 is what 8.59999 was meant to be.
    major, minor = device.capability
    return major * 10 + minor >= round(least * 10)
