"""Options of ONNX Runtime's CUDA and TensorRT providers, as a model's config and --backend-config give them.

Names and meanings are Triton's; what is not in a table goes to ORT by its own name, which refuses what it does not
know. Knows plain texts only.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from triton_fast.backends.values import flag, number
from triton_fast.errors import InvalidArg

# Options that may be written as parameters of the model or of the server too, not only of the accelerator.
BOOLEANS = (
    "do_copy_in_default_stream", "cudnn_conv_use_max_workspace", "cudnn_conv1d_pad_to_nc1d", "enable_cuda_graph",
    "use_ep_level_unified_stream", "prefer_nhwc", "tunable_op_enable", "tunable_op_tuning_enable",
    "enable_skip_layer_norm_strict_mode", "use_tf32", "fuse_conv_bias",
)  # fmt: skip
NUMBERS = ("gpu_mem_limit", "tunable_op_max_tuning_duration_ms", "sdpa_kernel")
# Triton's numbers for what ORT has words for.
WORDS = {
    "cudnn_conv_algo_search": ("EXHAUSTIVE", "HEURISTIC", "DEFAULT"),
    "arena_extend_strategy": ("kNextPowerOfTwo", "kSameAsRequested"),
}
PARAMETERS = (*BOOLEANS, *NUMBERS, *WORDS)
# Addresses inside the process: nothing that a config could know.
ADDRESSES = (
    "has_user_compute_stream", "user_compute_stream", "gpu_external_alloc", "gpu_external_free",
    "gpu_external_empty_cache",
)  # fmt: skip
TENSORRT_PARAMETERS = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
PRECISIONS = {"FP16": "trt_fp16_enable", "BF16": "trt_bf16_enable", "INT8": "trt_int8_enable", "FP32": ""}
SHRINKAGE = "memory.enable_memory_arena_shrinkage"
_ARENA = re.compile(r"(cpu|gpu):([0-9]{1,4})")
_UNKNOWN = re.compile(r'Unknown provider option: "([^"]*)"')
_UNPARSED = re.compile(r'Failed to parse provider option "([^"]*)": (.*)', re.DOTALL)


def cuda_options(accelerator: Mapping[str, str], model: Mapping[str, str], server: Mapping[str, str]) -> dict[str, str]:
    """Return the options of the CUDA provider but for its device.

    ``accelerator``: parameters of the accelerator; ``model``, ``server``: parameters of the model and of
    --backend-config. The model's hold over the accelerator's, as in Triton, and both over the server's. Raises
    InvalidArg.
    """
    given = {key: server[key] for key in PARAMETERS if key in server}
    given |= accelerator
    given |= {key: model[key] for key in PARAMETERS if key in model}
    options = {}
    for key, text in given.items():
        if key in ADDRESSES:
            raise InvalidArg(f"parameter '{key}' of CUDA Execution Accelerator is an address, which no config can give")
        # The instance decides about the device. ORT takes no empty texts; Triton leaves them out.
        if key != "device_id" and text:
            options[key] = _value(key, text.strip())
    return options


def _value(key: str, text: str) -> str:
    if key in WORDS:
        if text in WORDS[key]:
            return text
        if not text.isdigit() or int(text[:4]) >= len(WORDS[key]):
            raise InvalidArg(f"unsupported {key} value '{text}' is requested")
        return WORDS[key][int(text[:4])]
    if key in BOOLEANS:
        return "1" if flag(text, key) else "0"
    return str(number(text, key, 2**64 - 1)) if key in NUMBERS else text


def tensorrt_options(given: Mapping[str, str]) -> dict[str, str]:
    """Return the options of the TensorRT provider but for its device. Raises InvalidArg."""
    options: dict[str, str] = {}
    for key, text in given.items():
        if key == "precision_mode":
            if text not in PRECISIONS:
                raise InvalidArg(f"unsupported precision mode '{text}' is requested")
            if PRECISIONS[text]:
                options[PRECISIONS[text]] = "1"
        elif key in TENSORRT_PARAMETERS or key.startswith("trt_"):
            if text:
                options[TENSORRT_PARAMETERS.get(key, key)] = text
        else:
            raise InvalidArg(f"unknown parameter '{key}' is provided for TensorRT Execution Accelerator")
    return options


def arenas(text: str) -> tuple[str, ...]:
    """Return the arenas that are to shrink after each run, such as ("gpu:0", "cpu:0"). Raises InvalidArg."""
    found = tuple(part.strip() for part in text.split(";") if part.strip())
    if not found or not all(_ARENA.fullmatch(part) for part in found):
        raise InvalidArg(f"parameter '{SHRINKAGE}' must be a list as 'gpu:0;cpu:0', got '{text}'")
    return found


def shrinkage(listed: tuple[str, ...], *, gpu: bool, device: int) -> str:
    """Return the run option of one instance: ORT fails a run that names an arena which its session does not have."""
    own = {"cpu:0", f"gpu:{device}"} if gpu else {"cpu:0"}
    return ";".join(arena for arena in listed if arena in own)


def cause(text: str, provider: str) -> str:
    """Return what an error of appending a provider comes down to, without places in ORT's sources."""
    unknown = _UNKNOWN.search(text)
    if unknown:
        return f"unknown parameter '{unknown[1]}' is provided for {provider} Execution Accelerator"
    unparsed = _UNPARSED.search(text)
    if unparsed:
        reason = unparsed[2].strip().split(" ; ")[0]
        return f"parameter '{unparsed[1]}' of {provider} Execution Accelerator can not be used: {reason}"
    _, found, reason = text.partition(" with error: ")
    return f"the {provider} provider can not be loaded: {reason.strip()}" if found else text
