"""The v2 infer request as protobuf wire bytes: the Python names of the native decoder.

The server calls ``pb_infer_head`` and ``pb_decode_infer`` of ``pb_infer.pxd``; these names serve tests, fuzzing and
instruction counts, and know nothing of gRPC framing.
"""

from triton_fast._native.core.model import ModelHandle
from triton_fast._native.core.regions import SharedRegions
from triton_fast._native.wire.json_infer import RequestDict

def head(message: bytes) -> tuple[str, str, str]:
    """Return model_name, model_version and id of a serialized ModelInferRequest.

    Only the top-level fields are walked. Raises errors.Internal for a message that is broken there.
    """

def decode(
    message: bytes,
    max_input: int = 67108864,
    model: ModelHandle | None = None,
    regions: SharedRegions | None = None,
) -> RequestDict:
    """Decode one serialized ModelInferRequest.

    ``borrowed`` of an input tells that its data lies in the message. ``flags``: 1 sequence start, 2 sequence end,
    4 triton_enable_empty_final_response. Outputs are always binary.

    Parameters
    ----------
    message
        Fields may come in any order and in pieces; of repeated scalars and map keys the last counts.
    max_input
        Bytes: limit of what typed contents decode to over all inputs.
    model
        Named in some error texts; nothing is checked against it.

    Raises
    ------
    errors.Internal
        Bytes that are no ModelInferRequest, with the reason and where.
    errors.InvalidArg
        Parameters of a wrong type, data that is missing, given twice or of another datatype, limits.
    errors.NotFound
        A shared-memory region (none is known here).
    errors.Unsupported
        A string sequence_id of more than 128 bytes.
    errors.Unavailable
        Out of memory.

    Notes
    -----
    Source: gRPC page section 4; order of the checks: triton server src/grpc/infer_handler.cc.
    """

def bench(message: bytes, n: int = 1) -> int:
    """Walk and decode the same message n times without the GIL; return how many times it succeeded."""
