"""Executes exact batches on any instance, for tests and instruction counts. Source: ort/drive.pyx."""

from collections.abc import Mapping, Sequence

from triton_fast._native.core.model import ModelHandle
from triton_fast._native.sched.instance import NativeInstance
from triton_fast.errors import ServerError

# Bytes, or (GPU, address in its memory, how many bytes).
Data = bytes | bytearray | memoryview | tuple[int, int, int]
Inputs = Mapping[str, tuple[int, Sequence[int], Data]]
# DataType number, shape, bytes, address
Output = tuple[int, tuple[int, ...], bytes, int]
# addresses of a block that is kept, and of the bytes in it; how many
Held = tuple[int, int, int]

def run_batch(
    instance: NativeInstance,
    model: ModelHandle,
    requests: Sequence[Inputs],
    *,
    wanted: Sequence[Sequence[str] | None] | None = None,
    misalign: int = 0,
    held: list[Held] | None = None,
    away: Sequence[Sequence[str]] | None = None,
) -> list[dict[str, Output] | ServerError]:
    """Execute one batch and return what each request would answer.

    Parameters
    ----------
    wanted
        Output names per request; None or nothing for all.
    misalign
        Bytes by which the inputs lie off a 64-byte boundary.
    held
        Filled with a reference to each output's block, to be given back with ``release_held``.
    away
        Names of inputs per request that count as lying in the memory of GPU 0.
    """

def read_held(held: Sequence[Held]) -> list[bytes]:
    """Return the bytes of outputs that outlive their requests."""

def release_held(held: list[Held]) -> None:
    """Drop the references and empty the list."""

def repeat(
    instance: NativeInstance, model: ModelHandle, requests: Sequence[Inputs], times: int
) -> tuple[int, int]:
    """Execute the same batch again and again; return (ns, failed responses). No GIL in between."""
