"""What a model's config says about its ONNX Runtime session, as plain values, checked before anything is opened.

Parameter names and meanings are those of Triton's ONNX Runtime backend. Source: spec/model_config.md section 4.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from triton_fast._native.ort.session import SessionOptions
from triton_fast.backends.base import LoadContext
from triton_fast.backends.onnxruntime.values import flag, whole
from triton_fast.errors import InvalidArg, Unsupported
from triton_fast.observability import log

# optimization.graph.level -> ORT's level: all, basic, extended, none.
GRAPH_LEVELS = {-1: 1, 1: 2, 2: 0}
GRAPH_ALL = 99
# Parameters that are ORT session config entries by their own name.
ENTRY_PREFIXES = ("session.", "optimization.", "mlas.", "ep.")
SHRINKAGE = "memory.enable_memory_arena_shrinkage"
# Accelerator name in the config -> name of the provider in ORT's list and in the append call.
GPU_ACCELERATORS = {"cuda": ("CUDAExecutionProvider", "CUDA"), "tensorrt": ("TensorrtExecutionProvider", "TensorRT")}
CPU_ACCELERATORS = {"openvino": ("OpenVINOExecutionProvider", "OpenVINO")}
PACKAGES = {"cuda": "onnxruntime-gpu", "tensorrt": "onnxruntime-gpu", "openvino": "onnxruntime-openvino"}
# Deprecated top-level parameters that are options of the CUDA provider.
CUDA_PARAMETERS = ("cudnn_conv_algo_search", "gpu_mem_limit", "arena_extend_strategy", "do_copy_in_default_stream")
TENSORRT_PARAMETERS = {
    "max_workspace_size_bytes": "trt_max_workspace_size",
    "int8_calibration_table_name": "trt_int8_calibration_table_name",
    "int8_use_native_calibration_table": "trt_int8_use_native_calibration_table",
}
PRECISIONS = {"FP16": "trt_fp16_enable", "BF16": "trt_bf16_enable", "INT8": "trt_int8_enable", "FP32": ""}


@dataclass(frozen=True)
class Provider:
    """An execution provider to append: ``name`` of the append call and its options."""

    name: str
    options: Mapping[str, str]
    gpu: bool


@dataclass(frozen=True)
class SessionPlan:
    """Everything ``build`` needs. Threads are per session; ``inter`` matters only when ``parallel``."""

    name: str
    graph_level: int
    parallel: bool
    intra: int
    inter: int
    global_pool: bool
    mem_arena: bool | None
    mem_pattern: bool | None
    entries: Mapping[str, str] = field(default_factory=dict)
    run_entries: Mapping[str, str] = field(default_factory=dict)
    libraries: Sequence[str] = ()
    providers: Sequence[Provider] = ()

    @property
    def shareable(self) -> bool:
        """Whether one session may serve all instances.

        ORT allows concurrent runs of a session. With one thread per run there is no pool to share out, so instances
        only gain: the weights are loaded once. With a pool, each instance gets its own session as in Triton, so that
        ``intra_op_thread_count`` means threads of one run.
        """
        return not self.global_pool and self.intra == 1 and not self.parallel and not self.providers


def parameters(config: Any) -> dict[str, str]:
    return {key: value.string_value for key, value in config.parameters.items()}


def make_plan(context: LoadContext, *, available: Sequence[str], global_pool: bool) -> SessionPlan:
    """Return the plan of a model.

    Parameters
    ----------
    available
        ORT's list of execution providers in this build.
    global_pool
        Whether sessions use the process-wide thread pool.

    Raises
    ------
    InvalidArg
        A value that can not be used, or an unknown accelerator.
    Unsupported
        An accelerator that this build of ORT does not have.
    """
    config, given, settings = context.config, parameters(context.config), context.settings
    mode = given.get("execution_mode", "0").strip()
    if mode not in ("0", "1"):
        raise InvalidArg(
            f"Invalid configuration value provided. Expected values for  execution_mode are 0 or 1 but got {mode} ."
        )

    def count(key: str, default: int) -> int:
        # The model's parameter, else the server's --backend-config; 0 or nothing means the default.
        return whole(given.get(key, "0"), key) or whole(settings.get(key, "0"), key) or default

    def choice(key: str) -> bool | None:
        return flag(given[key], key) if key in given else None

    entries = {key: text for key, text in given.items() if key.startswith(ENTRY_PREFIXES)}
    # Idle pool threads of ORT spin by default. The cores they would burn are those of the other instances and of the
    # event loop, so they sleep unless the config says otherwise.
    entries.setdefault("session.intra_op.allow_spinning", "0")
    entries.setdefault("session.inter_op.allow_spinning", "0")
    level = config.optimization.graph.level if config.optimization.HasField("graph") else 0
    return SessionPlan(
        name=context.name,
        graph_level=GRAPH_LEVELS.get(level, GRAPH_ALL),
        parallel=mode == "1",
        intra=count("intra_op_thread_count", max(1, context.threads_per_instance)),
        inter=count("inter_op_thread_count", max(1, context.threads_per_instance)),
        global_pool=global_pool,
        mem_arena=choice("enable_mem_arena"),
        mem_pattern=choice("enable_mem_pattern"),
        entries=entries,
        run_entries={SHRINKAGE: given[SHRINKAGE]} if SHRINKAGE in given else {},
        libraries=_libraries(config, context.model_dir),
        providers=_providers(config, given, available),
    )


def build(plan: SessionPlan, *, gpu: bool, device: int = 0) -> SessionOptions:
    """Return the ORT options of one session on the CPU, or on one GPU."""
    options = SessionOptions()
    options.log(plan.name, 0 if log.is_verbose(3) else 1 if log.is_verbose(2) else 2)
    options.graph_level(plan.graph_level)
    options.parallel(plan.parallel)
    if plan.global_pool:
        options.use_global_pool()
    else:
        options.threads(plan.intra, plan.inter)
    if plan.mem_arena is not None:
        options.mem_arena(plan.mem_arena)
    if plan.mem_pattern is not None:
        options.mem_pattern(plan.mem_pattern)
    for key, text in plan.entries.items():
        options.entry(key, text)
    for library in plan.libraries:
        options.custom_ops(library)
    for provider in plan.providers:
        if gpu or not provider.gpu:
            extra = {"device_id": str(device)} if provider.gpu else {}
            options.provider(provider.name, {**provider.options, **extra})
    if gpu and not any(provider.name == "CUDA" for provider in plan.providers):
        options.provider("CUDA", {"device_id": str(device)})
    return options


def _libraries(config: Any, model_dir: Path) -> list[str]:
    """Custom op libraries; a relative name is looked for in the model's directory first."""
    found = []
    for name in config.model_operations.op_library_filename:
        local = model_dir / name
        found.append(str(local if local.is_file() else name))
    return found


def _providers(config: Any, given: Mapping[str, str], available: Sequence[str]) -> list[Provider]:
    accelerators = config.optimization.execution_accelerators
    found: list[Provider] = []
    for gpu, known, requested in (
        (True, GPU_ACCELERATORS, accelerators.gpu_execution_accelerator),
        (False, CPU_ACCELERATORS, accelerators.cpu_execution_accelerator),
    ):
        for item in requested:
            if item.name not in known:
                raise InvalidArg(f"unknown Execution Accelerator '{item.name}' is requested")
            listed, name = known[item.name]
            need(listed, item.name, config.name, available)
            options = dict(item.parameters)
            if name == "TensorRT":
                options = _tensorrt_options(options)
            elif name == "CUDA":
                options = {key: given[key] for key in CUDA_PARAMETERS if key in given} | options
            found.append(Provider(name, options, gpu))
    return found


def need(listed: str, accelerator: str, model: str, available: Sequence[str]) -> None:
    """Raise Unsupported unless this build of ORT has the provider."""
    if listed not in available:
        raise Unsupported(
            f"unable to load model '{model}', Execution Accelerator '{accelerator}' is requested but the installed "
            f"ONNX Runtime has only {', '.join(available)}; install {PACKAGES[accelerator]}"
        )


def _tensorrt_options(given: Mapping[str, str]) -> dict[str, str]:
    options: dict[str, str] = {}
    for key, text in given.items():
        if key == "precision_mode":
            if text not in PRECISIONS:
                raise InvalidArg(f"unsupported precision mode '{text}' is requested")
            if PRECISIONS[text]:
                options[PRECISIONS[text]] = "1"
        elif key in TENSORRT_PARAMETERS or key.startswith("trt_"):
            options[TENSORRT_PARAMETERS.get(key, key)] = text
        else:
            raise InvalidArg(f"unknown parameter '{key}' is provided for TensorRT Execution Accelerator")
    return options
