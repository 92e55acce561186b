"""Responses of generate requests: one flat JSON object each, as a body, a server-sent event, or either in a chunk.

The HTTP front end calls the native functions (``wire/json_event.pxd``); these names let tests reach them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from triton_fast._native.core.model import ModelHandle

def encode(
    model: ModelHandle,
    outputs: Iterable[tuple[int, int, Sequence[int], bytes]],
    id: str = "",
    parameters: dict[str, str | int | float | bool] | None = None,
    form: int = 0,
    repeat: int = 1,
) -> bytes:
    """Encode one successful response.

    Members are sorted by the bytes of their names. Of several with one name the first of these is there: ``id`` (when
    the request has one), ``model_name``, ``model_version``; response parameters; outputs. An output of one element is a
    scalar, any other a flat list.

    Parameters
    ----------
    outputs
        (index of the model's output, datatype number, full shape, bytes).
    parameters
        Response parameters.
    form
        Bits: 1 a server-sent event, 2 in an HTTP chunk.
    repeat
        How often to encode, one behind the other.

    Raises
    ------
    ServerError
        FP16 or BF16, sizes that disagree.

    Notes
    -----
    Source: HTTP page section 6; precedence observed on the real server.
    """

def encode_error(text: bytes, form: int = 0) -> bytes:
    """Encode an error as ``{"error": text}`` in the same forms."""
