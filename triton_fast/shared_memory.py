"""Shared memory that clients register: the verbs, for both kinds. Whatever uses the regions is native.

Source: spec/http.md section 7. Where there is no GPU, CUDA regions are refused, as a Triton without one refuses them.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from triton_fast._native.core.regions import SharedRegions
from triton_fast._native.cuda import regions as cuda_regions
from triton_fast.errors import InvalidArg, NotFound, Unsupported
from triton_fast.memory import Gpus
from triton_fast.observability import log

DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
CUDA_HANDLE_BYTES = 64
MAX_BYTES = (1 << 64) - 1
# Triton's answer to whatever the driver does not open; the reason is in the log.
NOT_OPENED = "failed to register shared memory region: invalid args"
_OTHER = {"system": "CUDA", "cuda": "system"}
_SHOWN = {"system": "system", "cuda": "CUDA"}


class SharedMemory:
    """The regions of one server. ``kind`` is ``system`` or ``cuda`` throughout.

    Parameters
    ----------
    allowed
        ``--allow-client-shm``. Without it nothing can be registered, and there is never a region.
    gpus
        Those in whose memory there may be regions.
    """

    def __init__(self, allowed: bool = False, gpus: Gpus | None = None) -> None:
        self.allowed = allowed
        self._gpus = gpus or Gpus([])
        self.regions = SharedRegions()

    def status(self, kind: str, name: str = "") -> list[dict[str, Any]]:
        """Return one region, or all of a kind when there is no name."""
        rows = {
            "system": {row[0]: _row(*row) for row in self.regions.status()},
            "cuda": {row[0]: _device_row(*row) for row in self.regions.device_status()},
        }
        if not name:
            return list(rows[kind].values())
        if name in rows[kind]:
            return [rows[kind][name]]
        if any(name in known for known in rows.values()):
            raise NotFound(
                f"The region named '{name}' is registered as {_OTHER[kind]} shared memory, not {_SHOWN[kind]} shared "
                "memory"
            )
        raise NotFound(f"Unable to find {kind} shared memory region: '{name}'")

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a file of /dev/shm; see ``SharedRegions.register`` for what is refused."""
        self.check_allowed()
        self.regions.register(name, key, offset, byte_size)

    def register_cuda(self, name: str, handle: bytes, device: int, byte_size: int) -> None:
        """Register memory of a GPU that another process allocated, by its CUDA IPC handle, which is in no text."""
        self.check_allowed()
        if not self._gpus.ids:
            raise InvalidArg(f"failed to register CUDA shared memory region: '{name}', GPUs not supported")
        self.regions.check_free(name)
        if len(handle) != CUDA_HANDLE_BYTES or device not in self._gpus.ids:
            raise InvalidArg(NOT_OPENED)
        if byte_size > MAX_BYTES:  # JSON knows larger ones
            raise InvalidArg(f"failed to register shared memory region '{name}': invalid args")
        self._gpus.use(device)
        reason = cuda_regions.register(self.regions, name, handle, device, byte_size)
        if reason:
            log.error(reason)
            raise InvalidArg(NOT_OPENED)

    def unregister(self, kind: str, name: str = "") -> None:
        """Take one region away, or all of a kind when there is no name. There need not be any."""
        self.check_allowed()
        if name:
            self.regions.unregister(name, kind == "cuda")
        else:
            self.regions.unregister_all(kind == "cuda")
        if kind == "cuda":
            # The client may free the memory as soon as it is told.
            cuda_regions.settle(self.regions, name)

    def close(self) -> None:
        """Give the memory of GPUs back that no request uses; called when the server ends."""
        self.regions.unregister_all(cuda=True)
        cuda_regions.settle(self.regions)

    def check_allowed(self) -> None:
        if not self.allowed:
            raise Unsupported(DISABLED)


def read_handle(text: str) -> bytes:
    """Return the handle of CUDA memory that a text in base64 is."""
    try:
        handle = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        handle = b""
    if len(handle) != CUDA_HANDLE_BYTES:
        raise InvalidArg("'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t")
    return handle


def _row(name: str, key: str, offset: int, byte_size: int) -> dict[str, Any]:
    return {"name": _clean(name), "key": _clean(key), "offset": offset, "byte_size": byte_size}


def _device_row(name: str, device: int, byte_size: int) -> dict[str, Any]:
    return {"name": _clean(name), "device_id": device, "byte_size": byte_size}


def _clean(text: str) -> str:
    """Return a text that any encoder takes: names are a client's bytes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
