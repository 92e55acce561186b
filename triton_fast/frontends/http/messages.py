"""What a route is given and what it returns. The native connection speaks in these plain values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import orjson

from triton_fast.errors import STATUS, Code, Internal, ServerError

Answer = tuple[int, list[tuple[str, str]], bytes]
JSON_HEADERS = [("Content-Type", "application/json")]
MAX_DEPTH = 64


@dataclass(frozen=True, slots=True)
class Verb:
    """A request that is not infer: its path parts are in ``params``; header names are lower case."""

    method: str
    path: str
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    params: dict[str, str] = field(default_factory=dict)

    def json_object(self) -> dict[str, Any]:
        """Return the body as a JSON object; an empty body is an empty one.

        Raises
        ------
        Internal
            The body is no JSON, or no object: Triton answers 500 here.
        """
        if not self.body:
            return {}
        if _depth(self.body) > MAX_DEPTH:
            raise Internal(f"failed to parse the request JSON buffer: nested deeper than {MAX_DEPTH} levels")
        try:
            value = orjson.loads(self.body)
        except ValueError as error:
            raise Internal(f"failed to parse the request JSON buffer: {error}") from None
        if not isinstance(value, dict):
            raise Internal("failed to parse the request JSON buffer: expected a JSON object")
        return value


def _depth(text: bytes) -> int:
    """Return a bound on the nesting depth: brackets opened and not closed, those inside strings counted too."""
    if text.count(b"[") + text.count(b"{") <= MAX_DEPTH:
        return 0
    depth = deepest = 0
    in_string = skip = False
    for byte in text:
        if skip:
            skip = False
        elif in_string:
            if byte == 0x5C:
                skip = True
            elif byte == 0x22:
                in_string = False
        elif byte == 0x22:
            in_string = True
        elif byte in (0x5B, 0x7B):
            depth += 1
            if depth > deepest:
                deepest = depth
                if deepest > MAX_DEPTH:
                    return deepest
        elif byte in (0x5D, 0x7D):
            depth -= 1
    return deepest


def json_answer(value: Any, status: int = 200) -> Answer:
    return status, JSON_HEADERS, orjson.dumps(value)


def empty_answer(status: int = 200) -> Answer:
    return status, [], b""


def error_answer(status: int, text: str, *headers: tuple[str, str]) -> Answer:
    # orjson refuses lone surrogates, which decoded wire bytes may hold.
    safe = text.encode("utf-8", "replace").decode()
    return status, [*JSON_HEADERS, *headers], orjson.dumps({"error": safe})


def failure(error: ServerError) -> Answer:
    return error_answer(STATUS[error.code].http, str(error))


def code_status(code: int) -> int:
    return STATUS[Code(code)].http
