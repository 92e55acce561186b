"""What lies outside a model: one object through which everything leaves the process, or the model."""

from __future__ import annotations

import contextvars
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Optional

from triton_fast_worker.errors import TritonModelException

if TYPE_CHECKING:
    from triton_fast_worker.request import InferenceRequest
    from triton_fast_worker.response import InferenceResponse


class Origin(ABC):
    """Where a request that a model was given came from. Attributes are the sender's state.

    ``decoupled``; ``answered``: a response was sent; ``closed``: the final one was; ``release``: flags of
    ``set_release_flags``.
    """

    __slots__ = ("answered", "closed", "decoupled", "release")

    def __init__(self, decoupled: bool) -> None:
        self.decoupled = decoupled
        self.answered = False
        self.closed = False
        self.release = 1

    @abstractmethod
    def cancelled(self) -> bool:
        """Whether nobody wants responses any more."""

    @abstractmethod
    def send(self, response: Optional[InferenceResponse], final: bool) -> None:
        """Send a response, or only the end. Blocks while the client is slow."""


class Runtime(ABC):
    """One model instance's outside. ``model_dir``: the version directory."""

    model_dir: str = ""

    @abstractmethod
    def execute(self, request: InferenceRequest) -> InferenceResponse:
        """Send a request to another model, wait for its only response. Errors are responses."""

    @abstractmethod
    def stream(self, request: InferenceRequest) -> Any:
        """Send a request to another model; return an iterator of its responses with a method ``cancel``."""

    @abstractmethod
    def log(self, level: int, file: str, line: int, message: str) -> None:
        """Write to the server's log."""

    @abstractmethod
    def ask(self, kind: str, blob: bytes = b"", **fields: Any) -> Any:
        """Ask the server something and return its answer; raises TritonModelException with its error."""

    @abstractmethod
    def tell(self, kind: str, **fields: Any) -> None:
        """Tell the server something that has no answer."""


_default: Optional[Runtime] = None
_current: contextvars.ContextVar[Optional[Runtime]] = contextvars.ContextVar("triton_fast_runtime", default=None)


def current() -> Runtime:
    """Return the runtime of the model that calls. Raises TritonModelException outside a server."""
    found = _current.get() or _default
    if found is None:
        raise TritonModelException("triton_python_backend_utils is used outside of a model")
    return found


def use(runtime: Runtime) -> None:
    """Make it the runtime of this context (thread or task)."""
    _current.set(runtime)


def use_everywhere(runtime: Optional[Runtime]) -> None:
    """Make it the runtime where no context says otherwise: of a process with one model."""
    global _default
    _default = runtime
