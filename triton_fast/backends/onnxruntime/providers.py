"""Whether the GPU providers of the installed ONNX Runtime can be used here, and if not, why and what would help.

Asked before a model is opened, so that KIND_AUTO can stay on the CPU. Knows no config.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from triton_fast._native.ort import capi
from triton_fast.backends.onnxruntime import cuda_libraries, library

# Accelerator in a config -> the provider's name in ORT's list, its name in the append call, its file.
GPU = {
    "cuda": ("CUDAExecutionProvider", "CUDA", library.CUDA_PROVIDER),
    "tensorrt": ("TensorrtExecutionProvider", "TensorRT", "libonnxruntime_providers_tensorrt.so"),
}
_lock = threading.Lock()
_reasons: dict[str, str] = {}


def why_not(accelerator: str) -> str:
    """Return why this GPU provider can not be used, with the fix; empty where it can. Looks once in a process."""
    with _lock:
        if accelerator not in _reasons:
            library.open_library()
            _reasons[accelerator] = find_reason(accelerator, capi.providers(), library.find_library().parent)
        return _reasons[accelerator]


def find_reason(accelerator: str, available: Sequence[str], folder: Path) -> str:
    """Look, and open the libraries that the provider needs. ``folder``: where ORT's own libraries lie."""
    listed, _, name = GPU[accelerator]
    file = folder / name
    if listed not in available:
        return (
            f"the installed ONNX Runtime has only {', '.join(available)}; install onnxruntime-gpu: "
            "pip uninstall onnxruntime, then pip install onnxruntime-gpu"
        )
    if not file.is_file():
        return f"{name} is not beside the installed ONNX Runtime; reinstall it: pip install onnxruntime-gpu"
    if not cuda_libraries.has_driver():
        return "NVIDIA's driver is not installed: libcuda.so.1 can not be opened"
    linked = cuda_libraries.needed(file)
    missing = cuda_libraries.open_for(file)
    major = cuda_libraries.cuda_major(cuda_libraries.needed(folder / library.CUDA_PROVIDER))
    if missing:
        packages = dict.fromkeys(cuda_libraries.package_of(lost, major) for lost in missing)
        fix = " ".join(package for package in packages if package)
        return f"{name} needs {', '.join(missing)}" + (f"; pip install {fix}" if fix else "")
    error = cuda_libraries.runtime_error(linked)
    if error:
        return f"the CUDA {major} runtime that onnxruntime-gpu needs fails: {error}"
    return ""
