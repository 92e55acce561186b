"""What the front ends of clouds have in common: a route table of their own on a port of their own, over the same verbs.

Inference goes the native way: ``native`` says which of its routes a POST means. Who may use what is decided as on the
HTTP port, by the category of the route, or of what it leads to.
"""

from __future__ import annotations

from triton_fast.frontends.http.routes import Route
from triton_fast.frontends.http.server import InferApp

# Numbers of the native connection (ROUTE_*).
INFER, GENERATE, GENERATE_STREAM = 1, 2, 3
# ROUTE_*, model, version (-1: the policy's choice), and whether the same head always means this.
Native = tuple[int, str, int, bool]


class CloudApp(InferApp):
    """Base of the applications of these ports."""

    # What the log calls the port.
    service: str
    # Content type of JSON with binary tensors behind it, up to the JSON's length; requests and answers have it.
    binary_type: bytes
    # A header that may change what a path means, lower case.
    route_header: bytes
    table: tuple[Route, ...]

    def native(self, path: str, header: str | None) -> Native | None:
        """Return what a POST infers; None: ``control`` answers it. ``header``: the value of ``route_header``."""
        raise NotImplementedError


def from_wire(text: str) -> str:
    """Return a part of a path or a header as the name it means: bytes come from the connection as latin-1."""
    try:
        return text.encode("latin-1").decode("utf-8", "replace")
    except UnicodeEncodeError:
        return text
