"""What the native HTTP connections ask of Python: the routes over the dataplane, and the scrape of the metrics port."""

from __future__ import annotations

from collections.abc import Awaitable
from concurrent.futures import Executor
from functools import partial

from triton_fast._native.sched.model import NativeModel
from triton_fast.frontends import compression
from triton_fast.frontends.authorizer import Authorizer, Refusal
from triton_fast.frontends.http import load, routes
from triton_fast.frontends.http.accept import choose_encoding
from triton_fast.frontends.http.messages import Answer, Verb, code_answer, error_answer
from triton_fast.frontends.metrics import Handler
from triton_fast.frontends.v2 import V2App
from triton_fast.frontends.work import Offload, Where
from triton_fast.observability import log
from triton_fast.observability.custom import CustomMetrics


class InferApp(V2App):
    """What the native connection asks of the v2 front end."""

    inflate = staticmethod(partial(compression.inflate, flag="--http-max-input-size"))
    choose_encoding = staticmethod(choose_encoding)
    # Where the models' own metrics are; None where the server keeps none.
    custom_metrics: CustomMetrics | None = None

    def resolve(self, name: str, version: int) -> NativeModel:
        return self.plane.native_model(name, version)

    def control(
        self, method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
    ) -> Answer | Awaitable[Answer]:
        """Answer any request but infer and generate; what may take long is answered later, from another thread."""
        route, params, allowed = routes.find(method, path)
        if route is None:
            return error_answer(404, "Not Found")
        values = {name.lower(): value for name, value in headers}
        return self.answer(route, Verb(method, path, query, values, body, params), allowed)

    def answer(self, route: routes.Route, verb: Verb, allowed: bool) -> Answer | Awaitable[Answer]:
        """Run the handler of a route for who may use it. ``allowed``: the route has the method."""
        missing = self.authorizer.missing(route.category, verb.headers)
        return self.denied(missing) if missing else self.admitted(route, verb, allowed)

    def admitted(self, route: routes.Route, verb: Verb, allowed: bool) -> Answer | Awaitable[Answer]:
        """As ``answer``, for whom the authorizer has let pass; it counts requests, so it is asked once for each."""
        if not allowed:
            return self.wrong_method(route)
        where = self.place(route.where)
        if where is not Where.LOOP:
            return self.run_later(routes.run, route, self.plane, verb, where=where)
        return routes.run(route, self.plane, verb)

    def wrong_method(self, route: routes.Route) -> Answer:
        """Answer a method that a known path does not have."""
        return error_answer(405, "Method Not Allowed", ("Allow", ", ".join(route.methods)))

    def endpoint_load(self, form: int) -> bytes | None:
        """Return the endpoint-load-metrics header of a generate answer, if the models say what it needs."""
        return load.endpoint_load(self.custom_metrics.values(load.FAMILY), form) if self.custom_metrics else None

    @staticmethod
    def denied(header: str) -> Answer:
        """Answer a request that lacks what ``Authorizer.missing`` named."""
        if isinstance(header, Refusal):
            return error_answer(header.http, header, *header.headers)
        return error_answer(403, f"This API is restricted, expecting header '{header}'")

    @staticmethod
    def error_reply(code: int, text: bytes) -> Answer:
        """Answer with an error of the engine."""
        message = text.decode("utf-8", "replace")
        if message == "Unsupported compression type":
            return code_answer(code, message, ("Accept-Encoding", "gzip, deflate"))
        return code_answer(code, message)

    @staticmethod
    def refusal(status: int, text: bytes) -> Answer:
        """Answer a message that HTTP itself refuses."""
        return error_answer(status, text.decode("utf-8", "replace"))

    @staticmethod
    def failed(error: BaseException) -> None:
        log.error(f"a connection failed: {type(error).__name__}: {error}")


class MetricsApp(InferApp):
    """The metrics port: one handler, no infer, no routes."""

    def __init__(self, handle: Handler, work: Executor, authorizer: Authorizer | None = None) -> None:
        Offload.__init__(self, work)
        self.authorizer = authorizer or Authorizer()
        self.handle = handle

    def control(
        self, method: str, path: str, query: str, headers: list[tuple[str, str]], body: bytes
    ) -> Answer | Awaitable[Answer]:
        missing = self.authorizer.missing("metrics", {name.lower(): value for name, value in headers})
        return self.denied(missing) if missing else self.run_later(self.handle, method, path)
