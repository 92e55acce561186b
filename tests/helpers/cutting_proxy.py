"""An HTTP proxy before an emulator that records requests, breaks bodies off, and answers with errors on demand."""

from __future__ import annotations

import http.client
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any


class CuttingProxy:
    """On a free port of 127.0.0.1. ``cuts``: bytes after which the bodies of the next large answers break off.

    ``refuse``: path -> a status to answer with instead, or 0. ``after_cut`` is called when a body broke off.
    """

    def __init__(self, port: int) -> None:
        self.cuts: list[int] = []
        self.refuse: Callable[[str], int] = lambda path: 0
        self.after_cut: Callable[[], object] = lambda: None
        self.seen: list[tuple[str, dict[str, str]]] = []
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                proxy._serve(self, port)

            do_HEAD = do_GET

            def log_message(self, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self.endpoint = f"http://127.0.0.1:{self.port}"

    def __enter__(self) -> CuttingProxy:
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._server.shutdown()
        self._thread.join(20)
        self._server.server_close()

    def gets(self, end: str) -> list[dict[str, str]]:
        """The headers, with small letters, of the requests for a path that ends so."""
        return [headers for path, headers in self.seen if path.partition("?")[0].endswith(end)]

    def _serve(self, handler: BaseHTTPRequestHandler, port: int) -> None:
        headers = {key.lower(): value for key, value in handler.headers.items()}
        self.seen.append((handler.path, headers))
        status = self.refuse(handler.path)
        if status:
            handler.send_response(status)
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
        try:
            connection.request(handler.command, handler.path, headers=headers)
            reply = connection.getresponse()
            body = reply.read()
        finally:
            connection.close()
        handler.send_response(reply.status)
        for key, value in reply.getheaders():
            if key.lower() not in ("content-length", "transfer-encoding", "connection", "date", "server"):
                handler.send_header(key, value)
        handler.send_header("Content-Length", reply.getheader("Content-Length") or str(len(body)))
        handler.end_headers()
        if self.cuts and len(body) > self.cuts[0]:
            handler.wfile.write(body[: self.cuts.pop(0)])
            handler.wfile.flush()
            handler.close_connection = True
            self.after_cut()
            return
        handler.wfile.write(body)
