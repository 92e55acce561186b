"""Turns: one operation a model at a time, and a count of everything that the server's end has to wait for.

Nobody holds two turns at once (but a model that loads others while it is loaded, see nested.py): no circle can form.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from contextvars import ContextVar

from triton_fast.errors import Unavailable
from triton_fast.observability import log

# Entered before a model's turn is waited for; may refuse by raising Unavailable.
Asking = Callable[[str], AbstractContextManager[None]]


# Whether whoever asked for what this thread does still waits for it; nothing is set where nobody can leave.
_waits_still: ContextVar[Callable[[], bool] | None] = ContextVar("waits_still", default=None)


@contextmanager
def asked_by(waits_still: Callable[[], bool]) -> Iterator[None]:
    """Give up operations that this thread has not begun when whoever asked for them has left."""
    token = _waits_still.set(waits_still)
    try:
        yield
    finally:
        _waits_still.reset(token)


def unasked(_: str) -> AbstractContextManager[None]:
    """Nobody has to be asked."""
    return nullcontext()


class Operations:
    """``is_closing`` tells whether the server takes no operations any more."""

    def __init__(self, is_closing: Callable[[], bool]) -> None:
        self._is_closing = is_closing
        self._turns: dict[str, tuple[threading.Lock, int]] = {}
        self._turns_lock = threading.Lock()
        # Name -> operations that wait to end the model.
        self._endings: Counter[str] = Counter()
        self._are_loads_given_up = False
        self._busy = 0
        self._idle = threading.Condition()

    @property
    def waiting(self) -> list[str]:
        """Names that somebody works on or waits for."""
        with self._turns_lock:
            return sorted(self._turns)

    def begin(self) -> None:
        """Something begins that the server's end waits for; ``done`` ends it."""
        with self._idle:
            self._busy += 1

    def done(self) -> None:
        with self._idle:
            self._busy -= 1
            self._idle.notify_all()

    def wait_idle(self, timeout_s: float) -> bool:
        """Wait until nothing is under way; return whether that came true in time."""
        with self._idle:
            return self._idle.wait_for(lambda: self._busy == 0, timeout_s)

    @staticmethod
    def check_asker(name: str) -> None:
        """Refuse what has not begun and nobody waits for: a client that asks and leaves must not occupy the server."""
        waits_still = _waits_still.get()
        if waits_still is not None and not waits_still():
            log.verbose(1, f"an operation of model '{name}' was dropped: its client has gone", model=name)
            raise Unavailable(f"the client that asked for an operation of model '{name}' has gone")

    def give_up_loads(self) -> None:
        """All loads are for nothing from now on: the server is about to close."""
        self._are_loads_given_up = True

    def is_given_up(self, name: str) -> bool:
        """Tell whether a load of this model is for nothing: the server closes, or somebody waits to unload it."""
        return self._are_loads_given_up or self._is_closing() or name in self._endings

    @contextmanager
    def _ending(self, name: str) -> Iterator[None]:
        with self._turns_lock:
            self._endings[name] += 1
        try:
            yield
        finally:
            with self._turns_lock:
                self._endings[name] -= 1
                if not self._endings[name]:
                    del self._endings[name]

    @contextmanager
    def turn(
        self, name: str, asking: Asking = unasked, *, is_first: bool = False, ends: bool = False
    ) -> Iterator[None]:
        """Let one operation a model run at a time; the lock lives only while somebody wants it.

        ``ends``: it ends the model, so that a load which it waits for may give up.

        Raises Unavailable when the server closes, and with ``is_first``, which says that nothing was done yet, when
        nobody waits for the operation any more.
        """
        with asking(name), ExitStack() as waiting:
            if ends:
                waiting.enter_context(self._ending(name))
            with self._turns_lock:
                lock, users = self._turns.get(name, (threading.Lock(), 0))
                self._turns[name] = lock, users + 1
            self.begin()
            try:
                with lock:
                    waiting.close()
                    if self._is_closing():
                        raise Unavailable("Server not ready")
                    if is_first:
                        self.check_asker(name)
                    yield
            finally:
                with self._turns_lock:
                    lock, users = self._turns[name]
                    if users == 1:
                        del self._turns[name]
                    else:
                        self._turns[name] = lock, users - 1
                self.done()
