"""Packed responses: what the response cache keeps, and what Redis holds for it."""

from triton_fast._native.core.model import ModelHandle

def read(model: ModelHandle, data: bytes) -> dict[str, tuple[int, tuple[int, ...], bytes]] | None:
    """Return what packed bytes hold, as {output: (datatype, shape, bytes)}; None if they are no response of this model.

    For tests and fuzzing: answers a request with them and reads the response.
    """
