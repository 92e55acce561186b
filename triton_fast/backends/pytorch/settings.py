"""What a model's config says about how PyTorch is to run it, as plain values, checked before torch is imported.

Names and meanings are those of Triton's PyTorch backend.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from triton_fast.backends import values
from triton_fast.backends.base import LoadContext
from triton_fast.backends.paths import PathParameter, Place, Takes
from triton_fast.errors import InvalidArg

COMPILE = "TORCH_COMPILE_OPTIONAL_PARAMETERS"
# What a class's process looks for, in its order (runner/model.py), which is Triton's for classes.
CLASS_COUNTS = (("NUM_THREADS", "INTRA_OP_THREAD_COUNT"), ("NUM_INTEROP_THREADS", "INTER_OP_THREAD_COUNT"))
PATHS = (
    PathParameter(
        Place.PARAMETER, (COMPILE,), Takes.KEYS, "its options name compilers and directories",
        ("mode", "fullgraph", "dynamic", "disable"),
    ),
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """``None``: PyTorch's own choice. ``sharing``: None leaves it to what is known of the model.

    ``intra`` threads belong to one instance, ``inter`` to the process (0: not given).
    """

    optimized: bool = True
    inference_mode: bool = True
    cudnn: bool = True
    sharing: bool | None = None
    cache_cleaning: bool = False
    jit_profiling: bool | None = None
    jit_executor: bool | None = None
    tensor_fuser: bool | None = None
    nvfuser: bool = False
    intra: int = 1
    inter: int = 0
    compile: Mapping[str, Any] | None = field(default=None)


def read(context: LoadContext) -> Settings:
    """Return the settings of a model. Raises InvalidArg for a value that can not be used."""
    given = {key: value.string_value for key, value in context.config.parameters.items()}

    def flag(key: str) -> bool | None:
        if key not in given:
            return None
        return values.flag(given[key], key, model=context.name)

    nvfuser = bool(flag("ENABLE_NVFUSER"))
    fuser = flag("ENABLE_TENSOR_FUSER")
    return Settings(
        optimized=not flag("DISABLE_OPTIMIZED_EXECUTION"),
        inference_mode=flag("INFERENCE_MODE") is not False,
        cudnn=not flag("DISABLE_CUDNN"),
        sharing=flag("ENABLE_WEIGHT_SHARING"),
        cache_cleaning=bool(flag("ENABLE_CACHE_CLEANING")),
        jit_profiling=flag("ENABLE_JIT_PROFILING"),
        jit_executor=flag("ENABLE_JIT_EXECUTOR"),
        tensor_fuser=None if nvfuser else fuser,
        nvfuser=nvfuser,
        intra=_count(context, "INTRA_OP_THREAD_COUNT", "NUM_THREADS") or max(1, context.threads_per_instance),
        inter=_count(context, "INTER_OP_THREAD_COUNT", "NUM_INTEROP_THREADS"),
        compile=_compile(given.get(COMPILE)),
    )


def for_class(context: LoadContext) -> LoadContext:
    """Return the context for the process of a class, which sees parameters alone: with what the server's flags say.

    Raises InvalidArg for a count that can not be used.
    """
    config = type(context.config)()
    config.CopyFrom(context.config)
    for keys in CLASS_COUNTS:
        if number := _count(context, *keys):
            config.parameters[keys[0]].string_value = str(number)
    return dataclasses.replace(context, config=config)


def _count(context: LoadContext, *keys: str) -> int:
    # The model's parameter, else the server's --backend-config; 0 or nothing means the default.
    given = {key: value.string_value for key, value in context.config.parameters.items()}
    for texts in (given, context.settings):
        for key in keys:
            if key in texts and (number := values.threads(texts[key], key)):
                return number
    return 0


def _compile(text: str | None) -> Mapping[str, Any] | None:
    if text is None:
        return None
    try:
        values = json.loads(text or "{}")
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InvalidArg(f"parameter '{COMPILE}' must be a JSON object, got '{text[:100]}'")
    if "model" in values:
        raise InvalidArg("'model' is not an optional parameter for 'torch.compile'")
    return values
