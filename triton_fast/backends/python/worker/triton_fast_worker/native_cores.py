"""What the compiled cores lack of the pure ones. Imported only with the compiled client."""

from __future__ import annotations

from typing import Any

from . import cores, runtime

_Core: Any = cores.client.RequestCore


class RequestCore(_Core):  # type: ignore[misc]
    __slots__ = ()

    @property
    def _ticket(self) -> tuple[int, int]:
        return self._slot, self._generation

    @property
    def _runtime(self) -> runtime.Runtime | None:
        # A process with the compiled client has one runtime. A request that the model made belongs to none.
        return runtime.current() if getattr(self, "_model", None) is None else None
