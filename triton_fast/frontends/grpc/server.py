"""What the native gRPC connections ask of Python: every call that is not inference, and what inference needs of it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial

from triton_fast._native.sched.model import NativeModel
from triton_fast.dataplane import Dataplane, parse_version
from triton_fast.errors import INTERNAL_ERROR, STATUS, Code
from triton_fast.frontends import compression
from triton_fast.frontends.authorizer import Refusal
from triton_fast.frontends.grpc import health, reflection
from triton_fast.frontends.grpc.calls import INTERNAL, OK, UNIMPLEMENTED, Call, Handler, OneRequest, code_status
from triton_fast.frontends.grpc.service import METHODS, Method, Reply, run
from triton_fast.frontends.keys import KeyRing
from triton_fast.frontends.v2 import V2App
from triton_fast.frontends.work import Where
from triton_fast.observability import log


class GrpcApp(V2App):
    """What the native connection asks of the gRPC front end; all of it on the loop's thread."""

    inflate = staticmethod(partial(compression.inflate, flag="--grpc-max-inflated-size"))

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
        super().__init__(plane, work, loads, restricted, checks, keys=keys)
        self.watchers = health.Watchers(plane, self)
        # Path -> restricted category, and what takes the call.
        self.calls: dict[str, tuple[str, Callable[[Call], Handler]]] = {
            **{path: (method.category, partial(Unary, self, method)) for path, method in METHODS.items()},
            health.WATCH: ("health", partial(health.Watch, watchers=self.watchers)),
            # What the server can be asked is metadata of it.
            **{
                reflection.path(package): (
                    "metadata",
                    partial(reflection.Reflection, package=package, refused=partial(self.refused, "metadata")),
                )
                for package in reflection.PACKAGES
            },
        }

    def resolve(self, name: str, version: str) -> NativeModel:
        """Return the version that inference goes to. Raises ServerError."""
        return self.plane.native_model(name, parse_version(version))

    def start(self, call: Call) -> Handler | None:
        """Take a call whose metadata has come; None: it is finished already."""
        category, handler = self.calls.get(call.path, ("", None))
        if handler is None:
            call.finish(UNIMPLEMENTED)
            return None
        refused = self.refused(category, call)
        if refused is not None:
            call.finish(*refused)
            return None
        return handler(call)

    def refused(self, category: str, call: Call) -> tuple[int, str] | None:
        """Return (status, text) when the call's metadata does not let it use the category, now."""
        missing = self.authorizer.missing(category, call.metadata)
        return self.denied(missing) if missing else None

    @staticmethod
    def denied(header: str) -> tuple[int, str]:
        """Return (status, text) for a call that lacks what ``Authorizer.missing`` named."""
        if isinstance(header, Refusal):
            return header.grpc, str(header)
        return STATUS[Code.UNAVAILABLE].grpc, f"This protocol is restricted, expecting header '{header}'"

    @staticmethod
    def error(code: int, text: str) -> tuple[int, str]:
        """Return (status, text) for an error of the engine."""
        return code_status(code), text

    @staticmethod
    def failed(error: BaseException) -> None:
        log.error(f"a gRPC call failed: {type(error).__name__}: {error}")


class Unary(OneRequest):
    """One call of the table."""

    def __init__(self, app: GrpcApp, method: Method, call: Call) -> None:
        super().__init__(call, method.limit)
        self.app = app
        self.method = method
        self._task: asyncio.Task[None] | None = None

    def begin(self, data: bytes) -> None:
        where = self.app.place(self.method.where)
        if where is Where.LOOP:
            self._reply(run(self.method, self.app.plane, self.call.path, data))
        else:
            self._task = asyncio.get_running_loop().create_task(self._later(data, where))

    async def _later(self, data: bytes, where: Where) -> None:
        try:
            arguments = (self.method, self.app.plane, self.call.path, data)
            reply = await self.app.run_later(run, *arguments, where=where)
        except Exception as error:
            self.app.failed(error)
            reply = Reply(INTERNAL, INTERNAL_ERROR)
        self._task = None
        self._reply(reply)

    def _reply(self, reply: Reply) -> None:
        if self.is_open:
            if reply.status == OK:
                self.call.send(reply.data)
            self.finish(reply.status, reply.text)

    def closed(self) -> None:
        super().closed()
        # Work that has not begun is dropped; what runs ends unheard.
        if self._task is not None:
            self._task.cancel()
            self._task = None
