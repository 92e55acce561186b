"""An OTLP collector's stand-in: takes what exporters post over HTTP and keeps the spans."""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True)
class Span:
    name: str
    trace: str
    id: str
    parent: str
    begin: int
    end: int
    kind: int
    failed: bool
    state: str
    attributes: dict[str, Any]
    events: tuple[tuple[str, int], ...]
    resource: dict[str, Any]
    scope: str


def _values(pairs: Any) -> dict[str, Any]:
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in pairs}


class Collector:
    """``url`` is where to export; ``wait_for`` returns the spans once there are so many."""

    def __init__(self) -> None:
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                outer.take(self.path, body)
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, *_: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._changed = threading.Condition()
        self.spans: list[Span] = []
        self.paths: set[str] = set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def __enter__(self) -> Collector:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def take(self, path: str, body: bytes) -> None:
        found = [
            Span(
                span.name, span.trace_id.hex(), span.span_id.hex(), span.parent_span_id.hex(),
                span.start_time_unix_nano, span.end_time_unix_nano, span.kind, span.status.code == 2, span.trace_state,
                _values(span.attributes), tuple((event.name, event.time_unix_nano) for event in span.events),
                _values(group.resource.attributes), scope.scope.name,
            )
            for group in ExportTraceServiceRequest.FromString(body).resource_spans
            for scope in group.scope_spans
            for span in scope.spans
        ]  # fmt: skip
        with self._changed:
            self.paths.add(path)
            self.spans += found
            self._changed.notify_all()

    def wait_for(self, count: int) -> list[Span]:
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.spans) >= count, 30.0), [one.name for one in self.spans]
            return list(self.spans)

    def tree(self, trace: str) -> Any:
        """Return (name, children) of the spans of one trace, by when they begin."""
        mine = [one for one in self.spans if one.trace == trace]
        ids = {one.id for one in mine}
        assert len(ids) == len(mine)

        def below(parent: str) -> list[Any]:
            found = sorted((one for one in mine if one.parent == parent), key=lambda one: one.begin)
            return [(one.name, below(one.id)) for one in found]

        (root,) = [one for one in mine if one.parent not in ids]
        return root.name, below(root.id)
