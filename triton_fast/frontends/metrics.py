"""What the metrics port answers, as one function of method and path; sockets and HTTP are the connection's business.

Knows nothing of what the metrics are.
"""

from __future__ import annotations

from collections.abc import Callable

from triton_fast.observability import log
from triton_fast.observability.exposition import CONTENT_TYPE

Answer = tuple[int, list[tuple[str, str]], bytes]
Handler = Callable[[str, str], Answer]
_TEXT = [("Content-Type", "text/plain")]


def handler(render: Callable[[], bytes]) -> Handler:
    """Return ``handle(method, path)``; ``render`` makes the scrape and may take milliseconds. Never raises."""

    def handle(method: str, path: str) -> Answer:
        if method != "GET":
            return 405, [*_TEXT], b'{"error":"Method Not Allowed"}'
        if path.partition("?")[0] not in ("/metrics", "/metrics/"):
            return 200, [("Content-Type", CONTENT_TYPE)], b""
        try:
            return 200, [("Content-Type", CONTENT_TYPE)], render()
        except Exception as error:
            log.error(f"metrics cannot be collected: {type(error).__name__}: {error}")
            return 500, [*_TEXT], b'{"error":"metrics cannot be collected, see the server log"}'

    return handle
