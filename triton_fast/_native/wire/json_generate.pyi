"""The generate request as JSON: the Python name of the native decoder.

The server calls ``json_decode_generate`` of ``json_generate.pxd``; this name serves tests.
"""

from triton_fast._native.core.model import ModelHandle
from triton_fast._native.wire.json_infer import RequestDict

def decode(json: bytes, model: ModelHandle, max_input: int = 67108864) -> RequestDict:
    """Decode one generate body, a flat JSON object.

    Members named like an input of ``model`` are its data, the others request parameters; those of ``parameters`` count
    like the rest. ``id`` is both the request's id and a member like others. A parameter given twice, here and in
    ``parameters``, stands twice in the list, and the later one counts.

    Raises
    ------
    errors.Internal
        JSON syntax, data of the wrong type.
    errors.InvalidArg
        Data that no shape of the input holds, inputs given twice, parameters that are no scalars, sizes, nesting.

    Notes
    -----
    Source: HTTP page section 6; order of the checks observed on the real server.
    """
