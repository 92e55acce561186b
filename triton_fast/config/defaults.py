"""What the server fills in itself: backend by file, then the normal form of every block.

Never changes a field that is already set. Must not open a model file: that is the backend's part (complete.py).
Source: spec/model_config.md sections 1, 2, 8.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from triton_fast import protos
from triton_fast.config.errors import ConfigError, did_you_mean
from triton_fast.config.paths import version_dirs

SEQUENCE_IDLE_US = 1_000_000
ENSEMBLE = "ensemble"
TENSORRT_PLATFORM = "tensorrt_plan"


class Kind(NamedTuple):
    """One row of the file table. ``form`` is what the entry must be: "file", "dir" or "" for either."""

    filename: str
    backend: str
    platform: str
    form: str = ""


# In Triton's order: the first that matches wins.
KINDS = (
    Kind("model.graphdef", "tensorflow", "tensorflow_graphdef", "file"),
    Kind("model.savedmodel", "tensorflow", "tensorflow_savedmodel", "dir"),
    Kind("model.plan", "tensorrt", "tensorrt_plan", "file"),
    Kind("model.onnx", "onnxruntime", "onnxruntime_onnx"),
    Kind("model.xml", "openvino", ""),
    Kind("model.pt", "pytorch", "pytorch_libtorch", "file"),
    Kind("model.pt2", "pytorch", "torch_aoti", "file"),
    Kind("model.py", "python", ""),
)
_PLATFORM_ALIASES = {"libtorch": "pytorch_libtorch"}
_TWO_CPU_INSTANCES = frozenset({"onnxruntime", "tensorflow"})


def fill_backend(
    config: Any, model_dir: Path, name: str = "", backend_names: Callable[[], Collection[str]] = tuple
) -> None:
    """Fill name, backend, platform and default_model_filename where they are empty.

    The first version directory (sorted as text) decides. ``name`` is the model's name where it is not that of
    the directory; ``backend_names`` the backends there are. Raises ConfigError when nothing tells the backend.
    """
    model = name or model_dir.name
    if not config.name:
        config.name = model
    if config.platform == ENSEMBLE:
        return
    versions = version_dirs(model_dir)
    version_dir = model_dir / versions[0] if versions else None
    kind = _kind(config, version_dir)
    if kind is not None:
        config.backend = config.backend or kind.backend
        # A given file name says nothing about the platform of a backend that has several.
        if not config.platform and kind.platform:
            config.platform = kind.platform
        config.default_model_filename = config.default_model_filename or kind.filename
    elif not (config.backend or config.platform or config.default_model_filename):
        _fill_custom(config, model, version_dir, backend_names)


def _kind(config: Any, version_dir: Path | None) -> Kind | None:
    """Return the row that the given fields name, or, when they name none, the one whose file is there."""
    platform = _PLATFORM_ALIASES.get(config.platform, config.platform)
    rows = [row for row in KINDS if not config.backend or row.backend == config.backend]
    if platform:
        rows = [row for row in rows if row.platform == platform or (config.backend and not row.platform)]
        return rows[0] if rows else None
    named = [row for row in rows if row.filename == config.default_model_filename]
    if named:
        return named[0]
    if config.default_model_filename and not config.backend:
        return None
    if not config.default_model_filename and version_dir is not None:
        for row in rows:
            if _exists(version_dir / row.filename, row.form):
                return row
    if not config.backend:
        return None
    return _main_row(config.backend)


def _main_row(backend: str) -> Kind | None:
    """Return what a backend loads when only its name is known; TensorFlow cannot tell."""
    rows = [row for row in KINDS if row.backend == backend]
    return None if not rows or backend == "tensorflow" else rows[0]


def _exists(path: Path, form: str) -> bool:
    if form == "dir":
        return path.is_dir()
    return path.is_file() if form == "file" else path.exists()


def _fill_custom(
    config: Any, model: str, version_dir: Path | None, backend_names: Callable[[], Collection[str]]
) -> None:
    # A model named 'anything.<backend>' says which backend loads it.
    _, dot, backend = model.partition(".")
    if not dot:
        backend = _by_file(version_dir, backend_names) if version_dir is not None else ""
    if not backend:
        raise ConfigError(
            f"Invalid model name: Could not determine backend for model '{model}' with no backend in model "
            "configuration. Expected model name of the form 'model.<backend_name>'.",
            hint=_file_hint(config, model, version_dir),
        )
    config.backend = backend
    config.default_model_filename = f"model.{backend}"


def _by_file(version_dir: Path, backend_names: Callable[[], Collection[str]]) -> str:
    """Return the backend that the only file model.<backend> names; empty where there is none, or several."""
    try:
        endings = [name.removeprefix("model.") for name in os.listdir(version_dir) if name.startswith("model.")]
    except OSError:
        return ""
    known = backend_names() if endings else ()
    found = [ending for ending in endings if ending in known]
    return found[0] if len(found) == 1 else ""


def _file_hint(config: Any, model: str, version_dir: Path | None) -> str:
    if config.HasField("ensemble_scheduling"):
        return 'an ensemble needs platform: "ensemble"'
    if version_dir is None:
        return f"there is no version directory: put the model file into '{model}/1/'"
    try:
        present = sorted(os.listdir(version_dir))[:5]
    except OSError as error:
        return f"'{model}/{version_dir.name}' cannot be read: {error.strerror}"
    where = f"'{model}/{version_dir.name}/'"
    if not present:
        return f"{where} is empty"
    for name in present:
        for row in KINDS:
            if name.lower().rstrip() == row.filename or Path(name).suffix == Path(row.filename).suffix:
                return f"{where} holds '{name}': rename it to '{row.filename}', or set default_model_filename"
    return did_you_mean(present[0], (row.filename for row in KINDS)) or f"{where} holds {', '.join(present)}"


def normalize_blocks(config: Any) -> None:
    """Bring version_policy, batching and optimization to Triton's normal form. Idempotent."""
    if not config.HasField("version_policy"):
        config.version_policy.latest.num_versions = 1
    top = config.max_batch_size
    if config.HasField("dynamic_batching") and top > 0 and not config.dynamic_batching.preferred_batch_size:
        config.dynamic_batching.preferred_batch_size.append(top)
    if config.HasField("sequence_batching"):
        sequence = config.sequence_batching
        if sequence.max_sequence_idle_microseconds == 0:
            sequence.max_sequence_idle_microseconds = SEQUENCE_IDLE_US
        if sequence.HasField("oldest") and top > 0 and not sequence.oldest.preferred_batch_size:
            sequence.oldest.preferred_batch_size.append(top)
    if not config.HasField("ensemble_scheduling"):
        optimization = config.optimization
        # Touching the message makes it present, as Triton does, even when both were given.
        optimization.SetInParent()
        if not optimization.HasField("input_pinned_memory"):
            optimization.input_pinned_memory.enable = True
        if not optimization.HasField("output_pinned_memory"):
            optimization.output_pinned_memory.enable = True


def normalize_groups(config: Any, *, cpu_count: int, gpus: Sequence[int] = ()) -> None:
    """Give every instance group a name, a kind and a count.

    ``gpus`` are the ids of the GPUs that the model's backend can use. An ONNX Runtime group on the CPU gets two
    instances, as in Triton, or one where ``cpu_count`` is 1: two would only share that core.
    """
    if config.HasField("ensemble_scheduling"):
        return
    kinds = protos.ModelInstanceGroup
    if not config.instance_group:
        # Backends of Triton that prefer a kind prefer what KIND_AUTO gives.
        config.instance_group.add(name=config.name)
    for index, group in enumerate(config.instance_group):
        if not group.name:
            group.name = f"{config.name}_{index}"
        if group.kind == kinds.KIND_AUTO:
            usable = bool(gpus) and all(gpu in gpus for gpu in group.gpus)
            group.kind = kinds.KIND_GPU if usable else kinds.KIND_CPU
        if group.count < 1:
            two = group.kind == kinds.KIND_CPU and config.backend in _TWO_CPU_INSTANCES
            group.count = max(1, min(2, cpu_count)) if two else 1
        if group.kind == kinds.KIND_GPU and not group.gpus:
            group.gpus.extend(gpus)
