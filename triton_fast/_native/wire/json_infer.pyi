"""The v2 infer request as JSON with binary sections: the Python names of the native decoder.

The server calls ``json_decode_infer`` of ``json_infer.pxd``; these names serve tests, fuzzing and instruction
counts, and know nothing of HTTP.
"""

from typing import TypedDict

from triton_fast._native.core.model import ModelHandle
from triton_fast._native.core.regions import SharedRegions

class InputDict(TypedDict):
    """One input as the request holds it.

    ``data`` is row-major little-endian memory; BYTES elements are uint32 length + bytes. ``borrowed``: it lies in the
    binary part of the body, not in memory of its own. ``datatype`` is ``<invalid>`` for unknown names.
    """

    name: str
    datatype: str
    shape: list[int]
    data: bytes
    borrowed: bool

class OutputDict(TypedDict):
    """One output asked for: ``binary`` is 1 or 0; ``classes`` is the k of classification, 0 for the plain tensor."""

    name: str
    binary: int
    classes: int

class RequestDict(TypedDict):
    """Everything a native request holds after decoding. Text that is no UTF-8 comes with surrogate escapes.

    ``parameters`` leaves out the ones that have a field of their own. ``flags``: 1 sequence start, 2 sequence end.
    ``timeout`` is in microseconds.
    """

    id: str
    inputs: list[InputDict]
    outputs: list[OutputDict]
    parameters: list[tuple[str, str | int | bool | float]]
    sequence_id: int | str
    flags: int
    priority: int
    timeout: int
    binary_data_output: bool

def decode(
    json: bytes,
    binary: bytes = b"",
    has_header_len: bool = True,
    max_input: int = 67108864,
    model: ModelHandle | None = None,
    regions: SharedRegions | None = None,
) -> RequestDict:
    """Decode one infer body.

    Of members with the same name the first counts; unknown members are skipped. Tensor data may nest up to 100 arrays,
    anything else 64 levels.

    Parameters
    ----------
    json, binary
        The two parts of the body.
    has_header_len
        Whether Inference-Header-Content-Length was given.
    max_input
        Bytes: limit of the JSON text, and of what JSON data decodes to over all inputs.
    model
        Named in some error texts; nothing is checked against it.

    Raises
    ------
    errors.Internal
        JSON syntax, and members of the wrong type or missing.
    errors.InvalidArg
        Sizes, shapes, limits, nesting, fields that exclude each other, names given twice.
    errors.NotFound
        A shared-memory region (none is known here).
    errors.Unsupported
        A string sequence_id of more than 128 bytes.
    errors.Unavailable
        Out of memory.

    Notes
    -----
    Source: HTTP page sections 3 and 5; order of the checks: triton server src/http_server.cc, ParseJsonTritonIO.
    """

def bench(json: bytes, binary: bytes = b"", n: int = 1) -> int:
    """Decode the same body n times without the GIL; return how many times it succeeded. For instruction counts."""
