"""The layers before a model version's scheduler, from its config: splitting of batches, and outermost the cache.

Knows configs and the engine's layers; nothing of what is below them.
"""

from __future__ import annotations

from typing import Any

from triton_fast._native.sched.cache import CacheLayer
from triton_fast._native.sched.model import NativeModel
from triton_fast._native.sched.split import SplitLayer
from triton_fast.backends.base import LoadContext
from triton_fast.errors import InvalidArg
from triton_fast.observability import log
from triton_fast.scheduling.caches import ResponseCache

SPLITTING = "batch_splitting"
SPLIT_ROWS = "batch_splitting_max_rows"
DEFAULT_SPLIT_ROWS = 1 << 20


def add_layers(native: NativeModel, context: LoadContext, cache: ResponseCache | None) -> bool:
    """Add what the config asks for; before the first instance. Tells whether responses are cached.

    Raises
    ------
    InvalidArg
        The config asks for what the model's other settings rule out; the text has the fix.
    """
    rows = split_rows(context.config)
    if rows:
        native.add_layer(SplitLayer(native, rows))
    if not context.config.response_cache.enable:
        return False
    if cache is None:
        log.warning(
            f"model '{context.name}' enables the response cache, but the server has none: --cache-config gives it one",
            model=context.name,
        )
        return False
    native.add_layer(CacheLayer(cache.native, cache.identity(context)))
    return True


def split_rows(config: Any) -> int:
    """Return how many rows a request may have where the model has its batches split; else 0."""
    value = _parameter(config, SPLITTING)
    if value.lower() not in ("", "false", "0", "true", "1"):
        raise InvalidArg(f"parameter '{SPLITTING}' of model '{config.name}' must be true or false, got '{value}'")
    if value.lower() not in ("true", "1"):
        return 0
    _refuse_splitting(config)
    given = _parameter(config, SPLIT_ROWS)
    if not given:
        return max(DEFAULT_SPLIT_ROWS, int(config.max_batch_size) + 1)
    rows = int(given) if given.isascii() and given.isdecimal() and len(given) < 18 else 0
    if rows <= config.max_batch_size:
        raise InvalidArg(
            f"parameter '{SPLIT_ROWS}' of model '{config.name}' must be a number over max_batch_size "
            f"{config.max_batch_size}, got '{given}'"
        )
    return rows


def _refuse_splitting(config: Any) -> None:
    reason = ""
    if config.max_batch_size < 1:
        reason = "max_batch_size is 0, so that requests have no rows: set it to the largest batch of an execution"
    elif config.model_transaction_policy.decoupled:
        reason = "the model is decoupled, its responses can not be joined: remove the parameter"
    elif config.WhichOneof("scheduling_choice") == "sequence_batching":
        reason = "a request of a sequence is one step and can not be cut: remove the parameter"
    elif config.batch_input or config.batch_output or any(tensor.allow_ragged_batch for tensor in config.input):
        reason = "ragged inputs have no rows of one shape to cut: remove the parameter, or allow_ragged_batch"
    if reason:
        raise InvalidArg(f"model '{config.name}' can not have parameter '{SPLITTING}': {reason}")


def _parameter(config: Any, key: str) -> str:
    return str(config.parameters[key].string_value).strip() if key in config.parameters else ""
