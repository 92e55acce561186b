"""The backend's duties for forests: tell what a model file has, check the config against it, hand out instances.

Source of names and rules: Triton's FIL backend. Knows configs and forests, nothing of front ends or schedulers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from typing import Any

from triton_fast._native.arrays.pyarrays import ArrayInstance
from triton_fast._native.fil.forest import Forest
from triton_fast._native.fil.instance import ForestInstance
from triton_fast._native.sched.instance import NativeInstance
from triton_fast.backends import trial
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.backends.fil import gpu_library, library, probe
from triton_fast.backends.fil.gpu import GpuCall, GpuForest, Shape
from triton_fast.backends.fil.settings import Settings, model_path, most_threads, read, read_gpu, seconds
from triton_fast.backends.model_file import check_file, shown, without_paths
from triton_fast.backends.values import default_max_batch_size
from triton_fast.config import ConfigError, ModelTensor, complete_from_model
from triton_fast.errors import ServerError, Unsupported, make
from triton_fast.observability import log
from triton_fast.types import DataType

INPUT = "input__0"
OUTPUT = "output__0"
TREESHAP = "treeshap_output"
# Trees are cheap: a batch is many rows.
DEFAULT_MAX_BATCH_SIZE = 8192
DATATYPES = frozenset({DataType.FP32})
_BINARY, _MULTI = 0, 2


class FilBackend(Backend):
    name = "fil"
    default_filename = ""  # it depends on model_type
    decoupled = True

    def datatypes(self) -> frozenset[DataType]:
        return DATATYPES

    @property
    def gpu(self) -> bool:
        return not gpu_library.why_not()

    @property
    def no_gpu(self) -> str:
        return gpu_library.why_not()

    def complete_config(self, context: LoadContext) -> Any:
        config = context.config
        if config.input and config.output:
            return config
        settings = read(config, context.version_dir)
        forest = _read_forest(context, settings)
        default = default_max_batch_size(
            context.settings, DEFAULT_MAX_BATCH_SIZE, "backend setting '{key}' must be a whole number, got '{text}'"
        )
        width = _widths(forest, settings)[-1]
        complete_from_model(
            config, [ModelTensor(INPUT, DataType.FP32, (-1, forest.features))],
            [ModelTensor(OUTPUT, DataType.FP32, (-1, width))],
            default_max_batch_size=default, given=context.given,
        )  # fmt: skip
        return config

    def load(self, context: LoadContext) -> BackendModel:
        return FilModel(context)


class FilModel(BackendModel):
    """One opened version: a forest that all instances on the CPU share, and one on each GPU that has any."""

    def __init__(self, context: LoadContext) -> None:
        self._context = context
        self._settings = settings = read(context.config, context.version_dir)
        _check_names(context)
        self._forest = forest = _read_forest(context, settings)
        self._width, self._dims = _check_shapes(context, forest, settings)
        margins = forest.postprocessor == "identity_multiclass" and not forest.vector_leaves
        if settings.predict_proba and forest.task == _MULTI and margins:
            # A tree for each class gives margins; leaves that hold all classes are probabilities already.
            forest.set_postprocessor("softmax")
        classifier = _is_classifier(forest, settings)
        self._classes = classifier and not settings.predict_proba
        self._pair = classifier and settings.predict_proba and forest.width == 1 and self._width == 2
        self._threads = min(settings.threads or max(1, context.threads_per_instance), most_threads())
        self._lock = threading.Lock()
        self._gpus: dict[int, GpuForest] = {}
        self._calls: list[GpuCall] = []
        on_gpu = any(group.kind == group.KIND_GPU for group in context.config.instance_group)
        self._gpu_settings = read_gpu(context.config) if on_gpu else None
        ignored, where = (settings.ignored, "the CPU") if self._gpu_settings is None else (
            self._gpu_settings.ignored, "GPUs"
        )  # fmt: skip
        if ignored:
            log.info(f"parameters without effect on {where}: {', '.join(ignored)}", model=context.name)

    def create_instance(self, spec: InstanceSpec) -> NativeInstance:
        if spec.kind == "KIND_GPU":
            return self._on_gpu(spec)
        return ForestInstance(
            self._forest, self._context.config.max_batch_size, self._dims, classes=self._classes, pair=self._pair,
            threshold=self._settings.threshold, threads=self._threads, name=spec.name,
        )  # fmt: skip

    def is_ready(self) -> bool:
        return not any(gpu_library.lost(device) for device in list(self._gpus))

    def trim(self, keep: int) -> None:
        """Give back what is kept on GPUs for the next call; it can not be told how much of it to keep."""
        for gpu in list(self._gpus.values()):
            gpu.clean()

    def close(self) -> None:
        """The forest on the CPU goes with the last instance."""
        with self._lock:
            calls, self._calls = self._calls, []
            gpus, self._gpus = list(self._gpus.values()), {}
        for call in calls:
            call.release()
        while gpus:
            gpu = gpus.pop()
            gpu.close()

    def _on_gpu(self, spec: InstanceSpec) -> ArrayInstance:
        context, settings = self._context, self._gpu_settings
        # Instances may be changed on a version that is open.
        settings = read_gpu(context.config) if settings is None else settings
        context.host.use_gpu(spec.device)
        batch = context.config.max_batch_size
        with self._lock:
            gpu = self._gpus.get(spec.device)
            if gpu is None:
                gpu = self._gpus[spec.device] = GpuForest(context.name, self._forest, spec.device, settings)
            call = GpuCall(
                context.name, gpu, Shape(
                    self._classes, self._pair, self._settings.threshold, self._dims,
                    2 if self._pair else 1 if self._classes else self._forest.width, batch > 0,
                ),
                cpu=(self._forest, self._threads), transfer_threshold=settings.transfer_threshold,
                on_lost=context.host.changed,
            )  # fmt: skip
            self._calls.append(call)
        return ArrayInstance(call, 1, 1, batch, spec.name, gpu=spec.device)


def _is_classifier(forest: Forest, settings: Settings) -> bool:
    """Tell what the config says, else what the model is."""
    return forest.task in (_BINARY, _MULTI) if settings.classifier is None else settings.classifier


def _widths(forest: Forest, settings: Settings) -> tuple[int, ...]:
    """Values of a row that the output may have, the natural one last."""
    if not _is_classifier(forest, settings):
        return (forest.width,)
    if not settings.predict_proba:
        return (1,)
    return (1, 2) if forest.width == 1 else (forest.width,)


def _check_names(context: LoadContext) -> None:
    config = context.config
    for side, tensors, wanted in (("input", config.input, INPUT), ("output", config.output, OUTPUT)):
        for tensor in tensors:
            if tensor.name == TREESHAP:
                raise Unsupported(f"unable to load model '{context.name}', '{TREESHAP}' (Shapley values) is not "
                                  "supported: only output__0 is computed")  # fmt: skip
            if tensor.name != wanted:
                raise ConfigError(f"unexpected inference {side} '{tensor.name}', allowed {side}s are: {wanted}")
            if tensor.data_type not in DATATYPES:
                raise ConfigError(
                    f"unable to load model '{context.name}', configuration expects datatype "
                    f"TYPE_{DataType(tensor.data_type).name} for {side} '{wanted}', model provides TYPE_FP32"
                )
        if len(tensors) != 1:
            raise ConfigError(
                f"unable to load model '{context.name}', configuration expects {len(tensors)} {side}s, model provides 1"
            )
    if config.HasField("sequence_batching"):
        raise ConfigError(f"unable to load model '{context.name}', forests take no sequence tensors")


def _dims(tensor: Any) -> list[int]:
    """The shape that the model sees."""
    return list(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)


def _check_shapes(context: LoadContext, forest: Forest, settings: Settings) -> tuple[int, Sequence[int]]:
    """Return the output's values of a row, and its dims without the batch dimension."""
    config = context.config
    batched = config.max_batch_size > 0
    prefix = f"unable to load model '{context.name}'"
    given, made = _dims(config.input[0]), _dims(config.output[0])
    if given[-1:] != [forest.features] or (batched and len(given) != 1) or len(given) > 2:
        raise ConfigError(
            f"{prefix}, tensor '{INPUT}': the model expects {forest.features} features but the model configuration "
            f"specifies dims {given}"
        )
    rows = [] if batched else given[:-1]
    widths = _widths(forest, settings)
    fixed = math.prod(dim for dim in made if dim >= 0)
    free = made.count(-1)
    times = rows[0] if rows and rows[0] >= 0 else 1
    if free != (1 if rows and rows[0] < 0 else 0) or fixed not in [times * width for width in widths]:
        raise ConfigError(
            f"{prefix}, tensor '{OUTPUT}': the model makes {' or '.join(map(str, widths))} values of a row but the "
            f"model configuration specifies dims {made}"
        )
    return fixed // times, made


def _read_forest(context: LoadContext, settings: Settings) -> Forest:
    opened = library.open_library()
    path = model_path(context.config, settings.kind, context.version_dir)
    label = shown(context, path)
    prefix = f"unable to load model '{context.name}', '{label}'"
    check_file(context, path)
    try:
        with without_paths(context), trial.Held(str(path), copied=True) as file:
            probe.check(
                opened, file, settings.kind, unknown_fields=settings.unknown_fields, timeout=seconds(context.settings)
            )
            forest = Forest(file.name, settings.kind, settings.unknown_fields)
            file.unchanged()
            return forest
    except ServerError as error:
        text = f"{prefix} is no {settings.kind} model that can be read: {error.message}"
        raise make(error.code, text) from None
