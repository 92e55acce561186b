"""Parameters of requests and responses: checked when given, JSON text when asked for."""

from __future__ import annotations

import json
from typing import Any, Optional


def check(parameters: Optional[dict[str, Any]]) -> Optional[dict[str, Any]]:
    """Return them. Raises TypeError-like TritonModelException for keys and values that Triton does not take."""
    if parameters is None:
        return None
    from triton_fast_worker.errors import TritonModelException

    if not isinstance(parameters, dict):
        raise TritonModelException(f"Expect parameters to be a dict, found type {type(parameters)}")
    for key, value in parameters.items():
        if not isinstance(key, str):
            raise TritonModelException(f"Expect parameters keys to have type str, found type {type(key)}")
        if not isinstance(value, (bool, int, str)):
            raise TritonModelException(f"Expect parameters values to have type bool/int/str, found type {type(value)}")
    return parameters


def as_text(parameters: Any) -> str:
    """Return the JSON text of a dict; text goes through as it is."""
    if isinstance(parameters, str):
        return parameters
    return json.dumps(parameters, separators=(",", ":")) if parameters else "{}"
