"""The backend's three duties: say what a model file contains, open it, hand out instances.

Knows configs and models of PyTorch; nothing of front ends, schedulers or the repository beyond one model's directory.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_fast._native.arrays.pyarrays import ArrayInstance
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.backends.model_file import shown, without_paths
from triton_fast.backends.python.settings import PATHS as PYTHON_PATHS
from triton_fast.backends.pytorch import library, names
from triton_fast.backends.pytorch.call import Call
from triton_fast.backends.pytorch.device import Gpu, give_back, health, settle
from triton_fast.backends.pytorch.exported import open_compiled, open_exported
from triton_fast.backends.pytorch.files import Form, form, is_class, model_path
from triton_fast.backends.pytorch.opened import Opened, tables
from triton_fast.backends.pytorch.script import open_script
from triton_fast.backends.pytorch.settings import PATHS, Settings, for_class, read
from triton_fast.backends.pytorch.tensors import kinds
from triton_fast.backends.values import default_max_batch_size, kind_name, refuse_ragged
from triton_fast.config import ConfigError, ModelTensor, added_specs, check_against_model, complete_from_model
from triton_fast.errors import Internal, Unavailable
from triton_fast.observability import log
from triton_fast.types import TYPES, DataType

if TYPE_CHECKING:
    from triton_fast.backends.python import PythonBackend

RUNNER = Path(__file__).with_name("runner")


class PyTorchBackend(Backend):
    name = "pytorch"
    default_filename = "model.pt"
    decoupled = True
    # A class in model.py runs as a Python model does.
    path_parameters = (*PATHS, *PYTHON_PATHS)

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._classes: PythonBackend | None = None

    def datatypes(self) -> frozenset[DataType]:
        return frozenset(map(DataType, kinds(library.torch()))) | {DataType.STRING}

    @property
    def gpu(self) -> bool:
        return not library.why_no_cuda()

    @property
    def no_gpu(self) -> str:
        return library.why_no_cuda()

    def complete_config(self, context: LoadContext) -> Any:
        config = context.config
        if is_class(context):
            return self._runner().complete_config(context)
        if config.input and config.output:
            return config
        opened = _open(context, library.torch(), read(context), None, 1)
        inputs, outputs = _declared(opened.inputs), _declared(opened.outputs or ())
        if opened.is_dict or not inputs or not outputs:
            raise ConfigError(_incomplete(context, opened))
        added = added_specs(config)
        taken = {spec.name for spec in (*added.inputs, *added.outputs)}
        complete_from_model(
            config, [one for one in inputs if one.name not in taken], [one for one in outputs if one.name not in taken],
            default_max_batch_size=default_max_batch_size(context.settings), given=context.given,
        )  # fmt: skip
        return config

    def load(self, context: LoadContext) -> BackendModel:
        if is_class(context):
            return self._runner().load(for_class(context))
        return TorchModel(context)

    def _runner(self) -> PythonBackend:
        """Classes run as Python models do, in processes of their own."""
        from triton_fast.backends.python import PythonBackend

        with self._lock:
            if self._classes is None:
                self._classes = PythonBackend(self.name, RUNNER)
            return self._classes


class TorchModel(BackendModel):
    """One opened version. Instances on one device share the model where that is safe, or the config says so."""

    def __init__(self, context: LoadContext) -> None:
        self._context = context
        self._settings = read(context)
        self._lock = threading.Lock()
        self._torch = library.torch()
        library.apply(self._torch, self._settings, context.name)
        self._opened: dict[str, Opened] = {}
        self._calls: list[Call] = []
        # Of every device that this version ever used, and of the modules that lay there.
        self._gpus: dict[str, Any] = {}
        self._modules: list[weakref.ref[Any]] = []
        _check_types(context, self._torch)
        group = next(iter(context.config.instance_group), None)
        kind = "KIND_CPU" if group is None else kind_name(group)
        self._runs = sum(max(1, one.count) for one in context.config.instance_group) or 1
        number = group.gpus[0] if group is not None and kind == "KIND_GPU" and group.gpus else 0
        device = self._device(kind, number)
        self._opened[str(device)] = self._new(device)

    def create_instance(self, spec: InstanceSpec) -> ArrayInstance:
        call, batch = self.call(spec), self._context.config.max_batch_size
        gpu = spec.device if call.on_gpu else -1
        return ArrayInstance(call, call.n_inputs, call.n_outputs, batch, spec.name, gpu=gpu)

    def _device(self, kind: str, number: int) -> Any:
        device = library.device(self._torch, kind, number, self._context.name)
        if kind == "KIND_GPU":
            self._context.host.use_gpu(number)
        return device

    def call(self, spec: InstanceSpec) -> Call:
        """Return what an instance calls."""
        context = self._context
        opened = self._model(self._device(spec.kind, spec.device))
        config = context.config
        added = added_specs(config)
        inputs = [(one.name, DataType(one.data_type)) for one in config.input]
        inputs += [(one.name, one.dtype) for one in added.inputs]
        outputs = [(one.name, DataType(one.data_type)) for one in config.output]
        outputs += [(one.name, one.dtype) for one in added.outputs]
        gpu = Gpu(self._torch, opened.device) if _is_gpu(opened.device) else None
        call = Call(
            self._torch, opened, self._settings, model=context.name, inputs=inputs, outputs=outputs,
            positions=_positions(context, opened), batched=config.max_batch_size > 0,
            states=[state.output_name for state in config.sequence_batching.state],
            gpu=gpu, on_lost=context.host.changed,
        )  # fmt: skip
        with self._lock:
            self._calls.append(call)
        return call

    def is_ready(self) -> bool:
        return not any(health(device.index).lost for device in self._gpus.values())

    def close(self) -> None:
        with self._lock:
            calls, self._calls = self._calls, []
            self._opened.clear()
        for call in calls:
            call.release()
        self._give_back()

    def _give_back(self) -> None:
        if self._gpus:
            give_back(self._torch, self._gpus.values(), self._modules)

    def _model(self, device: Any) -> Opened:
        """Return the model on a device: the one that is there, for this instance alone unless it may be shared."""
        with self._lock:
            found = self._opened.get(str(device))
            if found is None:
                found = self._new(device)
            shared = found.stateless if self._settings.sharing is None else self._settings.sharing
            if shared:
                self._opened[str(device)] = found
            else:
                self._opened.pop(str(device), None)
            return found

    def _new(self, device: Any) -> Opened:
        context = self._context
        if _is_gpu(device):
            if reason := health(device.index).lost:
                raise Unavailable(
                    f"unable to load model '{context.name}', after the error '{reason}' the server can not use "
                    f"{device} until it is started again"
                )
            self._gpus[str(device)] = device
        try:
            with without_paths(context):
                opened = _open(
                    context, self._torch, self._settings, device, self._runs if self._settings.sharing else 1
                )
                _check(context, opened, _positions(context, opened))
                if _is_gpu(device):
                    settle(self._torch, device)
        except BaseException:
            self._give_back()
            raise
        if _is_gpu(device) and isinstance(opened.module, self._torch.nn.Module):
            self._modules.append(weakref.ref(opened.module))
        log.verbose(1, f"opened {shown(context, model_path(context))}", model=context.name,
                    intra=self._settings.intra, shared=opened.stateless, device=str(device))  # fmt: skip
        return opened


def _is_gpu(device: Any) -> bool:
    return device is not None and device.type != "cpu"


def _open(context: LoadContext, torch: Any, settings: Settings, device: Any, runs: int) -> Opened:
    path = model_path(context)
    kind = form(context, path)
    prefix = f"unable to load model '{context.name}', '{shown(context, path)}'"
    if kind is Form.SCRIPT:
        opened = open_script(torch, path, device, prefix)
        if settings.compile is not None:
            log.warning("torch.compile does not take TorchScript: its parameters have no effect", model=context.name)
    elif kind is Form.EXPORTED:
        opened = open_exported(torch, path, device, settings, prefix)
    else:
        opened = open_compiled(torch, path, device, runs, prefix)
    opened.device = device
    if settings.sharing:
        opened.stateless = True
    return opened


def _positions(context: LoadContext, opened: Opened) -> Sequence[int]:
    """Return for each input, with those that the scheduler adds, the position of its argument."""
    config = context.config
    given = [one.name for one in config.input] + [one.name for one in added_specs(config).inputs]
    if opened.is_dict:
        return range(len(given))
    least = sum(argument.needed for argument in opened.inputs)
    if not least <= len(given) <= len(opened.inputs):
        raise ConfigError(
            f"unable to load model '{context.name}', configuration expects {len(given)} inputs, model provides "
            f"{len(opened.inputs)}",
            hint=f"its arguments are {_listed([argument.names[0] for argument in opened.inputs])}",
        )
    return names.inputs(
        context.name, given, tables(opened.inputs), count=len(opened.inputs),
        states=[state.input_name for state in config.sequence_batching.state],
    )  # fmt: skip


def _check(context: LoadContext, opened: Opened, positions: Sequence[int]) -> None:
    """Refuse a config that does not fit what the model declares."""
    config = context.config
    prefix = f"unable to load model '{context.name}'"
    if opened.is_dict:
        if any(DataType(one.data_type) == DataType.STRING for one in config.input):
            raise ConfigError(f"{prefix}, forward takes a dict of tensors: an input can not be TYPE_STRING")
        return
    for one, position in zip(config.input, positions, strict=False):
        texts = DataType(one.data_type) == DataType.STRING
        if texts != opened.inputs[position].texts:
            own = "List[str]" if opened.inputs[position].texts else "Tensor"
            raise ConfigError(
                f"{prefix}, configuration expects datatype {TYPES[DataType(one.data_type)].config} for input "
                f"'{one.name}', model provides {own}"
            )
    if opened.outputs is None:
        return
    wanted = [one.name for one in config.output] + [one.name for one in added_specs(config).outputs]
    order = names.by_name(wanted, tables(opened.outputs)) or names.outputs(
        context.name, wanted, [state.output_name for state in config.sequence_batching.state]
    )
    for name, at in zip(wanted, order, strict=True):
        if at >= len(opened.outputs):
            raise ConfigError(
                f"{prefix}, The output {name} in the model configuration refers to an output index which doesn't "
                f"exist. This model has {len(opened.outputs)} outputs"
            )
        if opened.outputs[at].constant:
            raise ConfigError(
                f"{prefix}, the model returns {opened.outputs[at].constant} as output '{name}', which is no tensor",
                hint=f"its tensors are {_listed([one.names[0] for one in opened.outputs if not one.constant])}",
            )
    given = [one.name for one in config.input] + [one.name for one in added_specs(config).inputs]
    inputs = [
        ModelTensor(name, opened.inputs[at].dtype, opened.inputs[at].dims or ())
        for name, at in zip(given, positions, strict=True)
    ]
    outputs = [
        ModelTensor(name, opened.outputs[at].dtype, opened.outputs[at].dims or ())
        for name, at in zip(wanted, order, strict=True)
    ]
    if all(argument.dims is not None for argument in (*opened.inputs, *opened.outputs)):
        check_against_model(config, inputs, outputs)


def _check_types(context: LoadContext, torch: Any) -> None:
    config = context.config
    known = kinds(torch)
    for side, tensors in (("input", config.input), ("output", config.output)):
        if not tensors:
            raise Internal(f"model configuration must contain at least one {side}, none were specified.")
        for one in tensors:
            dims = one.reshape.shape if one.HasField("reshape") else one.dims
            kind = DataType(one.data_type)
            if kind == DataType.STRING:
                if len(dims) + (config.max_batch_size > 0) > 1:
                    raise Internal(
                        f"Triton only supports 1 dimensional List of String as {side} for '{one.name}' for model "
                        f"'{context.name}'"
                    )
            elif int(kind) not in known:
                raise Internal(
                    f"unsupported datatype {TYPES[kind].config if kind in TYPES else 'TYPE_INVALID'} for {side} "
                    f"'{one.name}' for model '{context.name}'"
                )
    refuse_ragged(config)


def _declared(arguments: Sequence[Any]) -> list[ModelTensor]:
    """Return the tensors as far as the model tells all of each; none where it does not."""
    if any(one.dims is None for one in arguments):
        return []
    return [ModelTensor(one.names[0], one.dtype, one.dims) for one in arguments if not one.constant]


def _incomplete(context: LoadContext, opened: Opened) -> str:
    """Say what a config must have where the model does not tell."""
    arguments = [argument.names[0] for argument in opened.inputs]
    takes = f"its inputs are {_listed(arguments)}"
    if opened.is_dict:
        takes = "forward takes a dict of tensors by their names"
    tensors = [one.names[0] for one in opened.outputs or () if not one.constant]
    made = f", its outputs {_listed(tensors)}" if opened.outputs else ""
    return (
        f"model '{context.name}' does not tell the datatypes and shapes of its tensors: write input and output into "
        f"config.pbtxt; {takes}{made}"
    )


def _listed(found: Sequence[str]) -> str:
    return ", ".join(f"'{name}'" for name in found) or "none"
