"""The v2 infer response as protobuf wire bytes.

The front end calls the native functions (``wire/pb_reply.pxd``); these names let tests reach them.
"""

from collections.abc import Iterable, Sequence

from triton_fast._native.core.model import ModelHandle

def encode_reply(
    model: ModelHandle,
    outputs: Iterable[tuple[int, int, Sequence[int], bytes]],
    id: str = "",
    parameters: dict[str, str | int | float | bool] | None = None,
    final: int = -1,
    stream: bool = False,
    before: bytes = b"",
    repeat: int = 1,
) -> tuple[bytes, list[int], int]:
    """Encode a ModelInferResponse, or with ``stream`` the ModelStreamInferResponse around it.

    Parameters
    ----------
    outputs
        (index of the model's output, datatype number, full shape, bytes).
    parameters
        Response parameters.
    final
        Value of triton_final_response; -1 leaves it out.
    before
        What the buffer holds already.
    repeat
        How often to encode (for instruction counts).

    Returns
    -------
    tuple
        The buffer without the outputs' bytes, the offset in it where those of each output belong, and the size of the
        whole message.

    Raises
    ------
    ServerError
        Out of memory, or outputs that cannot be sent.
    """

def encode_error(text: bytes, id: str = "", model: ModelHandle | None = None, final: int = -1) -> bytes:
    """Encode a ModelStreamInferResponse for a request that failed; bytes that are not UTF-8 become U+FFFD."""

def encode_final(id: str, name: str, version: str) -> bytes:
    """Encode a ModelStreamInferResponse that only says that the request is at its end."""
