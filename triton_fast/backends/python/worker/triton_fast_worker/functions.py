"""The functions of triton_python_backend_utils."""

from __future__ import annotations

from typing import Any, Optional

import numpy as np

from triton_fast_worker import runtime
from triton_fast_worker.errors import TritonModelException
from triton_fast_worker.request import InferenceRequest
from triton_fast_worker.response import InferenceResponse
from triton_fast_worker.tensor import NUMPY, STRING, Tensor, number_of

TRITON_STRING_TO_NUMPY = {
    "TYPE_BOOL": np.bool_,
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


def _find(tensors: list[Tensor], name: str) -> Optional[Tensor]:
    for tensor in tensors:
        if tensor._name == name:
            return tensor
    return None


def get_input_tensor_by_name(inference_request: InferenceRequest, name: str) -> Optional[Tensor]:
    """Return the input of this name, or None."""
    return _find(inference_request.inputs(), name)


def get_output_tensor_by_name(inference_response: InferenceResponse, name: str) -> Optional[Tensor]:
    """Return the output of this name, or None."""
    return _find(inference_response.output_tensors(), name)


def _config_of(model_config: dict[str, Any], kind: str, name: str) -> Optional[dict[str, Any]]:
    for entry in model_config.get(kind, ()):
        if entry.get("name") == name:
            return dict(entry)
    return None


def get_input_config_by_name(model_config: dict[str, Any], name: str) -> Optional[dict[str, Any]]:
    """Return the configuration of an input, or None."""
    return _config_of(model_config, "input", name)


def get_output_config_by_name(model_config: dict[str, Any], name: str) -> Optional[dict[str, Any]]:
    """Return the configuration of an output, or None."""
    return _config_of(model_config, "output", name)


def using_decoupled_model_transaction_policy(model_config: dict[str, Any]) -> bool:
    """Whether the model may answer a request with other than one response."""
    return bool(model_config.get("model_transaction_policy", {}).get("decoupled", False))


def triton_to_numpy_type(data_type: int) -> Any:
    """Return the numpy type of a datatype number; None when there is none."""
    if not 1 <= data_type <= STRING:
        return None
    return NUMPY[data_type].type


def numpy_to_triton_type(data_type: Any) -> Optional[int]:
    """Return the datatype number of a numpy type; None when there is none."""
    return number_of(np.dtype(data_type))


def triton_string_to_numpy(triton_type_string: str) -> Any:
    """Return the numpy type of "TYPE_FP32" and the like. Raises KeyError."""
    return TRITON_STRING_TO_NUMPY[triton_type_string]


def get_model_dir() -> str:
    """Return the path of the version directory."""
    return runtime.current().model_dir


def load_model(model_name: str, config: str = "", files: Optional[dict[str, bytes]] = None) -> None:
    """Load or reload a model; in explicit model control only. ``files``: {"file:1/model.onnx": content}."""
    if files is None:
        files = {}
    if not isinstance(files, dict):
        raise TritonModelException(
            f"failed to load model '{model_name}', files should be a dictionary of file paths and file contents"
        )
    contents = [bytes(content) for content in files.values()]
    sizes = [[name, len(content)] for name, content in zip(files, contents)]
    try:
        runtime.current().ask("load_model", blob=b"".join(contents), model=model_name, config=config, files=sizes)
    except TritonModelException as error:
        raise TritonModelException(f"Failed to load model: {error}") from None


def unload_model(model_name: str, unload_dependents: bool = False) -> None:
    """Unload a model; in explicit model control only."""
    try:
        runtime.current().ask("unload_model", model=model_name, unload_dependents=bool(unload_dependents))
    except TritonModelException as error:
        raise TritonModelException(f"Failed to unload model: {error}") from None


def is_model_ready(model_name: str, model_version: str = "") -> bool:
    """Whether a model can be asked."""
    try:
        return bool(runtime.current().ask("is_model_ready", model=model_name, version=str(model_version)))
    except TritonModelException as error:
        raise TritonModelException(f"Failed to check model readiness: {error}") from None
