"""What a config says about a model's queue, as arguments of ``NativeModel``. Source: spec/model_config.md section 5.

Beside Triton's fields parameters of the model: ``max_queue_bytes``, ``max_held_bytes`` and ``BATCH_STRATEGY``.
"""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from triton_fast import protos
from triton_fast.backends.base import LoadContext
from triton_fast.errors import InvalidArg, Unsupported

MAX_LEVELS = 1024
MAX_COUNT = 2**63 - 1
# Responses that wait for earlier ones where preserve_ordering is set: more than honest clients have under way.
MAX_HELD = 1 << 30
STRATEGY_PATH = "TRITON_BATCH_STRATEGY_PATH"
STRATEGY_FILE = "batchstrategy.so"
_VOLUME = re.compile(r"volume:([0-9]{1,18})")


class QueuePolicy(NamedTuple):
    """One priority level as the queue takes it."""

    max_queue_size: int
    timeout_us: int
    timeout_override: bool
    timeout_delay: bool


def queue_options(config: Any) -> dict[str, Any]:
    """Return the keyword arguments of ``NativeModel`` that decide how requests queue and form batches.

    Raises
    ------
    InvalidArg
        A parameter of ours is no positive number, or names no strategy.
    Unsupported
        More priority levels than the queue has.
    """
    batching = config.dynamic_batching
    count = batching.priority_levels
    if count > MAX_LEVELS:
        raise Unsupported(
            f"model '{config.name}' asks for {count} priority_levels; this version serves at most {MAX_LEVELS}"
        )
    default = batching.default_queue_policy
    # Without levels there is the default policy alone; priorities of requests then mean nothing.
    policies = [batching.priority_queue_policy.get(level, default) for level in range(1, count + 1)] or [default]
    return {
        "dynamic": config.HasField("dynamic_batching"),
        "preferred": tuple(batching.preferred_batch_size),
        "delay_us": batching.max_queue_delay_microseconds,
        "levels": tuple(_policy(policy) for policy in policies),
        "default_level": batching.default_priority_level if count else 1,
        "preserve_ordering": batching.preserve_ordering,
        "max_volume": _max_volume(config),
        "max_queue_bytes": max_queue_bytes(config),
        "max_held_bytes": _bytes(config, "max_held_bytes", MAX_HELD) if batching.preserve_ordering else 0,
    }


def refuse_strategy(context: LoadContext) -> None:
    """Fail a load, with the reason, where Triton would have a library of the user's form the batches."""
    config = context.config
    if not config.HasField("dynamic_batching"):
        return
    why = "; this version runs no custom batching library, but knows the parameter BATCH_STRATEGY"
    if STRATEGY_PATH in config.parameters:
        raise Unsupported(f"model '{context.name}' sets the parameter {STRATEGY_PATH}{why}")
    folders = [context.version_dir, context.model_dir]
    if context.host.backend_directory is not None:
        folders.append(context.host.backend_directory / config.backend)
    for folder in folders:
        if (folder / STRATEGY_FILE).exists():
            raise Unsupported(
                f"model '{context.name}' has a {STRATEGY_FILE} in '{folder.name}', which stands for the parameter "
                f"{STRATEGY_PATH}{why}"
            )


def _policy(policy: Any) -> QueuePolicy:
    return QueuePolicy(
        policy.max_queue_size,
        policy.default_timeout_microseconds,
        policy.allow_timeout_override,
        policy.timeout_action == protos.ModelQueuePolicy.DELAY,
    )


def max_queue_bytes(config: Any) -> int:
    """Return how many bytes of inputs may wait, 0 for any number. Raises InvalidArg."""
    return _bytes(config, "max_queue_bytes", 0)


def _bytes(config: Any, name: str, default: int) -> int:
    if name not in config.parameters:
        return default
    text = config.parameters[name].string_value
    if not (text.isascii() and text.isdecimal() and len(text) < 20 and 0 < int(text) <= MAX_COUNT):
        raise InvalidArg(f"parameter '{name}' of model '{config.name}' must be a number of bytes from 1, got '{text}'")
    return int(text)


def _max_volume(config: Any) -> int:
    if "BATCH_STRATEGY" not in config.parameters:
        return 0
    text = config.parameters["BATCH_STRATEGY"].string_value
    found = _VOLUME.fullmatch(text)
    if found is None or int(found[1]) == 0:
        raise InvalidArg(
            f"parameter 'BATCH_STRATEGY' of model '{config.name}' must be 'volume:<elements>', from 1, got '{text}'"
        )
    return int(found[1])
