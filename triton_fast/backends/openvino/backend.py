"""The backend's three duties: say what a model file contains, open it, hand out instances.

Knows configs and OpenVINO models; nothing of front ends, schedulers or the repository beyond one model's directory.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from triton_fast._native.openvino import capi
from triton_fast._native.openvino.instance import OvInstance
from triton_fast._native.openvino.model import Compiled, Model
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.backends.model_file import shown
from triton_fast.backends.openvino import files, library
from triton_fast.backends.openvino.plan import PATHS, ModelPlan, make_plan
from triton_fast.backends.values import default_max_batch_size, refuse_ragged
from triton_fast.config import ModelTensor, added_specs, check_against_model, complete_from_model
from triton_fast.errors import InvalidArg, ServerError, Unavailable, Unsupported
from triton_fast.observability import log
from triton_fast.types import TYPES, DataType

if TYPE_CHECKING:
    from triton_fast._native.openvino.model import TensorRow

NOT_SERVED = {DataType.STRING}
PROBE = 3  # a batch size that is no model's constant but by chance


class OpenVinoBackend(Backend):
    name = "openvino"
    default_filename = files.DEFAULT
    decoupled = True
    path_parameters = PATHS

    def __init__(self) -> None:
        self.version = library.open_library()

    def datatypes(self) -> frozenset[DataType]:
        return frozenset(map(DataType, capi.element_types())) - NOT_SERVED

    def complete_config(self, context: LoadContext) -> Any:
        config = context.config
        if config.output and config.input:
            return config
        plan = make_plan(context)
        model = files.read(context, plan)
        default = default_max_batch_size(
            context.settings, refused="parameter '{key}' must be a whole number, got '{text}'"
        )
        if config.max_batch_size > 0 or plan.reshape:
            shape(context, plan, model)
        added = added_specs(config)
        names = {spec.name for spec in (*added.inputs, *added.outputs)}
        complete_from_model(
            config,
            [tensor for tensor in tensors(context, model.inputs(), plan) if tensor.name not in names],
            [tensor for tensor in tensors(context, model.outputs(), plan) if tensor.name not in names],
            default_max_batch_size=default, given=context.given,
        )  # fmt: skip
        return config

    def load(self, context: LoadContext) -> BackendModel:
        return OpenVinoModel(context, make_plan(context))


class OpenVinoModel(BackendModel):
    """One opened version. Its instances share one compiled model."""

    def __init__(self, context: LoadContext, plan: ModelPlan) -> None:
        self._context = context
        self._plan = plan
        refuse_ragged(context.config)
        model = files.read(context, plan)
        self._batched = shape(context, plan, model)
        self._inputs = named(model.inputs())
        self._outputs = named(model.outputs())
        config = context.config
        wanted = {tensor.name for tensor in config.output} | {spec.name for spec in added_specs(config).outputs}
        check_against_model(
            config, tensors(context, model.inputs(), plan), tensors(context, model.outputs(), plan, wanted)
        )
        self._compiled: Compiled | None = self._compile(model)

    def create_instance(self, spec: InstanceSpec) -> OvInstance:
        config, plan = self._context.config, self._plan
        compiled = self._compiled
        assert compiled is not None
        added = added_specs(config)
        batched = config.max_batch_size > 0
        with files.clean(self._context):
            return OvInstance(
                spec.name,
                compiled,
                config.max_batch_size,
                [self._inputs[tensor.name] for tensor in (*config.input, *added.inputs)],
                [
                    (self._outputs[tensor.name], not batched or tensor.name in self._batched)
                    for tensor in (*config.output, *added.outputs)
                ],
                fixed_batch=config.max_batch_size if plan.static_batch else 0,
                pad=plan.pad,
                direct=plan.device == "CPU" and int(compiled.property("INFERENCE_NUM_THREADS")) > 1,
            )

    def close(self) -> None:
        self._compiled = None

    def _compile(self, model: Model) -> Compiled:
        context, plan = self._context, self._plan
        with files.clean(context):
            need_device(context, plan.device)
            made = model.compile(plan.device, list(plan.properties.items()))
        log.verbose(
            1, f"opened {shown(context, files.model_path(context))}", model=context.name, device=plan.device,
            properties=",".join(f"{key}={value}" for key, value in plan.properties.items()),
        )  # fmt: skip
        return made


def need_device(context: LoadContext, device: str) -> None:
    """Raise Unavailable when a plain device (not AUTO, HETERO, ...) is not there."""
    there = library.core().devices()
    kind = device.partition(".")[0]
    if kind in ("CPU", "GPU", "NPU") and not any(name == device or name.partition(".")[0] == device for name in there):
        raise Unavailable(
            f"unable to load model '{context.name}', device '{device}' is requested but OpenVINO finds only "
            f"{', '.join(there) or 'none'}"
        )


def named(rows: tuple[TensorRow, ...]) -> dict[str, tuple[str, int, int, int, tuple[int, ...]]]:
    return {
        name: (name, port, dtype, element, dims or ())
        for port, (name, dtype, element, dims) in enumerate(rows)
        if name and dims is not None
    }


def shape(context: LoadContext, plan: ModelPlan, model: Model) -> frozenset[str]:
    """Give the model's inputs the shapes that the config asks for; return the outputs with a row per batch item.

    With batching every input's first dimension varies (``SKIP_OV_DYNAMIC_BATCHSIZE``: is max_batch_size). With
    ``RESHAPE_IO_LAYERS`` the others are those of the config.
    """
    config = context.config
    given = {tensor.name: tensor for tensor in config.input} if plan.reshape else {}
    batch = config.max_batch_size
    rows = model.inputs()
    if batch == 0 and not given:
        return frozenset()
    shapes: dict[int, tuple[int, ...]] = {}
    for port, (name, _, _, dims) in enumerate(rows):
        made = _asked(given[name], dims, batched=batch > 0) if name in given else dims
        if made is None or (batch > 0 and not made):
            raise InvalidArg(
                f"unable to load model '{context.name}', max_batch_size is {batch} but input '{name}' has no first "
                "dimension to batch over"
                if made is not None
                else f"unable to load model '{context.name}', input '{name}' has any number of dimensions: write its "
                "dims and set RESHAPE_IO_LAYERS to YES"
            )
        shapes[port] = made
    with files.clean(context):
        found: frozenset[str] = frozenset()
        if batch > 0:
            found = _probe(model, shapes)
            first = batch if plan.static_batch else -1
            shapes = {port: (first, *dims[1:]) for port, dims in shapes.items()}
        now = [row[3] for row in model.inputs()]
        changed = [(port, dims) for port, dims in shapes.items() if dims != now[port]]
        if changed:
            model.reshape(changed)
        return found


def _asked(tensor: Any, dims: tuple[int, ...] | None, *, batched: bool) -> tuple[int, ...]:
    wanted = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else tuple(tensor.dims)
    return ((dims[0] if dims else -1), *wanted) if batched else wanted


def _probe(model: Model, shapes: Mapping[int, tuple[int, ...]]) -> frozenset[str]:
    """Outputs whose first dimension follows that of the inputs: their memory can be made ready before a run."""
    try:
        model.reshape([(port, (PROBE, *dims[1:])) for port, dims in shapes.items()])
    except ServerError:
        return frozenset()  # a model may refuse some sizes: nothing is known then
    return frozenset(name for name, _, _, dims in model.outputs() if name and dims and dims[0] == PROBE)


def tensors(
    context: LoadContext, rows: Sequence[TensorRow], plan: ModelPlan, wanted: Collection[str] | None = None
) -> list[ModelTensor]:
    """Return what the model declares; refuse what can not be served, of outputs only the wanted ones."""
    found = []
    for name, dtype, element, dims in rows:
        if wanted is not None and name not in wanted:
            if name and dims is not None:
                found.append(ModelTensor(name, DataType(dtype), dims))
            continue
        reason = ""
        if not name:
            name = "(no name)"  # noqa: PLW2901
            reason = "it has no name to ask for"
        elif dims is None:
            reason = "it has any number of dimensions"
        elif dtype in NOT_SERVED:
            reason = "OpenVINO's C API does not give out the elements of string tensors"
        elif dtype not in TYPES:
            reason = f"its element type (number {element} of OpenVINO) has no counterpart in the v2 protocol"
        if reason:
            raise Unsupported(f"unable to load model '{context.name}', tensor '{name}' can not be served: {reason}")
        if plan.static_batch and dims and dims[0] == context.config.max_batch_size:
            dims = (-1, *dims[1:])  # noqa: PLW2901
        found.append(ModelTensor(name, DataType(dtype), dims or ()))
    return found
