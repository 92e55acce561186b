"""The one door of pb_utils to what is outside the model: requests, senders, BLS, log, metrics, model control.

``WorkerRuntime`` (worker_runtime.py) goes over region and socket. A server may run a model in its own process with a
Runtime of its own: nothing in tensor, request, response, sender, bls, log, metrics and functions knows another way out.
"""

from __future__ import annotations

import contextvars
from typing import TYPE_CHECKING, Any, Callable

if TYPE_CHECKING:
    from .request import InferenceRequest
    from .response import InferenceResponse

# Names a request towards its runtime; only the runtime looks inside.
Ticket = Any


class Call:
    """A BLS request under way."""

    __slots__ = ()

    def next(self) -> InferenceResponse:
        """Wait for the next response. Its ``_last`` is True on the last; not called again after that."""
        raise NotImplementedError

    def cancel(self) -> None:
        """Ask for the end. Responses go on until the last one has come."""
        raise NotImplementedError

    def close(self) -> None:
        """No response is wanted any more. Called by finalizers: takes no lock that its own thread may hold."""
        raise NotImplementedError


class Runtime:
    """All methods may be called from any thread of the model."""

    __slots__ = ()
    name = ""  # of the instance, as it stands in error texts
    decoupled = False

    def cancelled(self, ticket: Ticket) -> bool:
        """Whether the request's client has given up. Polled: must be cheap."""
        raise NotImplementedError

    def send(self, ticket: Ticket, response: InferenceResponse | None, wanted: frozenset[str], flags: int) -> None:
        """Send a response of a sender; ``response`` None sends the flags alone. The rules have been checked.

        Outputs that are not in ``wanted`` are left out. Waits while the client reads too slowly. What cannot be sent
        ends the request with the reason as its error, which is raised too, as TritonModelException.
        """
        raise NotImplementedError

    def abandoned(self, ticket: Ticket, sent: bool) -> None:
        """A sender went away without its final flag. Called by finalizers, as Call.close is."""
        raise NotImplementedError

    def submit(
        self,
        request: InferenceRequest,
        decoupled: bool,
        callback: Callable[[InferenceResponse], None] | None = None,
    ) -> Call:
        """Start a BLS request. With ``callback`` the first response goes to it, on a thread of the runtime.

        Raises TritonModelException for wrong use only; failures are responses.
        """
        raise NotImplementedError

    def log(self, level: int, file: str, line: int, message: str) -> None:
        """Levels: 0 INFO, 1 WARNING, 2 ERROR, 3 VERBOSE. Never raises."""
        raise NotImplementedError

    def ask(self, verb: str, fields: dict[str, Any], blob: bytes = b"") -> Any:
        """Ask the server a control verb of docs/python_worker.md and wait. TritonModelException: what it refused."""
        raise NotImplementedError

    def tell(self, verb: str, fields: dict[str, Any]) -> None:
        """The same without an answer. Called by finalizers, as Call.close is; never raises."""
        raise NotImplementedError

    def model_dir(self) -> str:
        """What pb_utils.get_model_dir() returns."""
        raise NotImplementedError


_bound: contextvars.ContextVar[Runtime | None] = contextvars.ContextVar("triton_fast_runtime", default=None)
_default: Runtime | None = None
_find: Callable[[], Runtime | None] | None = None


def current() -> Runtime:
    """The runtime of the calling context, else the process's, else what the finder finds."""
    runtime = _bound.get() or _default
    if runtime is None and _find is not None:
        runtime = _find()
    if runtime is None:
        raise RuntimeError("triton_python_backend_utils is used outside a model")
    return runtime


def bind(runtime: Runtime) -> contextvars.Token[Runtime | None]:
    """Make it the calling context's, until ``unbind``."""
    return _bound.set(runtime)


def unbind(token: contextvars.Token[Runtime | None]) -> None:
    _bound.reset(token)


def set_default(runtime: Runtime | None) -> None:
    """Make it the one of all threads of this process that have none bound."""
    global _default  # noqa: PLW0603
    _default = runtime


def set_finder(find: Callable[[], Runtime | None]) -> None:
    """Have it asked for the runtime of a thread that has none, in a process with many models."""
    global _find  # noqa: PLW0603
    _find = find
