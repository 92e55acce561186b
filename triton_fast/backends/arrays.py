"""The short way to a backend: a class that opens a model file and returns a function over the arrays of a batch.

Everything else is done here: datatypes, batching, auto-complete, checks of the config and of what the function made,
strings, optional inputs, errors. docs/writing_a_backend.md shows one. Knows no framework.
"""

from __future__ import annotations

import threading
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from triton_fast._native.arrays.pyarrays import ArrayInstance
from triton_fast.backends.array_values import from_array, has_kind, kind_of, numpy, to_array
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.backends.foreign import cause, guarded
from triton_fast.backends.model_file import check_file, without_paths
from triton_fast.backends.values import default_max_batch_size, refuse_ragged
from triton_fast.config import ConfigError, ModelTensor, added_specs, check_against_model, complete_from_model
from triton_fast.errors import Internal, InvalidArg, ServerError
from triton_fast.types import BY_WIRE, TYPES, DataType

if TYPE_CHECKING:
    from triton_fast._native.arrays.pyarrays import Input, Output


class Tensor(NamedTuple):
    """An input or output as a model declares it.

    ``datatype``: a name of the protocol ("FP32", "BYTES"); ``dims``: with the batch dimension first where the model
    takes batches, -1 where variable; ``optional``: a request may leave the input out.
    """

    name: str
    datatype: str
    dims: Sequence[int]
    optional: bool = False


class Signature(NamedTuple):
    inputs: Sequence[Tensor]
    outputs: Sequence[Tensor]


@dataclass(frozen=True)
class Model:
    """What a backend is told about the model that it opens.

    Attributes
    ----------
    name, version
        The model and the version number.
    path
        Its file: ``default_model_filename``, else the backend's; the version's folder where neither names one.
    parameters
        ``parameters`` of config.pbtxt.
    settings
        ``--backend-config`` of this backend laid over the global ones.
    threads
        Threads that one instance may use so that all together stay within the cores there are.
    instance, device
        Where each instance opens the model for itself: its name, and "cpu" or "cuda:<n>".
    config
        The ``inference.ModelConfig`` message, for what else is in it. Not to be changed.
    """

    name: str
    version: int
    path: Path
    parameters: Mapping[str, str]
    settings: Mapping[str, str]
    threads: int
    instance: str
    device: str
    config: Any

    def number(self, key: str, default: int, *, least: int = 0) -> int:
        """Return a parameter, else a setting, else ``default``, as a whole number. Raises InvalidArg."""
        text = self.parameters.get(key, self.settings.get(key, str(default)))
        try:
            value = int(text)
        except ValueError:
            value = least - 1
        if value < least:
            raise InvalidArg(f"'{key}' of model '{self.name}' must be a whole number from {least}, got '{text}'")
        return value


@dataclass
class Batch:
    """The requests of one call.

    Attributes
    ----------
    inputs
        Name -> array, the rows of all requests one after the other where the model takes batches; an optional input
        that was left out is not there. The arrays can not be written to. STRING: an array of ``bytes`` objects.
    wanted
        Names of the outputs that somebody waits for; others need not be made.
    rows
        Of each request; (1,) where the model takes no batches.
    """

    inputs: Mapping[str, Any]
    wanted: frozenset[str]
    rows: tuple[int, ...]
    failed: list[tuple[int, BaseException]] = field(default_factory=list)

    def slices(self) -> list[slice]:
        """Return where the rows of each request lie."""
        found, at = [], 0
        for count in self.rows:
            found.append(slice(at, at + count))
            at += count
        return found

    def fail(self, request: int, error: str | ServerError) -> None:
        """Answer one request, by its place in ``rows``, with an error; a text is InvalidArg.

        The outputs must have its rows all the same, whatever is in them.
        """
        self.failed.append((request, error if isinstance(error, ServerError) else InvalidArg(str(error))))


# Called on the thread of an instance with the GIL. A ServerError fails the batch with its code, what else is raised as
# Internal. ``close`` of the function, where there is one, is called after the last call.
Run = Callable[[Batch], Mapping[str, Any]]


class ArrayBackend(Backend):
    """Subclass this; ``open`` is all that must be there."""

    # One ``Run`` for all instances, which call it at the same time; False: each opens the model for itself.
    shared: bool = True
    # Whether it can use GPUs; where not, a config that asks for one is refused.
    uses_gpu: bool = False
    # Whether an array that was returned is never written again: large ones are then sent from where they are.
    lends_outputs: bool = False

    def describe(self, model: Model) -> Signature | None:
        """Say what the model takes and makes; None: the config has to.

        What config.pbtxt leaves out is completed from it, and a config that contradicts it is refused.
        """
        return None

    @abstractmethod
    def open(self, model: Model) -> Run:
        """Open the model. A ServerError is told as it is, what else is raised as Internal with its cause."""

    # ---- what is given

    @property
    def gpu(self) -> bool:
        return self.uses_gpu

    def datatypes(self) -> frozenset[DataType]:
        return frozenset(dtype for dtype in TYPES if has_kind(dtype))

    def complete_config(self, context: LoadContext) -> Any:
        config = context.config
        if config.input and config.output:
            return config
        signature = self._described(context)
        if signature is None:
            raise ConfigError(
                f"model '{context.name}' does not tell its tensors: write input and output into config.pbtxt"
            )
        added = added_specs(config)
        taken = {spec.name for spec in (*added.inputs, *added.outputs)}
        default = default_max_batch_size(context.settings, refused="{key} must be a whole number, got '{text}'")
        complete_from_model(
            config, [_tensor(one, context) for one in signature.inputs if one.name not in taken],
            [_tensor(one, context) for one in signature.outputs if one.name not in taken],
            default_max_batch_size=default, given=context.given,
        )  # fmt: skip
        optional = {one.name for one in signature.inputs if one.optional}
        for entry in config.input if "input" not in context.given else ():
            entry.optional = entry.name in optional
        return config

    def load(self, context: LoadContext) -> BackendModel:
        numpy()
        _check_config(context)
        signature = self._described(context)
        if signature is not None:
            _check_signature(context, signature)
        return _ArrayModel(self, context)

    def _described(self, context: LoadContext) -> Signature | None:
        with without_paths(context), guarded(_failed(context, self.name)):
            found = self.describe(self._model(context))
            return None if found is None else Signature(*found)

    def _model(self, context: LoadContext, spec: InstanceSpec | None = None) -> Model:
        on_gpu = spec is not None and spec.kind == "KIND_GPU"
        return Model(
            name=context.name, version=context.version, path=_path(context, getattr(self, "default_filename", "")),
            parameters={key: value.string_value for key, value in context.config.parameters.items()},
            settings=context.settings, threads=context.threads_per_instance, config=context.config,
            instance="" if spec is None else spec.name, device=f"cuda:{spec.device}" if spec and on_gpu else "cpu",
        )  # fmt: skip

    def opened(self, context: LoadContext, spec: InstanceSpec | None) -> Run:
        """Return what ``open`` does, checked."""
        with without_paths(context), guarded(_failed(context, self.name)):
            run = self.open(self._model(context, spec))
        if not callable(run):
            raise Internal(f"{_failed(context, self.name)}: open returned {type(run).__name__}, not a function")
        return run


class _ArrayModel(BackendModel):
    def __init__(self, backend: ArrayBackend, context: LoadContext) -> None:
        self._backend = backend
        self._context = context
        self._lock = threading.Lock()
        self._runs: list[Run] = []
        if backend.shared:
            self._runs.append(backend.opened(context, None))

    def create_instance(self, spec: InstanceSpec) -> ArrayInstance:
        context, backend = self._context, self._backend
        if backend.shared:
            run = self._runs[0]
        else:
            run = backend.opened(context, spec)
            with self._lock:
                self._runs.append(run)
        call = _Call(backend, context, run)
        batch = context.config.max_batch_size
        return ArrayInstance(call, len(call.inputs), len(call.outputs), batch, spec.name, each=True)

    def close(self) -> None:
        with self._lock:
            runs, self._runs = self._runs, []
        for run in runs:
            close = getattr(run, "close", None)
            if close is not None:
                with guarded(f"closing model '{self._context.name}' failed"):
                    close()


class _Call:
    """The function of an ArrayInstance: arrays in, the backend's function, arrays out."""

    def __init__(self, backend: ArrayBackend, context: LoadContext, run: Run) -> None:
        config = context.config
        added = added_specs(config)
        self._run = run
        self._failed = f"backend '{backend.name}' failed"
        self._lend = backend.lends_outputs
        self._batched = config.max_batch_size > 0
        self.inputs = [one.name for one in (*config.input, *added.inputs)]
        self.outputs = [(one.name, DataType(one.data_type), _dims(one)) for one in config.output]
        self.outputs += [(one.name, one.dtype, tuple(one.dims if one.reshape is None else one.reshape))
                         for one in added.outputs]  # fmt: skip
        self._known = {name for name, _, _ in self.outputs}

    def __call__(
        self, given: list[Input | None], wanted: tuple[bool, ...], rows: tuple[int, ...]
    ) -> tuple[list[Output | None], list[tuple[int, BaseException]]]:
        inputs = {name: to_array(one) for name, one in zip(self.inputs, given, strict=True) if one is not None}
        names = frozenset(name for (name, _, _), want in zip(self.outputs, wanted, strict=True) if want)
        batch = Batch(inputs, names, rows)
        try:
            made = self._run(batch)
        except ServerError:
            raise
        except BaseException as error:
            # The traceback's frames hold arrays; it goes no further.
            text = f"{self._failed}: {cause(error)}"
            del error
            raise Internal(text) from None
        if not isinstance(made, Mapping):
            raise Internal(
                f"{self._failed}: it returned {type(made).__name__}, not a mapping of output names to arrays"
            )
        if unknown := [name for name in made if name not in self._known]:
            raise Internal(
                f"{self._failed}: it returned '{unknown[0]}', the outputs are {', '.join(sorted(self._known))}"
            )
        outputs: list[Output | None] = []
        for name, dtype, dims in self.outputs:
            if name not in names:
                outputs.append(None)
            elif name not in made:
                raise Internal(f"{self._failed}: it returned no output '{name}'")
            else:
                outputs.append(from_array(made[name], name, dtype, dims, batched=self._batched, lend=self._lend))
        return outputs, batch.failed


def _dims(tensor: Any) -> tuple[int, ...]:
    """The shape that the backend sees."""
    return tuple(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)


def _failed(context: LoadContext, backend: str) -> str:
    return f"unable to load model '{context.name}', backend '{backend}' failed"


def _path(context: LoadContext, default: str) -> Path:
    folder, name = context.version_dir, str(context.config.default_model_filename)
    # What the server makes of a directory's name (anything.<backend>) gives way to the backend's own.
    if name and default and "default_model_filename" not in context.given and not (folder / name).exists():
        name = default
    path = folder / (name or default)
    if not path.is_dir():
        check_file(context, path)
    return path


def _tensor(one: Tensor, context: LoadContext) -> ModelTensor:
    dtype = BY_WIRE.get(one.datatype)
    if dtype is None:
        raise Internal(f"unable to load model '{context.name}', tensor '{one.name}' has no datatype '{one.datatype}'")
    return ModelTensor(one.name, dtype, tuple(one.dims))


def _check_config(context: LoadContext) -> None:
    config = context.config
    prefix = f"unable to load model '{context.name}'"
    for side, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            raise Internal(f"model configuration must contain at least one {side}, none were specified.")
        for one in tensors:
            try:
                kind_of(int(one.data_type))
            except InvalidArg as error:
                raise InvalidArg(f"{prefix}, {side} '{one.name}': {error}") from None
    refuse_ragged(config)


def _check_signature(context: LoadContext, signature: Signature) -> None:
    """Refuse a config that does not fit the model. Optional inputs may be left out of it."""
    optional = {one.name: _tensor(one, context) for one in signature.inputs if one.optional}
    rest = [_tensor(one, context) for one in signature.inputs if not one.optional]
    outputs = [_tensor(one, context) for one in signature.outputs]
    config = type(context.config)()
    config.CopyFrom(context.config)
    del config.input[:]
    prefix = f"unable to load model '{context.name}'"
    needed = {one.name for one in rest}
    for given in context.config.input:
        if given.optional and given.name in needed:
            raise ConfigError(f"{prefix}, input '{given.name}' is not optional for the model")
        one = optional.get(given.name)
        if one is None:
            config.input.add().CopyFrom(given)
        elif given.data_type != one.dtype:
            raise ConfigError(
                f"{prefix}, optional input '{given.name}' is {DataType(given.data_type).name} in the configuration, "
                f"model provides {one.dtype.name}"
            )
    check_against_model(config, rest, outputs)
