"""The Vertex AI front end: a health route and a predict route, whose header may lead to other verbs of the v2 API.

Routes are those of AIP_HEALTH_ROUTE and AIP_PREDICT_ROUTE, taken literally. Source: spec/http.md section 11,
spec/security.md SEC-15: what the header leads to is restricted as it is on the HTTP port.
"""

from __future__ import annotations

import re
from collections.abc import Awaitable
from typing import Any

from triton_fast.dataplane import MAX_VERSION_DIGITS, Dataplane
from triton_fast.errors import InvalidArg
from triton_fast.frontends.http import routes
from triton_fast.frontends.http.cloud import INFER, CloudApp, Native, from_wire
from triton_fast.frontends.http.messages import Answer, Verb, empty_answer
from triton_fast.frontends.metrics import Handler
from triton_fast.frontends.work import Where

REDIRECT = "x-vertex-ai-triton-redirect"
# What a redirect may ask for. Not among them: generate, trace, logging.
REACHED = frozenset({
    routes.all_stats, routes.model_metadata, routes.infer, routes.model_ready, routes.model_config, routes.model_stats,
    routes.server_metadata, routes.live, routes.ready, routes.repository_index, routes.repository_load,
    routes.repository_unload, routes.shared_memory_status, routes.shared_memory_register,
    routes.shared_memory_unregister,
})  # fmt: skip
# Rows of the v2 table that are known here and never served.
CHANGES = frozenset({
    routes.repository_load, routes.repository_unload, routes.shared_memory_register, routes.shared_memory_unregister,
})  # fmt: skip
_INFER = re.compile(rf"/v2/models/([^/]+)(?:/versions/0*([0-9]{{1,{MAX_VERSION_DIGITS}}}))?/infer")


def default_model(plane: Dataplane, wanted: str) -> str:
    """Return the model of the predict route. Raises InvalidArg where it is not loaded, or not the only one."""
    loaded = {row["name"] for row in plane.repository_index(ready_only=True)}
    if wanted:
        if wanted not in loaded:
            raise InvalidArg(f"Expect the default model '{wanted}' is loaded")
        return wanted
    if len(loaded) != 1:
        raise InvalidArg("Expect the model repository contains only a single model if default model is not specified")
    return loaded.pop()


class VertexApp(CloudApp):
    """``serve`` makes it ready for its port."""

    service = "Vertex AI HTTPService"
    binary_type = b"application/vnd.vertex-ai-triton.binary+json;json-header-size="
    route_header = REDIRECT.encode()

    def serve(self, predict: str, health: str, wanted: str, metrics: Handler | None) -> None:
        """Take over the routes. ``wanted``: the default model, or empty; ``metrics``: None where the server has none.

        Raises
        ------
        InvalidArg
            With Triton's texts, for what is missing.
        """
        if not predict:
            raise InvalidArg("API_PREDICT_ROUTE is not defined for Vertex AI endpoint")
        if not health:
            raise InvalidArg("AIP_HEALTH_ROUTE is not defined for Vertex AI endpoint")
        self.model = default_model(self.plane, wanted)
        self.predict = predict
        self.table = (
            routes.row(re.escape(health), "GET", "health", routes.ready, Where.READY),
            routes.row(re.escape(predict), "POST", "inference", routes.infer),
        )
        # Whoever may not see statistics may not see them in the metrics' form either.
        scrape = routes.row("/metrics", "GET", "statistics", lambda _, verb: _metrics(metrics, verb), Where.WORK)
        self.redirects = (scrape, *(route for route in routes.ROUTES if route.handler in REACHED))

    def native(self, path: str, header: str | None) -> Native | None:
        if path != self.predict:
            return None
        if header is None:
            return INFER, self.model, -1, True
        found = _INFER.fullmatch("/" + header)
        return (INFER, from_wire(found[1]), int(found[2]) if found[2] else -1, True) if found else None

    def control(
        self, method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
    ) -> Answer | Awaitable[Answer]:
        route, params, allowed = routes.find(method, path, self.table)
        if route is None:
            return empty_answer(400)
        values: dict[str, Any] = {}
        for name, value in headers:
            # Of a header that comes twice the first counts, as for the native route.
            values.setdefault(name.lower(), value)
        if path == self.predict and REDIRECT in values:
            return self._redirected("/" + values[REDIRECT], Verb(method, path, query, values, body))
        return self.answer(route, Verb(method, path, query, values, body, params), allowed)

    def _redirected(self, target: str, verb: Verb) -> Answer | Awaitable[Answer]:
        """Answer what the header leads to, which sees the method that it expects."""
        route, params, _ = routes.find("", target, self.redirects)
        if route is None:
            return empty_answer(400)
        seen = Verb(route.methods[0], target, "", verb.headers, verb.body, params)
        missing = self.authorizer.missing(route.category, verb.headers)
        if missing:
            return self.denied(missing)
        if verb.method == "POST" and route.handler in CHANGES:
            return empty_answer(403)
        return self.admitted(route, seen, verb.method == "POST")

    def wrong_method(self, route: routes.Route) -> Answer:
        # Of a redirect the method is the predict route's.
        return super().wrong_method(self.table[1] if route in self.redirects else route)


def _metrics(metrics: Handler | None, verb: Verb) -> Answer:
    return empty_answer(400) if metrics is None else metrics("GET", "/metrics")
