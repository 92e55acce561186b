"""What a route is given and what it returns. The native connection speaks in these plain values."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import orjson

from triton_fast.errors import RETRY_AFTER, STATUS, Code, Internal, InvalidArg, ServerError

Answer = tuple[int, list[tuple[str, str]], bytes]
JSON_HEADERS = [("Content-Type", "application/json")]
MAX_DEPTH = 64
# Bytes of JSON of a verb; a load request carries files and may be as large as any body.
MAX_JSON = 1 << 20
MAX_LOAD_JSON = 1 << 40
# Commas, and quotes, brackets and escapes: an object of Python for each would be memory many times the body's.
MAX_MARKS = 1_000_000
_MARK = re.compile(rb'\\.|["\[\]{}]', re.DOTALL)


@dataclass(frozen=True, slots=True)
class Verb:
    """A request that is not infer: its path parts are in ``params``; header names are lower case."""

    method: str
    path: str
    query: str = ""
    headers: dict[str, str] = field(default_factory=dict)
    body: bytes = b""
    params: dict[str, str] = field(default_factory=dict)

    def json_object(self, limit: int = MAX_JSON) -> dict[str, Any]:
        """Return the body as a JSON object; an empty body is an empty one.

        Raises
        ------
        InvalidArg
            The body has more than ``limit`` bytes, or more parts than any such message needs.
        Internal
            The body is no JSON, or no object: Triton answers 500 here.
        """
        if not self.body:
            return {}
        value = self.json_value(limit)
        if not isinstance(value, dict):
            raise Internal("failed to parse the request JSON buffer: expected a JSON object")
        return value

    def json_value(self, limit: int = MAX_JSON) -> Any:
        """Return the body as JSON, whatever it is. Raises as ``json_object``."""
        if not self.body:
            raise Internal("failed to parse the request JSON buffer: The document is empty. at 0")
        if len(self.body) > limit:
            raise InvalidArg(f"the request JSON of {len(self.body)} bytes exceeds the limit of {limit} bytes")
        _check_size(self.body)
        try:
            return orjson.loads(self.body)
        except ValueError as error:
            raise Internal(f"failed to parse the request JSON buffer: {error}") from None


def _check_size(text: bytes) -> None:
    """Refuse JSON that nests too deep or would become too many objects, before any is made."""
    if text.count(b",") > MAX_MARKS:
        raise InvalidArg(f"the request JSON has more than {MAX_MARKS} parts")
    depth = 0
    in_string = False
    for n, mark in enumerate(_MARK.finditer(text)):
        if n == MAX_MARKS:
            raise InvalidArg(f"the request JSON has more than {MAX_MARKS} parts")
        sign = mark[0]
        if sign == b'"':
            in_string = not in_string
        elif in_string:
            continue
        elif sign in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                raise Internal(f"failed to parse the request JSON buffer: nested deeper than {MAX_DEPTH} levels")
        elif sign in b"]}":
            depth -= 1


def json_answer(value: Any, status: int = 200) -> Answer:
    return status, JSON_HEADERS, orjson.dumps(value)


def empty_answer(status: int = 200) -> Answer:
    return status, [], b""


def error_answer(status: int, text: str, *headers: tuple[str, str]) -> Answer:
    # orjson refuses lone surrogates, which decoded wire bytes may hold.
    safe = text.encode("utf-8", "replace").decode()
    return status, [*JSON_HEADERS, *headers], orjson.dumps({"error": safe})


def failure(error: ServerError) -> Answer:
    return code_answer(error.code, str(error))


def code_answer(code: int, text: str, *headers: tuple[str, str]) -> Answer:
    """Answer with an error of the engine or of a verb; ``code`` picks its status, and when to ask again."""
    if code in RETRY_AFTER:
        headers = (*headers, ("Retry-After", str(RETRY_AFTER[Code(code)])))
    return error_answer(STATUS[Code(code)].http, text, *headers)
