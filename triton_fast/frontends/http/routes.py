"""The v2 HTTP routes as one table: pattern, methods, restricted-API category, handler.

Order and patterns are Triton's: full matches on the undecoded path, the query ignored. Infer and generate are matched
by the native connection first; they stand here too, so that other methods on them get 405 and their category is known.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from triton_fast.config import to_json
from triton_fast.dataplane import Dataplane, parse_version
from triton_fast.errors import INTERNAL_ERROR, Internal, InvalidArg, ServerError, Unsupported
from triton_fast.frontends.http.log_settings import logging
from triton_fast.frontends.http.messages import (
    MAX_JSON,
    MAX_LOAD_JSON,
    Answer,
    Verb,
    empty_answer,
    error_answer,
    failure,
    json_answer,
)
from triton_fast.frontends.work import Where
from triton_fast.observability import log
from triton_fast.observability.tracing import settings
from triton_fast.shared_memory import read_handle

Handler = Callable[[Dataplane, Verb], Answer]


class Route(NamedTuple):
    """One row of the table. ``where`` the handler runs: on the loop's thread, or off it, where what may wait for
    models to load has threads of its own.
    """

    pattern: re.Pattern[str]
    methods: tuple[str, ...]
    category: str
    handler: Handler
    where: Where = Where.LOOP


# ---- handlers: one for each verb


def live(plane: Dataplane, verb: Verb) -> Answer:
    return empty_answer(200 if plane.server_live() else 400)


def ready(plane: Dataplane, verb: Verb) -> Answer:
    return empty_answer(200 if plane.server_ready() else 400)


def server_metadata(plane: Dataplane, verb: Verb) -> Answer:
    return json_answer(plane.server_metadata())


def model_ready(plane: Dataplane, verb: Verb) -> Answer:
    if plane.model_ready(*_model(verb)):
        return empty_answer()
    return error_answer(400, "Model version not ready")


def model_metadata(plane: Dataplane, verb: Verb) -> Answer:
    return json_answer(plane.model_metadata(*_model(verb)))


def model_config(plane: Dataplane, verb: Verb) -> Answer:
    return json_answer(to_json(plane.model_config(*_model(verb))))


def model_stats(plane: Dataplane, verb: Verb) -> Answer:
    return json_answer(plane.model_statistics(*_model(verb)))


def all_stats(plane: Dataplane, verb: Verb) -> Answer:
    return json_answer(plane.model_statistics())


def infer(plane: Dataplane, verb: Verb) -> Answer:
    # Only what the native path could not take comes here: a version that is no number it can hold.
    plane.native_model(*_model(verb))
    raise Internal("the request could not be routed")


def generate(plane: Dataplane, verb: Verb) -> Answer:
    return infer(plane, verb)


def tracing(plane: Dataplane, verb: Verb) -> Answer:
    changes = _trace_changes(verb.json_value()) if verb.method == "POST" else {}
    shown = plane.trace_settings(verb.params.get("model", ""), changes)
    return json_answer({name: value if name == "trace_level" else value[0] for name, value in shown.items()})


def repository_index(plane: Dataplane, verb: Verb) -> Answer:
    wanted = verb.json_object().get("ready", False)
    if not isinstance(wanted, bool):
        raise InvalidArg("Invalid value for 'ready': expected a boolean")
    return json_answer(plane.repository_index(wanted))


def repository_load(plane: Dataplane, verb: Verb) -> Answer:
    _refuse_repository(verb)
    plane.load_model(verb.params["model"], _load_parameters(verb))
    return empty_answer()


def repository_unload(plane: Dataplane, verb: Verb) -> Answer:
    _refuse_repository(verb)
    dependents = _parameters(verb).get("unload_dependents", False)
    if not isinstance(dependents, bool):
        raise Internal("Unable to parse 'unload_dependents': attempt to access JSON non-boolean as boolean")
    plane.unload_model(verb.params["model"], unload_dependents=dependents)
    return empty_answer()


def shared_memory_status(plane: Dataplane, verb: Verb) -> Answer:
    return json_answer(plane.shared_memory.status(verb.params["memory"], _region(verb)))


def shared_memory_register(plane: Dataplane, verb: Verb) -> Answer:
    memory, region = verb.params["memory"], _region(verb)
    plane.shared_memory.check_allowed()
    if not region:
        raise InvalidArg(f"'region name' is necessary to register {memory} shared memory region")
    if not verb.body:
        raise Internal("failed to parse the request JSON buffer: The document is empty. at 0")
    asked = verb.json_object()
    if memory == "cuda":
        handle = _needed(asked, "raw_handle")
        text = _text(_member(handle, "b64"))
        byte_size = _unsigned(_member(asked, "byte_size"))
        device = _integer(_member(asked, "device_id"))
        plane.shared_memory.register_cuda(region, read_handle(text), device, byte_size)
        return empty_answer()
    key = _text(_needed(asked, "key"))
    offset = _unsigned(asked.get("offset", 0))
    plane.shared_memory.register(region, key, offset, _unsigned(_needed(asked, "byte_size")))
    return empty_answer()


def shared_memory_unregister(plane: Dataplane, verb: Verb) -> Answer:
    plane.shared_memory.unregister(verb.params["memory"], _region(verb))
    return empty_answer()


_MODEL = r"/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[0-9]+))?"
_REPOSITORY = r"/v2/repository(?:/(?P<repository>[^/]+))?"
_MEMORY = r"/v2/(?P<memory>system|cuda)sharedmemory(?:/region/(?P<region>[^/]+))?"


def row(pattern: str, methods: str, category: str, handler: Handler, where: Where = Where.LOOP) -> Route:
    return Route(re.compile(pattern), tuple(methods.split()), category, handler, where)


ROUTES: tuple[Route, ...] = (
    row(r"/v2/models/stats", "GET", "statistics", all_stats),
    row(r"/v2/logging", "GET POST", "logging", logging),
    row(_MODEL, "GET", "metadata", model_metadata),
    row(_MODEL + "/infer", "POST", "inference", infer),
    row(_MODEL + "/generate(?:_stream)?", "POST", "inference", generate),
    row(_MODEL + "/ready", "GET", "health", model_ready, Where.READY),
    row(_MODEL + "/config", "GET", "model-config", model_config),
    row(_MODEL + "/stats", "GET", "statistics", model_stats),
    row(r"/v2/models/(?P<model>[^/]+)/trace/setting", "GET POST", "trace", tracing),
    row(r"/v2", "GET", "metadata", server_metadata),
    row(r"/v2/health/live", "GET", "health", live),
    row(r"/v2/health/ready", "GET", "health", ready, Where.READY),
    row(_MEMORY + "/status", "GET", "shared-memory", shared_memory_status),
    # Mapping and unmapping much memory takes long.
    row(_MEMORY + "/register", "POST", "shared-memory", shared_memory_register, Where.WORK),
    row(_MEMORY + "/unregister", "POST", "shared-memory", shared_memory_unregister, Where.WORK),
    row(_REPOSITORY + "/index", "POST", "model-repository", repository_index, Where.WORK),
    row(_REPOSITORY + "/models/(?P<model>[^/]+)/load", "POST", "model-repository", repository_load, Where.LOAD),
    row(_REPOSITORY + "/models/(?P<model>[^/]+)/unload", "POST", "model-repository", repository_unload,
        Where.LOAD),
    row(r"/v2/trace/setting", "GET POST", "trace", tracing),
)  # fmt: skip


Found = tuple[Route | None, dict[str, str], bool]


def find(method: str, path: str, table: Sequence[Route] = ROUTES) -> Found:
    """Return (route, path parts, method allowed): the first row for both, else the first for the path.

    HEAD is allowed where GET is.
    """
    known: Found = None, {}, False
    for route in table:
        found = route.pattern.fullmatch(path)
        if found and known[0] is None:
            known = route, {key: value or "" for key, value in found.groupdict().items()}, False
        if found and ("GET" if method == "HEAD" else method) in route.methods:
            return route, {key: value or "" for key, value in found.groupdict().items()}, True
    return known


def run(route: Route, plane: Dataplane, verb: Verb) -> Answer:
    """Call a handler; whatever it raises becomes an answer."""
    try:
        return route.handler(plane, verb)
    except ServerError as error:
        return failure(error)
    except Exception as error:
        log.error(f"{verb.method} {verb.path} failed: {type(error).__name__}: {error}")
        return error_answer(500, INTERNAL_ERROR)


# ---- parts of bodies and paths


def _model(verb: Verb) -> tuple[str, int]:
    return verb.params["model"], parse_version(verb.params.get("version", ""))


def _region(verb: Verb) -> str:
    """Return the name's bytes as UTF-8, which infer requests have them in; a path is decoded byte by byte."""
    return verb.params["region"].encode("latin-1").decode("utf-8", "surrogateescape")


def _needed(asked: dict[str, Any], field: str) -> Any:
    if field not in asked:
        raise InvalidArg(f"Shared memory register request has no '{field}' field")
    return asked[field]


def _member(value: Any, name: str) -> Any:
    if not isinstance(value, dict) or name not in value:
        raise Internal(f"attempt to access non-existing object member '{name}'")
    return value[name]


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise Internal("attempt to access JSON non-string as string")
    return value


def _unsigned(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise Internal("attempt to access JSON non-unsigned-integer as unsigned-integer")
    return value


def _integer(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value >= 1 << 63:
        raise Internal("attempt to access JSON non-signed-integer as signed-integer")
    return value


def _refuse_repository(verb: Verb) -> None:
    if verb.params["repository"]:
        raise Unsupported("'repository_name' specification is not supported")


def _parameters(verb: Verb, limit: int = MAX_JSON) -> dict[str, Any]:
    parameters = verb.json_object(limit).get("parameters", {})
    if not isinstance(parameters, dict):
        raise Internal("Unable to parse 'parameters': attempt to access JSON non-object as object")
    return parameters


def _trace_changes(document: Any) -> dict[str, int | None]:
    """Return what a settings request asks for; names it does not know mean nothing, as do unknown levels."""
    changes: dict[str, int | None] = {}
    given = document if isinstance(document, dict) else {}
    if "trace_file" in given:
        settings.refuse_file()
    for name in ("trace_level", *settings.SCALARS):
        if name not in given:
            continue
        value = given[name]
        if value is None:
            changes[name] = None
        elif name == "trace_level":
            if not isinstance(value, list):
                raise Internal("attempt to access JSON non-array as array")
            if not all(isinstance(one, str) for one in value):
                raise Internal("attempt to access JSON non-string as string")
            level = settings.parse_level(value)
            if level is not None:
                changes[name] = level
        elif not isinstance(value, str):
            raise Internal("attempt to access JSON non-string as string")
        else:
            changes[name] = settings.parse_scalar(name, value, gap="")
    return changes


def _load_parameters(verb: Verb) -> dict[str, str | bytes]:
    result: dict[str, str | bytes] = {}
    for key, value in _parameters(verb, MAX_LOAD_JSON).items():
        if key != "config" and not key.startswith("file:"):
            raise Internal("unexpected error on creating Triton parameter")
        if not isinstance(value, str):
            raise Internal(f"Unable to parse '{key}': attempt to access JSON non-string as string")
        if key == "config":
            result[key] = value
            continue
        try:
            result[key] = base64.b64decode(value, validate=True)
        except (binascii.Error, ValueError):
            raise InvalidArg(f"load parameter '{key}' must be base64 encoded file content") from None
    return result


__all__ = ["ROUTES", "Found", "Route", "find", "row", "run"]
