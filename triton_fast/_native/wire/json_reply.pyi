"""The v2 infer response as JSON with its binary sections.

The front ends call the native functions (``wire/json_reply.pxd``); ``encode`` lets tests reach them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from triton_fast._native.core.model import ModelHandle

def encode(
    model: ModelHandle,
    outputs: Iterable[tuple[int, int, Sequence[int], bytes]],
    wanted: Iterable[tuple[int, int, int]] = (),
    id: str = "",
    labels: Mapping[int, Sequence[str]] | None = None,
    parameters: dict[str, str | int | float | bool] | None = None,
    binary_default: int = 0,
    repeat: int = 1,
) -> tuple[bytes, list[bytes]]:
    """Encode one successful response.

    Parameters
    ----------
    outputs
        (index of the model's output, datatype number, full shape, bytes).
    wanted
        (index, binary: 1, 0 or -1 for the default, classes: top k or 0).
    labels
        Texts for classification, by output index.
    parameters
        Response parameters.
    repeat
        How often to encode (for instruction counts); a classification is done once.

    Returns
    -------
    tuple
        The JSON part, and the bytes of each binary output that is not empty, in order.

    Raises
    ------
    ServerError
        FP16 or BF16 as JSON, a classification of an unsupported or too large output, sizes that disagree.
    """
