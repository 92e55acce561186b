"""The SageMaker front end: /ping, /invocations, and the routes of multi-model endpoints under /models.

Source: spec/http.md section 10, spec/security.md SEC-15. What is loaded here and from where is ``SageMakerModels``.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Any, NamedTuple

from triton_fast.dataplane import Dataplane
from triton_fast.errors import AlreadyExists, InvalidArg, ServerError
from triton_fast.frontends.http import routes
from triton_fast.frontends.http.cloud import GENERATE, GENERATE_STREAM, INFER, CloudApp, Native, from_wire
from triton_fast.frontends.http.messages import Answer, Verb, empty_answer, error_answer, json_answer
from triton_fast.frontends.http.sagemaker_models import SageMakerModels
from triton_fast.frontends.work import Where

TARGET = "x-amzn-sagemaker-target-model"
TYPES = {"infer": INFER, "generate": GENERATE, "generate_stream": GENERATE_STREAM}
_INVOKE = re.compile(r"/models/([^/]+)/invoke")
# How frameworks say that memory ran out; SageMaker then unloads other models and tries again.
_NO_MEMORY = re.compile(
    r"(?i:out[ _]?of[ _]?memory)|MemoryError|\bOOM\b|[Ff]ailed to allocate memory|No space left on device"
    r"|CUBLAS_STATUS_(?:ALLOC_FAILED|NOT_INITIALIZED)|CUDNN_STATUS_NOT_INITIALIZED"
    r"|(?:Dst|Src) tensor is not initialized"
)


class Settings(NamedTuple):
    """SAGEMAKER_TRITON_PING_MODE, _DEFAULT_MODEL_NAME and _INFERENCE_TYPE."""

    ping_mode: str = "ready"
    default_model: str = ""
    inference_type: str = "infer"


class SageMakerApp(CloudApp):
    """``serve`` makes it ready for its port."""

    service = "Sagemaker HTTPService"
    binary_type = b"application/vnd.sagemaker-triton.binary+json;json-header-size="
    route_header = TARGET.encode()

    def serve(self, settings: Settings) -> None:
        """Take over the routes."""
        self.settings = settings
        self.models = SageMakerModels(self.plane)
        kind = TYPES.get(settings.inference_type)
        self._invocations: Native | None = None if kind is None else (kind, settings.default_model, -1, True)
        ping = {"ready": routes.ready, "live": routes.live}.get(settings.ping_mode, _bad_ping)
        self.table = (
            routes.row("/ping", "GET", "health", ping, Where.READY),
            routes.row("/invocations", "POST", "inference", self._bad_type),
            routes.row("/models", "GET", "model-repository", self._list, Where.READY),
            routes.row("/models", "POST", "model-repository", self._load, Where.LOAD),
            routes.row("/models/(?P<model>[^/]+)", "GET", "model-repository", self._get),
            routes.row("/models/(?P<model>[^/]+)", "DELETE", "model-repository", self._unload, Where.LOAD),
            routes.row("/models/(?P<model>[^/]+)/invoke", "POST", "inference", _not_loaded),
        )

    def native(self, path: str, header: str | None) -> Native | None:
        if path == "/invocations":
            return self._invocations
        found = _INVOKE.fullmatch(path)
        target = self.models.target(from_wire(found[1])) if found else None
        # The next one with this head may come after an unload.
        return None if target is None else (INFER, from_wire(header) if header else target, -1, False)

    def control(
        self, method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
    ) -> Answer | Awaitable[Answer]:
        route, params, allowed = routes.find(method, path, self.table)
        if route is None:
            return empty_answer(400)
        values = {name.lower(): value for name, value in headers}
        return self.answer(route, Verb(method, path, query, values, body, params), allowed)

    def wrong_method(self, route: routes.Route) -> Answer:
        return super().wrong_method(route) if route in self.table[:2] else empty_answer(400)

    @staticmethod
    def error_reply(code: int, text: bytes) -> Answer:
        message = text.decode("utf-8", "replace")
        return error_answer(507, message) if _NO_MEMORY.search(message) else CloudApp.error_reply(code, text)

    # ---- handlers

    def _bad_type(self, plane: Dataplane, verb: Verb) -> Answer:
        raise InvalidArg(
            f"Server has invalid inference type '{self.settings.inference_type}'. Must be one of: {', '.join(TYPES)}."
        )

    def _list(self, plane: Dataplane, verb: Verb) -> Answer:
        return json_answer({"models": self.models.listing()})

    def _get(self, plane: Dataplane, verb: Verb) -> Answer:
        found = self.models.get(from_wire(verb.params["model"]))
        return empty_answer(404) if found is None else json_answer(found)

    def _load(self, plane: Dataplane, verb: Verb) -> Answer:
        try:
            body = verb.json_object()
            name, url = _text(body, "model_name"), _text(body, "url")
            self.models.load(name, url, from_wire(verb.headers.get(TARGET, "")) or name)
        except ServerError as error:
            return refused(error)
        return empty_answer()

    def _unload(self, plane: Dataplane, verb: Verb) -> Answer:
        try:
            is_known = self.models.unload(from_wire(verb.params["model"]))
        except ServerError as error:
            return refused(error)
        return empty_answer(200 if is_known else 404)


def refused(error: ServerError) -> Answer:
    """Answer a failed load or unload: the statuses are the contract of multi-model endpoints, not those of v2."""
    text = str(error)
    if isinstance(error, AlreadyExists):
        return error_answer(409, text)
    return error_answer(507 if _NO_MEMORY.search(text) else 400, text)


def _bad_ping(plane: Dataplane, verb: Verb) -> Answer:
    return empty_answer(400)


def _not_loaded(plane: Dataplane, verb: Verb) -> Answer:
    return empty_answer(404)


def _text(body: dict[str, Any], key: str) -> str:
    value = body.get(key, "")
    if not isinstance(value, str):
        raise InvalidArg(f"Unable to parse '{key}': attempt to access JSON non-string as string")
    return value
