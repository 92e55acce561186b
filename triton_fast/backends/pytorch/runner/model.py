"""Serves a class of PyTorch: ``model.py`` with one subclass of torch.nn.Module, and its weights beside it in model.pt.

Runs as a Python model, in a process of its own; imports nothing of the server.
"""

from __future__ import annotations

import importlib.util
import json
import os
import sys
import threading
from typing import Any

import triton_python_backend_utils as pb_utils

try:
    import torch
except ModuleNotFoundError:
    raise pb_utils.TritonModelException(
        "PyTorch is not installed: pip install 'triton_fast[pytorch]' (or pip install torch)"
    ) from None

COMPILE = "TORCH_COMPILE_OPTIONAL_PARAMETERS"
FILES = ("model.py",)
# Datatypes that are numpy's too.
OF_NUMPY = {
    torch.float16, torch.float32, torch.float64, torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8,
    torch.uint16, torch.uint32, torch.uint64, torch.bool,
}  # fmt: skip
# How long a worker whose GPU takes no more work answers what it has before another one takes its place.
LAST_S = 1.0


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self._parameters = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        self._batched = config.get("max_batch_size", 0) > 0
        self._inputs = [tensor["name"] for tensor in config["input"]]
        self._outputs = [tensor["name"] for tensor in config["output"]]
        self._not_numpy = {one["name"] for one in config["input"] if one["data_type"] in ("TYPE_BF16", "TYPE_STRING")}
        self._scalar = not self._batched
        # Requests with a ragged input differ in its shape.
        self._joins = self._batched and not any(tensor.get("allow_ragged_batch") for tensor in config["input"])
        self._name = args["model_instance_name"]
        self._lost = ""
        self._threads()
        folder = os.path.join(args["model_repository"], args["model_version"])
        path = _model_path(folder, config.get("default_model_filename", ""))
        module = _class_of(path, args["model_name"])()
        self._device = _device(args["model_instance_kind"], args["model_instance_device_id"], module)
        weights = path.removesuffix(".py") + ".pt"
        if os.path.isfile(weights):
            _load_weights(module, weights, self._device)
        else:
            pb_utils.Logger.log_info("Model parameter file not found for '" + args["model_name"] + "'")
        module.to(self._device)
        module.eval()
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        # Compiling needs a C++ compiler and makes the first calls slow, so it is done where the config asks for it.
        options = self._compile()
        self._module = module if options is None else torch.compile(module, **options)
        wanted = self._parameters.get("INFERENCE_MODE", "true").strip().lower()
        self._guard = torch.no_grad if wanted in ("0", "false", "off", "no") else torch.inference_mode

    def execute(self, requests: list[Any]) -> list[Any]:
        if self._lost:
            return [_response_of(self._lost) for _ in requests]
        given = [
            [self._tensor(name, pb_utils.get_input_tensor_by_name(request, name)) for name in self._inputs]
            for request in requests
        ]
        # Requests of a batch have the same shapes but for their rows.
        if self._joins and len(requests) > 1:
            sizes = [_rows(tensors) for tensors in given]
            try:
                whole = [
                    _on_the_host(one) for one in self._run([_joined(column) for column in zip(*given, strict=True)])
                ]
            except Exception as error:
                text = self._failed(error)
                return [_response_of(text) for _ in requests]
            self._joins = all(one.shape[:1] == (sum(sizes),) for one in whole[: len(self._outputs)])
            if self._joins:
                return [self._response([one[start:end] for one in whole]) for start, end in _ranges(sizes)]
            # Its outputs can not be cut: from now on each request is a call, as always in Triton.
            pb_utils.Logger.log_warn(f"'{self._name}' makes outputs without a row for each input: requests run alone")
        return [self._single(tensors) for tensors in given]

    def _single(self, tensors: list[Any]) -> Any:
        try:
            return self._response([_on_the_host(one) for one in self._run(tensors)])
        except Exception as error:
            return _response_of(self._failed(error))

    def _run(self, tensors: list[Any]) -> list[Any]:
        # What is left out at the end of a call has its default.
        while tensors and tensors[-1] is None:
            tensors.pop()
        with self._guard():
            results = self._module(*tensors)
        if isinstance(results, dict) and all(name in results for name in self._outputs):
            results = [results[name] for name in self._outputs]
        results = _leaves(results)
        if len(results) < len(self._outputs):
            raise ValueError(f"the model returned {len(results)} outputs, the configuration has {len(self._outputs)}")
        return results

    def _tensor(self, name: str, tensor: Any) -> Any:
        if tensor is None:  # an optional input
            return None
        # Both are views of the same memory; that by numpy takes a tenth of the time.
        made = torch.from_dlpack(tensor.to_dlpack()) if name in self._not_numpy else torch.from_numpy(tensor.as_numpy())
        if made.dtype is torch.bool:
            # A client may send any byte; kernels count on 0 and 1.
            made = made.view(torch.uint8).ne(0)
        return made.to(self._device)

    def _response(self, results: list[Any]) -> Any:
        outputs = []
        for name, one in zip(self._outputs, results, strict=False):
            made = one.reshape(1) if self._scalar and one.ndim == 0 else one
            is_torch = isinstance(made, torch.Tensor)
            outputs.append(pb_utils.Tensor.from_dlpack(name, made) if is_torch else pb_utils.Tensor(name, made))
        return pb_utils.InferenceResponse(output_tensors=outputs)

    def _failed(self, error: Exception) -> str:
        """Return what requests are told, and see to the GPU if it has a part in it."""
        line = _line(error)
        if torch.cuda.is_initialized():
            if "CUDA out of memory" in str(error):
                line = line.split(" GPU ")[0].rstrip(".")
                torch.cuda.empty_cache()
            elif "CUDA" in line and not _is_alive():
                self._lost = line
                pb_utils.Logger.log_error(f"'{self._name}' starts again, its GPU takes no more work from it: {line}")
                last = threading.Timer(LAST_S, os._exit, (1,))
                last.daemon = True
                last.start()
        return line

    def _threads(self) -> None:
        # Instances are processes: each has one thread unless the config says otherwise, as in Triton.
        for setter, keys in (
            (torch.set_num_threads, ("NUM_THREADS", "INTRA_OP_THREAD_COUNT")),
            (torch.set_num_interop_threads, ("NUM_INTEROP_THREADS", "INTER_OP_THREAD_COUNT")),
        ):
            text = next((self._parameters[key] for key in keys if key in self._parameters), "1")
            setter(max(1, int(text)))

    def _compile(self) -> dict[str, Any] | None:
        if COMPILE not in self._parameters:
            return None
        values = json.loads(self._parameters[COMPILE] or "{}")
        if not isinstance(values, dict):
            raise pb_utils.TritonModelException(f"parameter '{COMPILE}' must be a JSON object")
        if "model" in values:
            raise pb_utils.TritonModelException("'model' is not an optional parameter for 'torch.compile'")
        return values


def _rows(tensors: list[Any]) -> int:
    return next((tensor.shape[0] for tensor in tensors if tensor is not None), 0)


def _joined(column: tuple[Any, ...]) -> Any:
    """Return the tensors of all requests as one. Those of a batch have the same optional inputs."""
    return None if column[0] is None else torch.cat(column)


def _leaves(value: Any) -> list[Any]:
    """Return the tensors of nested tuples, lists and dicts in the order in which they are written."""
    if isinstance(value, dict):
        value = list(value.values())
    return [leaf for one in value for leaf in _leaves(one)] if isinstance(value, (tuple, list)) else [value]


def _on_the_host(one: Any) -> Any:
    """Return an array of numpy over a dense tensor, or the tensor where numpy has no such numbers."""
    made = one.detach().cpu().contiguous()
    return made.numpy() if made.dtype in OF_NUMPY else made


def _ranges(sizes: list[int]) -> list[tuple[int, int]]:
    ranges, at = [], 0
    for size in sizes:
        ranges.append((at, at + size))
        at += size
    return ranges


def _line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _is_alive() -> bool:
    try:
        torch.cuda.synchronize()
    except Exception:
        return False
    return True


def _response_of(line: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(f"PyTorch execute failure: {line}"))


def _model_path(folder: str, given: str) -> str:
    names = [given, *FILES] if given.endswith(".py") else list(FILES)
    for name in names:
        if os.path.isfile(os.path.join(folder, name)):
            return os.path.join(folder, name)
    raise pb_utils.TritonModelException(f"No model found, it should be {' or '.join(names)}")


def _class_of(path: str, name: str) -> Any:
    """Return the first subclass of torch.nn.Module by name, as Triton does; the module's own before imported ones."""
    spec = importlib.util.spec_from_file_location("model_of_" + "".join(c if c.isalnum() else "_" for c in name), path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    # Where classes, and what pickles them, look for it.
    sys.modules[spec.name] = module
    sys.path.insert(0, os.path.dirname(path))
    spec.loader.exec_module(module)
    found = [
        value
        for _, value in sorted(vars(module).items())
        if isinstance(value, type) and issubclass(value, torch.nn.Module) and value is not torch.nn.Module
    ]
    if not found:
        raise pb_utils.TritonModelException("Cannot find a subclass of torch.nn.Module")
    return next((value for value in found if value.__module__ == spec.name), found[0])


def _load_weights(module: Any, path: str, device: Any) -> None:
    # Tensors and plain containers only: a pickle could run any code.
    try:
        weights = torch.load(path, map_location=device, weights_only=True)
        module.load_state_dict(weights)
    except Exception as error:
        line = _line(error).replace(os.path.dirname(path) + os.sep, "")
        raise pb_utils.TritonModelException(f"unable to load the weights '{os.path.basename(path)}': {line}") from None


def _device(kind: str, number: str, module: Any) -> Any:
    if kind == "GPU":
        if not torch.cuda.is_available():
            raise pb_utils.TritonModelException("an instance group asks for KIND_GPU and PyTorch finds no CUDA GPU")
        if int(number) >= torch.cuda.device_count():
            raise pb_utils.TritonModelException(
                f"an instance group asks for GPU {number}, PyTorch finds {torch.cuda.device_count()}"
            )
        return torch.device("cuda:" + number)
    if kind == "CPU":
        return torch.device("cpu")
    for parameter in module.parameters():
        return parameter.device
    return torch.device("cpu")
