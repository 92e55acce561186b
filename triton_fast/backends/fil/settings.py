"""What a model's config says about a forest, as plain values. Names and defaults are those of Triton's FIL backend."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from triton_fast.errors import InvalidArg

# model_type -> the file's name when the config names none.
FILES = {
    "xgboost": "xgboost.model", "xgboost_json": "xgboost.json", "xgboost_ubj": "xgboost.ubj",
    "lightgbm": "model.txt", "treelite_checkpoint": "checkpoint.tl",
}  # fmt: skip
# Accepted, and without effect on the CPU.
GPU_ONLY = (
    "storage_type", "algo", "blocks_per_sm", "threads_per_tree", "transfer_threshold", "layout", "chunk_size",
    "use_experimental_optimizations",
)  # fmt: skip
# Of them, those without effect on a GPU: what runs there has no such choice.
NOWHERE = ("storage_type", "blocks_per_sm", "use_experimental_optimizations")
LAYOUTS = ("depth_first", "breadth_first", "layered")
# How nodes lie in memory, as Triton's names say it.
_ALGORITHMS = {
    "ALGO_AUTO": "depth_first", "NAIVE": "breadth_first", "TREE_REORG": "layered", "BATCH_TREE_REORG": "layered",
}  # fmt: skip
_CHUNKS = (1, 2, 4, 8, 16, 32)
_TRUE = ("true", "1")
_FALSE = ("false", "0")


@dataclass(frozen=True)
class Settings:
    """``classifier`` and ``predict_proba``: None where the config does not say."""

    kind: str
    classifier: bool | None
    predict_proba: bool
    threshold: float
    unknown_fields: bool
    threads: int
    ignored: tuple[str, ...]


@dataclass(frozen=True)
class GpuSettings:
    """``chunk``: rows that a block of threads takes at once, None: the library chooses. ``transfer_threshold``: batches
    of up to so many rows that come from the CPU's memory run there."""

    layout: str
    chunk: int | None
    transfer_threshold: int
    ignored: tuple[str, ...]


def read_gpu(config: Any) -> GpuSettings:
    """Return the settings of a model's instances on GPUs. Raises InvalidArg, which names the parameter."""
    given = {key: value.string_value.strip() for key, value in config.parameters.items()}
    algorithm = given.get("algo") or "ALGO_AUTO"
    layout = given.get("layout", "").lower() or _ALGORITHMS.get(algorithm.upper(), "")
    if not layout:
        raise InvalidArg(f"parameter 'algo' must be one of {', '.join(_ALGORITHMS)}, got '{algorithm}'")
    if layout not in LAYOUTS:
        raise InvalidArg(f"parameter 'layout' must be one of {', '.join(LAYOUTS)}, got '{given['layout']}'")
    chunk = _power(given, "chunk_size")
    # Consecutive threads that share a tree take a row each: the same thing by its older name, whose default is 1.
    threads = _power(given, "threads_per_tree")
    if chunk is None and threads != 1:
        chunk = threads
    try:
        limit = int(given.get("transfer_threshold") or "0")
    except ValueError:
        limit = -1
    if limit < 0:
        raise InvalidArg(
            f"parameter 'transfer_threshold' must be a number of rows, got '{given['transfer_threshold']}'"
        )
    return GpuSettings(layout, chunk, limit, tuple(key for key in NOWHERE if key in given))


def _power(given: Mapping[str, str], key: str) -> int | None:
    text = given.get(key) or "0"
    value = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else -1
    if value and value not in _CHUNKS:
        raise InvalidArg(f"parameter '{key}' must be a power of 2 from 1 to 32, got '{text}'")
    return value or None


def read(config: Any, version_dir: Path) -> Settings:
    """Return the settings of a model. Raises InvalidArg, which names the parameter."""
    given = {key: value.string_value.strip() for key, value in config.parameters.items()}
    # output_class is the older name of is_classifier.
    classifier = _flag(given, "output_class")
    if classifier is None:
        classifier = _flag(given, "is_classifier")
    return Settings(
        kind=_kind(given.get("model_type", ""), config, version_dir),
        classifier=classifier,
        predict_proba=bool(_flag(given, "predict_proba")),
        threshold=_threshold(given.get("threshold", "")),
        unknown_fields=bool(_flag(given, "xgboost_allow_unknown_field")),
        threads=_threads(given.get("cpu_nthread", "")),
        ignored=tuple(key for key in GPU_ONLY if key in given),
    )


def model_path(config: Any, kind: str, version_dir: Path) -> Path:
    """Return the model file, which may not exist."""
    named: str = config.default_model_filename
    # What the server makes of a directory's name (anything.fil) is no file that anybody writes.
    if named and (named != "model.fil" or (version_dir / named).exists()):
        path = version_dir / named
        return path / FILES[kind] if path.is_dir() else path
    return version_dir / FILES[kind]


def _kind(text: str, config: Any, version_dir: Path) -> str:
    if text in FILES:
        return text
    if text == "treelite":
        return "treelite_checkpoint"
    if text:
        raise InvalidArg(f"parameter 'model_type' must be one of {', '.join(FILES)}, got '{text}'")
    named = config.default_model_filename
    for kind, name in FILES.items():
        if name == named or (named in ("", "model.fil") and (version_dir / name).is_file()):
            return kind
    endings = {".json": "xgboost_json", ".ubj": "xgboost_ubj", ".txt": "lightgbm", ".tl": "treelite_checkpoint"}
    return endings.get(Path(named).suffix, "xgboost")


def _flag(given: Mapping[str, str], key: str) -> bool | None:
    if key not in given:
        return None
    text = given[key].lower()
    if text in _TRUE:
        return True
    if text in _FALSE:
        return False
    raise InvalidArg(f"parameter '{key}' must be true or false, got '{given[key]}'")


def _threshold(text: str) -> float:
    try:
        value = float(text or "0.5")
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        raise InvalidArg(f"parameter 'threshold' must be a number, got '{text}'")
    return value


def _threads(text: str) -> int:
    try:
        value = int(text or "-1")
    except ValueError:
        value = 0
    if value == 0 or value > 4096:
        raise InvalidArg(f"parameter 'cpu_nthread' must be a number of threads or -1, got '{text}'")
    return max(value, 0)


def most_threads(variables: Mapping[str, str] = os.environ) -> int:
    """Return how many threads OpenMP gives a call: treelite refuses each call that asks for more."""
    first = variables.get("OMP_NUM_THREADS", "").partition(",")[0].strip()
    if first.isascii() and first.isdigit() and int(first[:9]) > 0:
        return int(first[:9])
    return len(os.sched_getaffinity(0))


def seconds(settings: Mapping[str, str]) -> float:
    """Return how long a file may take to be read for the first time (``probe-timeout-s``). Raises InvalidArg."""
    text = settings.get("probe-timeout-s", "300")
    try:
        value = float(text)
    except ValueError:
        value = 0
    if not 0 < value < 1e6:
        raise InvalidArg(f"backend setting 'probe-timeout-s' must be a number of seconds, got '{text}'")
    return value
