"""What several backends read from configs and --backend-config, with an error that names the parameter.

Knows no framework.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from triton_fast import protos
from triton_fast.errors import InvalidArg

_TRUE = ("1", "true", "on", "yes")
_FALSE = ("0", "false", "off", "no", "")
LIMIT = 2**31 - 1
# Of one model, as there may be so many instances: libraries hang, or end the process, when they do not get theirs.
MAX_THREADS = 1024
DEFAULT_MAX_BATCH_SIZE = 4
_BATCH = "default-max-batch-size"


def flag(text: str, key: str, *, model: str = "") -> bool:
    """Return a yes-or-no value. Raises InvalidArg, which names ``model`` where it is given."""
    lowered = text.strip().lower()
    if lowered in _TRUE:
        return True
    if lowered in _FALSE:
        return False
    of = f" of model '{model}'" if model else ""
    raise InvalidArg(f"parameter '{key}'{of} must be true or false, got '{text}'")


def threads(text: str, key: str) -> int:
    """Return a number of threads, 0 included. Raises InvalidArg."""
    return number(text, key, MAX_THREADS)


def number(text: str, key: str, limit: int) -> int:
    """Return a whole number from 0 to ``limit``. Raises InvalidArg."""
    value = plain(text.strip(), limit)
    if value < 0:
        raise InvalidArg(f"parameter '{key}' must be a whole number from 0 to {limit}, got '{text}'")
    return value


def plain(text: str, limit: int) -> int:
    """Return a whole number from 0 to ``limit``, -1 for all other texts."""
    if not text.isascii() or not text.isdigit() or len(text) > len(str(limit)) or int(text) > limit:
        return -1
    return int(text)


def default_max_batch_size(
    settings: Mapping[str, str],
    default: int = DEFAULT_MAX_BATCH_SIZE,
    refused: str = f"parameter '{{key}}' must be a whole number from 0 to {LIMIT}, got '{{text}}'",
) -> int:
    """Return the backend setting ``default-max-batch-size``. Raises InvalidArg with the text ``refused``."""
    text = settings.get(_BATCH, str(default))
    value = plain(text.strip(), LIMIT)
    if value < 0:
        raise InvalidArg(refused.format(key=_BATCH, text=text))
    return value


def refuse_ragged(config: Any) -> None:
    """Raise InvalidArg where requests of unlike shapes are to share a batch, or their shapes to be tensors or cuts."""
    prefix = f"unable to load model '{config.name}', its backend"
    for tensor in config.input:
        if tensor.allow_ragged_batch:
            raise InvalidArg(f"{prefix} takes no ragged input '{tensor.name}'")
    if config.batch_input or config.batch_output:
        raise InvalidArg(f"{prefix} makes no batch_input or batch_output")


def kind_name(group: Any) -> str:
    """Return the kind of an instance group as configs write it: KIND_GPU, ..."""
    return str(protos.ModelInstanceGroup.Kind.Name(group.kind))
