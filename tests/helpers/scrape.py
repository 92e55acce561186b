"""What the metrics port of a server says."""

from __future__ import annotations

from tests.helpers import raw
from tests.helpers.server import ServerProcess


def scrape(server: ServerProcess) -> str:
    return raw.ask(server.metrics, raw.get("/metrics")).body.decode()


def pending(server: ServerProcess, model: str) -> int:
    """Return how many requests wait for version 1 of a model; 0 too where it is not served."""
    line = f'nv_inference_pending_request_count{{model="{model}",version="1"}} '
    return int(next((row[len(line) :] for row in scrape(server).splitlines() if row.startswith(line)), "0"))
