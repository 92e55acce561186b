"""What the v2 front ends have in common, whatever the protocol: the verbs, who may use them, threads, compression."""

from __future__ import annotations

from collections.abc import Mapping
from concurrent.futures import Executor

from triton_fast.dataplane import Dataplane
from triton_fast.frontends import compression
from triton_fast.frontends.authorizer import Authorizer
from triton_fast.frontends.keys import KeyRing
from triton_fast.frontends.work import Offload, Where


class V2App(Offload):
    """Base of what native connections ask of Python. ``restricted``, ``keys``: see ``Authorizer``."""

    deflate = staticmethod(compression.deflate)

    def __init__(
        self,
        plane: Dataplane,
        work: Executor,
        loads: Executor,
        restricted: Mapping[str, tuple[str, str]] | None = None,
        checks: Executor | None = None,
        *,
        keys: KeyRing | None = None,
    ) -> None:
        super().__init__(work, loads, checks)
        self.plane = plane
        # Inference itself is checked by the native connections (restrict_infer,
        # require_keys).
        self.authorizer = Authorizer(restricted, keys)

    def place(self, where: Where) -> Where:
        """Return where a handler runs now."""
        return Where.LOOP if where is Where.READY and not self.plane.ready_may_block else where
