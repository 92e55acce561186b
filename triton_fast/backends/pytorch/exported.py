"""model.pt2: programs of torch.export and packages of AOTInductor, by Triton's names (ARGS[0], KWARGS[key], RESULT).

An exported program tells datatypes and shapes; a compiled package only how its arguments are nested.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import threading
import warnings
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from triton_fast.backends import trial
from triton_fast.backends.pytorch import probe
from triton_fast.backends.pytorch.effects import effects
from triton_fast.backends.pytorch.opened import Argument, Opened, flatten
from triton_fast.backends.pytorch.settings import Settings
from triton_fast.backends.pytorch.tensors import dtype_of
from triton_fast.backends.pytorch.texts import short
from triton_fast.errors import Internal, InvalidArg, ServerError

_LARGE = 1 << 20
# torch.export keeps what it is reading in a variable of its module, and Python's filters of warnings are the process's.
_lock = threading.Lock()


@contextmanager
def _alone() -> Iterator[None]:
    """Load one at a time, without what torch.export logs before it raises and warns those who write models of."""
    logger = logging.getLogger("torch.export")
    with _lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        before = logger.level
        logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            logger.setLevel(before)


def open_exported(torch: Any, path: Path, device: Any, settings: Settings, prefix: str) -> Opened:
    """Return an exported program as a model. Raises InvalidArg with the cause."""
    with _alone():
        try:
            program = torch.export.load(_by_its_end(path))
            if device is not None and (device.type != "cpu" or _is_elsewhere(torch, program)):
                passes = importlib.import_module("torch.export.passes")
                program = passes.move_to_device_pass(program, str(device))
            module = program.module()
        except Exception as error:
            raise InvalidArg(f"{prefix}: {_cause(error)}") from None
    signature = program.graph_signature
    values = {node.name: node.meta.get("val") for node in program.graph.nodes}
    specs = [spec for spec in signature.input_specs if spec.kind.name == "USER_INPUT"]
    paths = _paths(torch, program.call_spec.in_spec)
    inputs: list[Argument] = []
    fixed: list[Any] = []
    for at, spec in enumerate(specs):
        if type(spec.arg).__name__ == "ConstantArgument":
            fixed.append(spec.arg.value)
            continue
        fixed.append(_OPEN)
        inputs.append(_argument(torch, prefix, (spec.arg.name, paths[at]), values.get(spec.arg.name)))
    results = _results(torch, program.call_spec.out_spec)
    outputs: list[Argument] = []
    for (path_of, key), spec in zip(
        results, (s for s in signature.output_specs if s.kind.name == "USER_OUTPUT"), strict=True
    ):
        called = _result_names(key, path_of, len(outputs))
        if type(spec.arg).__name__ == "ConstantArgument":
            outputs.append(Argument(called, dims=(), constant=repr(spec.arg.value)[:100]))
        else:
            outputs.append(_argument(torch, prefix, called, _value(spec, values)))
    run = module
    if settings.compile is not None:
        run = torch.compile(module, **settings.compile)
    mutated, writes = effects(program)
    # What torch.compile records on a GPU may be one memory for all calls.
    recorded = settings.compile is not None and device is not None and device.type != "cpu"
    return Opened(
        tuple(inputs), _caller(torch, run, program.call_spec.in_spec, fixed), tuple(outputs),
        stateless=not mutated and not recorded,
        writes_inputs=writes, module=module,
    )  # fmt: skip


def _is_elsewhere(torch: Any, program: Any) -> bool:
    """Whether a program was exported on anything but a CPU."""
    values = (node.meta.get("val") for node in program.graph.nodes)
    return any(isinstance(value, torch.Tensor) and value.device.type != "cpu" for value in values)


_OPEN = object()


def _caller(torch: Any, run: Callable[..., Any], spec: Any, fixed: list[Any]) -> Callable[..., Any]:
    """Return a function of the tensors alone that nests them as the program wants them."""
    unflatten = torch.utils._pytree.tree_unflatten
    arguments, named = unflatten(list(range(len(fixed))), spec)
    plain = not named and list(arguments) == list(range(len(fixed)))
    if plain and all(value is _OPEN for value in fixed):
        return run

    def call(*tensors: Any) -> Any:
        left = iter(tensors)
        args, kwargs = unflatten([next(left) if value is _OPEN else value for value in fixed], spec)
        return run(*args, **kwargs)

    return call


def open_compiled(torch: Any, path: Path, device: Any, runs: int, prefix: str) -> Opened:
    """Return a package of AOTInductor, which may run ``runs`` times at once. Raises InvalidArg with the cause."""
    kind = compiled_for(path)
    if kind != "cpu" and not torch.cuda.is_available():
        raise InvalidArg(f"{prefix} is compiled for '{kind}', and PyTorch finds no such device")
    if device is not None and kind != device.type:
        wanted, other = ("KIND_GPU", "KIND_CPU") if device.type != "cpu" else ("KIND_CPU", "KIND_GPU")
        raise InvalidArg(
            f"{prefix} is compiled for '{kind}', and its instance group has {wanted}: compile it for '{device.type}', "
            f"or give it {other}"
        )
    # Without it a package reads past the ends of inputs that are smaller than it was compiled for.
    os.environ["AOTI_RUNTIME_CHECK_INPUTS"] = "1"
    number = -1 if device is None or device.type == "cpu" else device.index
    try:
        with trial.Held(str(path)) as file:
            probe.check(file, number)
            with _alone():
                file.unchanged()
                # The public function does not take the number of runs.
                loader = torch._C._aoti.AOTIModelPackageLoader(file.name, "model", False, runs, number)
                given, made = (torch.utils._pytree.treespec_loads(text) for text in loader.get_call_spec())
            file.unchanged()
    except InvalidArg as error:
        raise InvalidArg(f"{prefix}: {error.message}") from None
    except ServerError:
        raise
    except Exception as error:
        raise InvalidArg(f"{prefix}: {_cause(error)}") from None
    inputs = tuple(Argument((path,)) for path in _paths(torch, given))
    outputs = tuple(Argument(_result_names(key, where, at)) for at, (where, key) in enumerate(_results(torch, made)))
    boxed = loader.boxed_run

    def call(*tensors: Any) -> Any:
        try:
            return boxed(list(tensors))
        except Exception:
            # What fails the package's checks is never let go: without this, the requests' memory with it.
            for tensor in tensors:
                tensor.set_()
            raise

    return Opened(inputs, call, outputs, stateless=False, writes_inputs=True, module=loader)


def compiled_for(path: Path) -> str:
    """Return the type of device that a package was compiled for; it is told before its library is let into the process.

    A package that does not tell is taken for one of the CPU.
    """
    with zipfile.ZipFile(path) as archive:
        for name in archive.namelist():
            if "/aotinductor/" in name and name.endswith("_metadata.json") and archive.getinfo(name).file_size < _LARGE:
                try:
                    value = json.loads(archive.read(name))
                except (ValueError, RecursionError, zipfile.BadZipFile):
                    continue
                if isinstance(value, dict) and isinstance(value.get("AOTI_DEVICE_KEY"), str):
                    return str(value["AOTI_DEVICE_KEY"])[:100]
    return "cpu"


def _by_its_end(path: Path) -> Any:
    # By another name torch takes a package for the form of older versions.
    return str(path) if path.name.endswith(".pt2") else path.open("rb")


def _cause(error: BaseException) -> str:
    while error.__cause__ is not None:
        error = error.__cause__
    return short(error)


def _paths(torch: Any, spec: Any) -> list[str]:
    """Return Triton's names of the arguments in their order."""
    count = spec.num_leaves
    args, kwargs = torch.utils._pytree.tree_unflatten(list(range(count)), spec)
    found = [""] * count
    for name, value in (("ARGS", tuple(args)), ("KWARGS", dict(kwargs))):
        for path, _, leaf in flatten(value, name):
            if isinstance(leaf, int):
                found[leaf] = path
    return found


def _results(torch: Any, spec: Any) -> list[tuple[str, str]]:
    """Return (path, key) of the results in their order."""
    value = torch.utils._pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
    found = [("", "")] * spec.num_leaves
    for path, key, leaf in flatten(value):
        if isinstance(leaf, int):
            found[leaf] = (path, key)
    return found


def _result_names(key: str, path: str, at: int) -> tuple[str, ...]:
    ordinal = f"OUTPUT__{at}"
    return (key or ordinal, path, ordinal)


def _value(spec: Any, values: dict[str, Any]) -> Any:
    return values.get(getattr(spec.arg, "name", ""))


def _argument(torch: Any, prefix: str, names: tuple[str, ...], value: Any) -> Argument:
    if not isinstance(value, torch.Tensor):
        raise Internal(f"{prefix}: '{names[0]}' is no tensor, and only tensors are supported")
    dims = tuple(dim if isinstance(dim, int) else -1 for dim in value.shape)
    return Argument(names, dtype_of(torch, value.dtype), dims)
