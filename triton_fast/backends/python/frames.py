"""Frames of the control socket: lengths, JSON, blob. What comes from a worker is not trusted.

Source: docs/python_worker.md. Knows nothing of what messages mean beyond the types of their fields.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from typing import Any, NamedTuple

from triton_fast.errors import Code, ServerError, make

HEADER = struct.Struct("<II")
MAX_JSON = 64 << 20
# What a worker may send: reading JSON holds the GIL, a MiB of brackets for some 50 ms. A config may be larger.
MAX_TAKEN_JSON = 2 << 20
MAX_TAKEN_CONFIG = 16 << 20
MAX_BLOB = 1 << 30
# Names, descriptions and paths within a message; texts that may be long (messages, configs) have the frame's own limit.
MAX_NAME = 4096
Message = dict[str, Any]


class BadFrame(Exception):
    """The worker broke the protocol: it can not be spoken with any more."""


class Frame(NamedTuple):
    message: Message
    blob: bytes


def encode(message: Message, blob: bytes = b"") -> bytes:
    """Return the bytes of one frame."""
    text = json.dumps(message, separators=(",", ":")).encode("utf-8", "surrogatepass")
    if len(text) > MAX_JSON or len(blob) > MAX_BLOB:
        raise ValueError(f"a control message of {len(text)} and {len(blob)} bytes is too large")
    return HEADER.pack(len(text), len(blob)) + text + blob


class FrameReader:
    """Puts frames together from whatever pieces come. Attribute: ``taken``, bytes of the JSON that was read so far."""

    def __init__(self, max_json: int = MAX_TAKEN_JSON) -> None:
        self.taken = 0
        self._max_json = max_json
        self._data = bytearray()
        self._wanted = HEADER.size

    def feed(self, data: bytes) -> Iterator[Frame]:
        """Add ``data`` and yield the frames that are complete. Raises BadFrame; nothing may be fed after that."""
        self._data += data
        while len(self._data) >= self._wanted:
            n_json, n_blob = HEADER.unpack_from(self._data)
            if n_json > self._max_json or n_blob > MAX_BLOB:
                raise BadFrame(f"a frame of {n_json} bytes of JSON and {n_blob} more")
            self._wanted = HEADER.size + n_json + n_blob
            if len(self._data) < self._wanted:
                return
            end = HEADER.size + n_json
            self.taken += n_json
            message = _parse(self._data[HEADER.size : end])
            blob = bytes(self._data[end : self._wanted])
            del self._data[: self._wanted]
            self._wanted = HEADER.size
            yield Frame(message, blob)


def _parse(text: bytearray) -> Message:
    try:
        message = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadFrame(f"JSON that can not be read ({type(error).__name__})") from None
    if not isinstance(message, dict) or not isinstance(message.get("type"), str):
        raise BadFrame("a message that is no object with a type")
    return message


# ---- fields, each checked when it is taken


def text(message: Message, key: str, limit: int = MAX_JSON) -> str:
    value = message.get(key)
    if not isinstance(value, str) or len(value) > limit:
        raise BadFrame(f"'{_type(message)}' with a bad '{key}'")
    # What no UTF-8 can hold would break whoever prints it.
    return value.encode("utf-8", "replace").decode()


def whole(message: Message, key: str, low: int = 0, high: int = 2**63 - 1) -> int:
    value = message.get(key)
    if type(value) is not int or not low <= value <= high:
        raise BadFrame(f"'{_type(message)}' with a bad '{key}'")
    return value


def number(message: Message, key: str) -> float:
    value = message.get(key)
    # What JSON has no number for comes as text.
    if type(value) not in (int, float) and value not in ("nan", "inf", "-inf"):
        raise BadFrame(f"'{_type(message)}' with a bad '{key}'")
    try:
        return float(value)  # type: ignore[arg-type]
    except OverflowError:
        raise BadFrame(f"'{_type(message)}' with a bad '{key}'") from None


def flag(message: Message, key: str) -> bool:
    value = message.get(key)
    if not isinstance(value, bool):
        raise BadFrame(f"'{_type(message)}' with a bad '{key}'")
    return value


def call_number(message: Message) -> int:
    return whole(message, "call", 0, 2**63 - 1)


def outcome(message: Message) -> Any:
    """Return the value of an answer, or raise the error that it carries."""
    error = message.get("error")
    if error is None:
        return message.get("value")
    if not isinstance(error, dict):
        raise BadFrame("an answer with a bad 'error'")
    raise make(whole(error, "code", 0, 7), text(error, "message"))


def answer(call: int, value: object = None) -> Message:
    return {"type": "answer", "call": call, "value": value}


def failure(call: int, error: BaseException) -> Message:
    """Return the answer that says why a call failed; what is not meant for models stays here."""
    known = isinstance(error, ServerError)
    code = error.code if isinstance(error, ServerError) else Code.INTERNAL
    shown = str(error) if known else "internal error, see the server log"
    return {"type": "answer", "call": call, "error": {"code": int(code), "message": shown}}


def _type(message: Message) -> str:
    return str(message.get("type"))[:64]
