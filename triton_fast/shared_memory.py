"""Shared memory that clients register: the verbs, for both kinds. Whatever uses the regions is native.

Source: spec/http.md section 7. There is no GPU here: CUDA regions are refused, as a Triton without one refuses them.
"""

from __future__ import annotations

import base64
import binascii
from typing import Any

from triton_fast._native.core.regions import SharedRegions
from triton_fast.errors import InvalidArg, NotFound, Unsupported

DISABLED = "Client shared memory is disabled. Start the server with '--allow-client-shm=true' to enable."
CUDA_HANDLE_BYTES = 64


class SharedMemory:
    """The regions of one server. ``kind`` is ``system`` or ``cuda`` throughout.

    Parameters
    ----------
    allowed
        ``--allow-client-shm``. Without it nothing can be registered, and there is never a region.
    """

    def __init__(self, allowed: bool = False) -> None:
        self.allowed = allowed
        self.regions = SharedRegions()

    def status(self, kind: str, name: str = "") -> list[dict[str, Any]]:
        """Return one region, or all of a kind when there is no name."""
        rows = self.regions.status()
        if not name:
            return [_row(*row) for row in rows] if kind == "system" else []
        found = [_row(*row) for row in rows if row[0] == name]
        if not found:
            raise NotFound(f"Unable to find {kind} shared memory region: '{name}'")
        if kind != "system":
            raise NotFound(f"The region named '{name}' is registered as system shared memory, not CUDA shared memory")
        return found

    def register(self, name: str, key: str, offset: int, byte_size: int) -> None:
        """Register a file of /dev/shm; see ``SharedRegions.register`` for what is refused."""
        self.check_allowed()
        self.regions.register(name, key, offset, byte_size)

    def register_cuda(self, name: str) -> None:
        """Refuse a CUDA region."""
        self.check_allowed()
        raise InvalidArg(f"failed to register CUDA shared memory region: '{name}', GPUs not supported")

    def unregister(self, kind: str, name: str = "") -> None:
        """Take one region away, or all of a kind when there is no name. There need not be any."""
        self.check_allowed()
        if kind != "system":
            return
        if name:
            self.regions.unregister(name)
        else:
            self.regions.unregister_all()

    def check_allowed(self) -> None:
        if not self.allowed:
            raise Unsupported(DISABLED)


def check_handle(text: str) -> None:
    """Refuse a text that is no handle of CUDA memory in base64."""
    try:
        handle = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        handle = b""
    if len(handle) != CUDA_HANDLE_BYTES:
        raise InvalidArg("'raw_handle' must be a valid base64 encoded cudaIpcMemHandle_t")


def _row(name: str, key: str, offset: int, byte_size: int) -> dict[str, Any]:
    return {"name": _clean(name), "key": _clean(key), "offset": offset, "byte_size": byte_size}


def _clean(text: str) -> str:
    """Return a text that any encoder takes: names are a client's bytes."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
