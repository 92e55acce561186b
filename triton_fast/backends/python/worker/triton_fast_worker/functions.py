"""The functions of pb_utils: datatypes, configuration look-ups, BYTES, model control."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from . import cores
from .byte_tensors import encode_bytes
from .dtypes import NUMPY, number_of
from .errors import TritonModelException, incompatible
from .metrics import failed
from .runtime import current

if TYPE_CHECKING:
    from .request import InferenceRequest
    from .response import InferenceResponse

TRITON_STRING_TO_NUMPY: dict[str, Any] = {
    "TYPE_BOOL": bool,
    "TYPE_UINT8": np.uint8,
    "TYPE_UINT16": np.uint16,
    "TYPE_UINT32": np.uint32,
    "TYPE_UINT64": np.uint64,
    "TYPE_INT8": np.int8,
    "TYPE_INT16": np.int16,
    "TYPE_INT32": np.int32,
    "TYPE_INT64": np.int64,
    "TYPE_FP16": np.float16,
    "TYPE_FP32": np.float32,
    "TYPE_FP64": np.float64,
    "TYPE_STRING": np.object_,
}


def serialize_byte_tensor(input_tensor: Any) -> Any:
    """The serialized bytes; () for an empty array, None for one of another datatype."""
    if input_tensor.size == 0:
        return ()
    if input_tensor.dtype == np.object_ or input_tensor.dtype.type == np.bytes_:
        return cores.client.encode_bytes(input_tensor) if cores.client else encode_bytes(input_tensor)
    return None


def deserialize_bytes_tensor(encoded_tensor: Any) -> Any:
    """A 1-D object array of bytes."""
    import struct

    if cores.client:
        try:
            return cores.client.decode_bytes(encoded_tensor)
        except (ValueError, BufferError, TypeError):
            pass  # what is wrong with it is said below
    view = memoryview(encoded_tensor).cast("B")
    items, offset = [], 0
    while offset < len(view):
        (length,) = struct.unpack_from("<I", view, offset)
        items.append(struct.unpack_from(f"<{length}s", view, offset + 4)[0])
        offset += 4 + length
    return np.array(items, dtype=np.object_)


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Any:
    for tensor in inference_request.inputs():
        if tensor.name() == name:
            return tensor
    return None


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Any:
    for tensor in inference_response.output_tensors():
        if tensor.name() == name:
            return tensor
    return None


def _by_name(model_config: dict[str, Any], kind: str, name: str) -> Any:
    for properties in model_config.get(kind, ()):
        if properties["name"] == name:
            return properties
    return None


def get_input_config_by_name(model_config: dict[str, Any], name: str) -> Any:
    return _by_name(model_config, "input", name)


def get_output_config_by_name(model_config: dict[str, Any], name: str) -> Any:
    return _by_name(model_config, "output", name)


def using_decoupled_model_transaction_policy(model_config: dict[str, Any]) -> bool:
    if "model_transaction_policy" in model_config:
        return bool(model_config["model_transaction_policy"]["decoupled"])
    return False


def triton_to_numpy_type(data_type: int) -> Any:
    return NUMPY.get(data_type)


def numpy_to_triton_type(data_type: Any) -> int | None:
    for number, kind in NUMPY.items():
        if data_type == kind:
            return number
    if data_type == np.bytes_:
        return number_of(np.dtype(np.object_))
    return None


def triton_string_to_numpy(triton_type_string: str) -> Any:
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def get_model_dir() -> str:
    return current().model_dir()


def _control(prefix: str, verb: str, fields: dict[str, Any], blob: bytes = b"") -> Any:
    runtime = current()
    try:
        return runtime.ask(verb, fields, blob)
    except TritonModelException as error:
        raise TritonModelException(prefix + failed(runtime, str(error))) from None


def load_model(model_name: str, config: str = "", files: dict[str, bytes] | None = None) -> None:
    if not isinstance(model_name, str) or not isinstance(config, str):
        signature = "(model_name: str, config: str = '', files: object = None) -> None"
        raise incompatible("load_model", signature, model_name, config)
    listed, blob = [], b""
    if files is not None:
        if not isinstance(files, dict):
            raise TritonModelException(
                f"failed to load model '{model_name}', files should be a dictionary of file paths and file contents"
            )
        contents = {str(name): bytes(content) for name, content in files.items()}
        listed = [[name, len(content)] for name, content in contents.items()]
        blob = b"".join(contents.values())
    fields = {"model": model_name, "config": config, "files": listed}
    _control("Failed to load model: ", "load_model", fields, blob)


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    if not isinstance(model_name, str):
        signature = "(model_name: str, unload_dependents: bool = False) -> None"
        raise incompatible("unload_model", signature, model_name)
    fields = {"model": model_name, "unload_dependents": bool(unload_dependents)}
    _control("Failed to unload model: ", "unload_model", fields)


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    if not isinstance(model_name, str) or not isinstance(model_version, str):
        signature = "(model_name: str, model_version: str = '') -> bool"
        raise incompatible("is_model_ready", signature, model_name, model_version)
    fields = {"model": model_name, "version": model_version}
    return bool(_control("Failed to check model readiness: ", "is_model_ready", fields))
