"""Backends that others wrote: imported when a model asks for one, and kept from harming more than that model.

Whatever their code raises, SystemExit included, becomes an Internal error with its cause. Knows neither registry nor
models. It does not protect from code that means harm, hangs, or crashes the process.
"""

from __future__ import annotations

import importlib.util
import inspect
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

from triton_fast import protos
from triton_fast._native.sched.instance import NativeInstance
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.backends.paths import PathParameter, Place, Takes
from triton_fast.errors import Internal, ServerError
from triton_fast.observability import log
from triton_fast.types import DataType

_LIMIT = 1000
# Of a backend that does not say by which parameters it is led to files: it may be by any.
ANY_PARAMETER = (PathParameter(Place.PARAMETER, ("*",), Takes.WORDS, "the backend may take it for a file's place"),)


class File(NamedTuple):
    """``<backend directory>/<name>/backend.py``."""

    name: str
    path: Path

    @property
    def key(self) -> tuple[str, ...]:
        return self.name, str(self.path)

    @property
    def shown(self) -> str:
        return f"{self.name}/{self.path.name}"


class EntryPoint(NamedTuple):
    """What installed packages offer under this name."""

    name: str
    points: Sequence[metadata.EntryPoint]

    @property
    def key(self) -> tuple[str, ...]:
        return self.name, *(f"{package(point)} {point.value}" for point in self.points)

    @property
    def shown(self) -> str:
        return " and ".join(sorted(f"package {package(point)}" for point in self.points))


Source = File | EntryPoint


def package(point: metadata.EntryPoint) -> str:
    """Return the name of the package that an entry point is of; its value where the package's files do not tell."""
    try:
        name = None if point.dist is None else point.dist.name
    except Exception:
        name = None
    return str(name or point.value)


def release(point: metadata.EntryPoint) -> str:
    """Return the version of that package, empty where its files do not tell."""
    try:
        return "" if point.dist is None else str(point.dist.version or "")
    except Exception:
        return ""


def cause(error: BaseException) -> str:
    """Return what an exception says on one line, with the file and line that raised it."""
    try:
        text = " ".join(str(error).split())
    except Exception:
        text = ""
    kind = type(error).__name__
    frames = traceback.extract_tb(error.__traceback__)
    where = f" ({Path(frames[-1].filename).name}, line {frames[-1].lineno})" if frames else ""
    return f"{kind}: {text[:_LIMIT]}{where}" if text else f"{kind}{where}"


@contextmanager
def guarded(what: str) -> Iterator[None]:
    """Turn whatever comes, but for errors with a code, into Internal: ``<what>: <cause>``."""
    try:
        yield
    except ServerError:
        raise
    except BaseException as error:
        text = f"{what}: {cause(error)}"
        log.verbose(1, text + "\n" + "".join(traceback.format_exception(error)))
    else:
        return
    raise Internal(text)


def load(source: Source) -> Backend:
    """Import a backend. Raises Internal with the cause when that fails or what is there is no backend."""
    what = f"unable to load backend '{source.name}' of {source.shown}"
    if isinstance(source, EntryPoint) and len(source.points) > 1:
        raise Internal(f"unable to load backend '{source.name}': {source.shown} both have it, uninstall one")
    with guarded(what):
        made = _from_file(source) if isinstance(source, File) else source.points[0].load()
        if inspect.isclass(made):
            made = made()
    if not isinstance(made, Backend):
        raise Internal(f"{what}: it is a {type(made).__name__}, not a subclass of triton_fast.backends.base.Backend")
    return Guarded(source.name, made)


def _from_file(source: File) -> Any:
    name = f"triton_fast_backend_{source.name.replace('.', '_').replace('-', '_')}"
    spec = importlib.util.spec_from_file_location(name, source.path)
    if spec is None or spec.loader is None:
        raise ImportError(f"'{source.shown}' can not be imported")
    module = importlib.util.module_from_spec(spec)
    # Dataclasses and pickle look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
        return _only_class(module, source)
    except BaseException:
        sys.modules.pop(name, None)
        raise


def _only_class(module: ModuleType, source: File) -> type[Backend]:
    found = [
        one for one in vars(module).values()
        if inspect.isclass(one) and issubclass(one, Backend) and one.__module__ == module.__name__
        and not inspect.isabstract(one) and not one.__name__.startswith("_")
    ]  # fmt: skip
    if len(found) != 1:
        listed = ", ".join(one.__name__ for one in found) or "none"
        raise Internal(f"'{source.shown}' must define one subclass of Backend, it has {listed}")
    return found[0]


class Guarded(Backend):
    """Another's backend under the name that it was found by."""

    def __init__(self, name: str, inner: Backend) -> None:
        with guarded(f"backend '{name}'"):
            self.name = name
            self.default_filename = str(getattr(inner, "default_filename", ""))
            self.version = str(inner.version)
            self.decoupled = bool(inner.decoupled)
            self.makes_batch_tensors = bool(inner.makes_batch_tensors)
            self.path_parameters = tuple(inner.path_parameters) or ANY_PARAMETER
        self.inner = inner

    def datatypes(self) -> frozenset[DataType]:
        with guarded(f"backend '{self.name}'"):
            return self.inner.datatypes()

    @property
    def gpu(self) -> bool:
        with guarded(f"backend '{self.name}'"):
            return bool(self.inner.gpu)

    @property
    def no_gpu(self) -> str:
        with guarded(f"backend '{self.name}'"):
            return str(self.inner.no_gpu)

    def complete_config(self, context: LoadContext) -> Any:
        with guarded(_failed(context, self.name)):
            made = self.inner.complete_config(context)
        if not isinstance(made, protos.ModelConfig):
            raise Internal(
                f"{_failed(context, self.name)}: complete_config returned {type(made).__name__}, not a ModelConfig"
            )
        return made

    def load(self, context: LoadContext) -> BackendModel:
        with guarded(_failed(context, self.name)):
            made = self.inner.load(context)
        if not isinstance(made, BackendModel):
            raise Internal(f"{_failed(context, self.name)}: load returned {type(made).__name__}, not a BackendModel")
        return GuardedModel(made, _failed(context, self.name))


class GuardedModel(BackendModel):
    def __init__(self, inner: BackendModel, failed: str) -> None:
        self.inner = inner
        self._failed = failed

    @property
    def ready_may_block(self) -> bool:
        with guarded(self._failed):
            return bool(self.inner.ready_may_block)

    def prepare(self, specs: Sequence[InstanceSpec]) -> None:
        with guarded(self._failed):
            self.inner.prepare(specs)

    def is_ready(self) -> bool:
        try:
            return bool(self.inner.is_ready())
        except BaseException as error:
            log.error(f"{self._failed}: {cause(error)}")
            return False

    def trim(self, keep: int) -> None:
        try:
            self.inner.trim(keep)
        except BaseException as error:
            log.error(f"{self._failed}: {cause(error)}")

    def create_instance(self, spec: InstanceSpec) -> NativeInstance:
        with guarded(self._failed):
            made = self.inner.create_instance(spec)
        if not isinstance(made, NativeInstance):
            raise Internal(f"{self._failed}: create_instance returned {type(made).__name__}, not a NativeInstance")
        return made

    def close(self) -> None:
        with guarded(self._failed):
            self.inner.close()


def _failed(context: LoadContext, name: str) -> str:
    return f"unable to load model '{context.name}', backend '{name}' failed"
