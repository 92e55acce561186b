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
from triton_fast.backends.onnxruntime.gpu_options import (
    SHRINKAGE,
    arenas,
    cause,
    cuda_options,
    shrinkage,
    tensorrt_options,
)
from triton_fast.backends.onnxruntime.providers import GPU
from triton_fast.backends.values import flag, threads
from triton_fast.errors import Internal, InvalidArg, ServerError, Unsupported
from triton_fast.observability import log

# optimization.graph.level -> ORT's level: all, basic, extended, none.
GRAPH_LEVELS = {-1: 1, 1: 2, 2: 0}
GRAPH_ALL = 99
# Parameters that are ORT session config entries by their own name.
ENTRY_PREFIXES = ("session.", "optimization.", "mlas.", "ep.")
CPU_ACCELERATORS = {"openvino": ("OpenVINOExecutionProvider", "OpenVINO")}


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
    shrink: tuple[str, ...] = ()
    libraries: Sequence[str] = ()
    providers: Sequence[Provider] = ()

    @property
    def shareable(self) -> bool:
        """Whether one session may serve all instances.

        ORT allows concurrent runs of a session. With one thread per run there is no pool to share out, so instances
        only gain: the weights are loaded once. With a pool, each instance gets its own session as in Triton, so that
        ``intra_op_thread_count`` means threads of one run. So does each on a GPU, where ``gpu_mem_limit`` is that of
        one instance.
        """
        cpu_providers = any(not provider.gpu for provider in self.providers)
        return not self.global_pool and self.intra == 1 and not self.parallel and not cpu_providers

    def run_entries(self, *, gpu: bool, device: int) -> dict[str, str]:
        """Return the run options of an instance."""
        text = shrinkage(self.shrink, gpu=gpu, device=device)
        return {SHRINKAGE: text} if text else {}


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
        return threads(given.get(key, "0"), key) or threads(settings.get(key, "0"), key) or default

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
        shrink=arenas(given[SHRINKAGE]) if SHRINKAGE in given else (),
        libraries=_libraries(config, context.model_dir),
        providers=_providers(config, given, settings, available),
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
            try:
                options.provider(provider.name, {**provider.options, **extra})
            except Internal as error:
                raise _refusal(provider, plan.name, str(error)) from None
    return options


def _refusal(provider: Provider, model: str, text: str) -> ServerError:
    short = cause(text, provider.name)
    if short == text:
        return Internal(text)
    kind = InvalidArg if "parameter '" in short else Unsupported
    return kind(f"unable to load model '{model}', {short}")


def _libraries(config: Any, model_dir: Path) -> list[str]:
    """Custom op libraries; a relative name is looked for in the model's directory first."""
    found = []
    for name in config.model_operations.op_library_filename:
        local = model_dir / name
        found.append(str(local if local.is_file() else name))
    return found


def _providers(
    config: Any, given: Mapping[str, str], settings: Mapping[str, str], available: Sequence[str]
) -> list[Provider]:
    """Return the providers in the order in which ORT asks them for a node; on a GPU, CUDA is always among them."""
    accelerators = config.optimization.execution_accelerators
    found: list[Provider] = []
    cuda: Mapping[str, str] = {}
    for item in accelerators.gpu_execution_accelerator:
        _known(item.name, GPU)
        if item.name == "cuda":
            cuda = dict(item.parameters)
        else:
            found.append(Provider("TensorRT", tensorrt_options(item.parameters), gpu=True))
    # Last of the GPU's: what TensorRT does not take falls to CUDA, wherever the config names it.
    options = cuda_options(cuda, given, settings)
    if options.pop("enable_cuda_graph", "0") == "1":
        # ORT replays a graph on the memory of the run that it captured: with the memory of another request, outputs
        # would be those of old inputs.
        log.warning("enable_cuda_graph has no effect: requests do not lie in fixed device memory", model=config.name)
    found.append(Provider("CUDA", options, gpu=True))
    for item in accelerators.cpu_execution_accelerator:
        _known(item.name, CPU_ACCELERATORS)
        listed, name = CPU_ACCELERATORS[item.name]
        if listed not in available:
            raise Unsupported(
                f"unable to load model '{config.name}', Execution Accelerator '{item.name}' is requested but the "
                f"installed ONNX Runtime has only {', '.join(available)}; install onnxruntime-openvino"
            )
        found.append(Provider(name, dict(item.parameters), gpu=False))
    return found


def _known(name: str, known: Mapping[str, object]) -> None:
    if name not in known:
        raise InvalidArg(f"unknown Execution Accelerator '{name}' is requested")
