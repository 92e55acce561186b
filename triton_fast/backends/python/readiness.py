"""What a model's own ``is_ready`` says, and what is logged of it. Texts are Triton's."""

from __future__ import annotations

from concurrent.futures import Future, TimeoutError
from typing import Any

from triton_fast.errors import ServerError
from triton_fast.observability import log


def told_ready(call: Future[Any], timeout_s: float, *, model: str, instance: str) -> bool:
    """Wait for the answer."""
    try:
        value = call.result(timeout_s)
        cause = "" if isinstance(value, bool) else "is_ready() must return a boolean value"
    except TimeoutError:
        value, cause = False, "Timed out waiting for user-defined is_ready() response"
    except ServerError as error:
        value, cause = False, f"user-defined is_ready() failed: {error}"
    if cause:
        log.error(cause, model=model, instance=instance)
    elif not value:
        log.verbose(1, f"Model '{instance}' is not ready (user-defined check failed).")
    return value is True
