"""The backend's three duties: say what a plan contains, open it, hand out instances.

Knows configs and engines; nothing of front ends, schedulers or the repository beyond one model's directory.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from triton_fast._native.cuda import driver
from triton_fast._native.tensorrt.instance import TrtInstance
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.backends.model_file import shown, without_paths
from triton_fast.backends.tensorrt import check, files, library
from triton_fast.backends.tensorrt.engine import DATATYPES, Engine, Profile, Range, Tensor, open_engine
from triton_fast.backends.tensorrt.plan import RunPlan, make_plan
from triton_fast.backends.tensorrt.rooms import make_room
from triton_fast.backends.values import kind_name
from triton_fast.config import added_specs
from triton_fast.errors import Internal, InvalidArg, ServerError, Unavailable
from triton_fast.observability import log
from triton_fast.types import DataType

# Memory of an output taken before anybody asked for it; one that may be larger grows when it is.
AHEAD = 1 << 30


class TensorRtBackend(Backend):
    name = "tensorrt"
    default_filename = files.DEFAULT
    decoupled = True

    def __init__(self) -> None:
        self.version = library.version()

    def datatypes(self) -> frozenset[DataType]:
        return frozenset(DATATYPES.values())

    @property
    def gpu(self) -> bool:
        return True

    def complete_config(self, context: LoadContext) -> Any:
        config = context.config
        groups = _groups(config)
        if not groups or groups[0].kind != "KIND_GPU":
            return config  # load says that it can not be served
        with without_paths(context):
            engine = _open(context, make_plan(context, complete=False), groups[0].devices[0], groups[0].dla_core)
            check.complete(config, engine, context.given)
        return config

    def load(self, context: LoadContext) -> BackendModel:
        return TensorRtModel(context, make_plan(context))


class _Group(NamedTuple):
    kind: str
    devices: list[int]
    profiles: list[int]
    dla_core: int


class _Place(NamedTuple):
    """A tensor of the engine in the place that the config gives it; ``dims`` as the config has them."""

    tensor: Tensor
    dims: tuple[int, ...]


class TensorRtModel(BackendModel):
    """One opened version. Its instances on one device share an engine: weights are there once."""

    def __init__(self, context: LoadContext, plan: RunPlan) -> None:
        self._context = context
        self._plan = plan
        self._lock = threading.Lock()
        self._engines: dict[tuple[int, int], Engine] = {}
        self._instances: list[TrtInstance] = []
        self._used: set[tuple[int, int]] = set()
        config = context.config
        for group in _groups(config):
            if group.kind != "KIND_GPU":
                raise InvalidArg(f"unable to load model '{config.name}', TensorRT backend supports only GPU device")
            with without_paths(context):
                engine = self._engine(group.devices[0], group.dla_core)
                check.check(config, engine, [_profile(engine, index, config.name) for index in group.profiles])
        self._dims = {
            entry.name: tuple(entry.reshape.shape) if entry.HasField("reshape") else tuple(entry.dims)
            for entry in (*config.input, *config.output)
        }
        self._dims |= {spec.name: spec.dims for part in added_specs(config) for spec in part}

    def create_instance(self, spec: InstanceSpec) -> TrtInstance:
        core = _dla_core([number for _, number in spec.secondary_devices], spec.name, self._context.name)
        key = (spec.device, core)
        with without_paths(self._context):
            engine = self._engine(*key)
            with self._lock:
                is_first = key not in self._used
                self._used.add(key)
            try:
                instance = self._build(spec, engine)
            except ServerError:
                if is_first:
                    raise
                # Some engines give a profile to one context only.
                instance = self._build(spec, _open(self._context, self._plan, *key))
        with self._lock:
            self._instances.append(instance)
        return instance

    def close(self) -> None:
        with self._lock:
            instances, self._instances = self._instances, []
            for instance in instances:
                instance.close()
            while self._engines:
                (device, _), engine = self._engines.popitem()
                driver.enter(device)  # engines are freed on the current device
                del engine

    def _engine(self, device: int, dla_core: int) -> Engine:
        with self._lock:
            found = self._engines.get((device, dla_core))
            if found is None:
                self._context.host.use_gpu(device)
                found = self._engines[device, dla_core] = _open(self._context, self._plan, device, dla_core)
            return found

    def _build(self, spec: InstanceSpec, engine: Engine) -> TrtInstance:
        config, plan = self._context.config, self._plan
        known = {tensor.name: tensor for tensor in engine.tensors}
        added = added_specs(config)
        inputs = [_Place(known[one.name], self._dims[one.name]) for one in (*config.input, *added.inputs)]
        outputs = [known[one.name] for one in (*config.output, *added.outputs)]
        numbers = sorted({int(name) for name in spec.profiles}) or [0]
        profiles = [_profile(engine, index, spec.name) for index in numbers]
        driver.enter(spec.device)
        instance = TrtInstance(
            spec.name,
            spec.device,
            config.max_batch_size,
            [self._input(place, profiles) for place in inputs],
            [_output(tensor) for tensor in outputs],
            engine.logger.complaints,
            warn=partial(log.warning, model=config.name),
            graphs=[(graph.rows, graph.shapes) for graph in plan.graphs],
            priority=plan.priority,
            busy_wait=plan.busy_wait,
        )
        try:
            self._fill(instance, engine, profiles, inputs, outputs)
        except BaseException as error:
            instance.close()
            if isinstance(error, ServerError):
                raise
            raise Internal(f"unable to make instance {spec.name}: {type(error).__name__}: {error}") from None
        names = "".join(f" {index}[{index}];" for index in numbers) if spec.profiles else " default[0];"
        log.info(
            f"Created instance {spec.name} on GPU {spec.device} with stream priority {plan.priority} and optimization "
            f"profile{names}",
            model=config.name,
        )
        return instance

    def _fill(
        self, instance: TrtInstance, engine: Engine, profiles: Sequence[Profile], inputs: Sequence[_Place],
        outputs: Sequence[Tensor],
    ) -> None:  # fmt: skip
        """Give an instance a context for each profile, and the memory that the largest shapes need."""
        sizes = [0] * len(outputs)
        unknown: set[int] = set()
        contexts = []
        for profile in profiles:
            context = engine.new_context(self._plan.strategy)
            contexts.append(context)
            if context.active_optimization_profile != profile.index:
                if not context.set_optimization_profile_async(profile.index, instance.stream):
                    raise Internal(
                        f"Can not set optimization profile {profile.index} for {instance.name}: "
                        f"{engine.logger.complaints()}"
                    )
                instance.synchronize()
            for i, place in enumerate(inputs):
                if not self._tell_largest(instance, context, profile, i, place):
                    raise Internal(
                        f"trt failed to set binding dimension for input '{place.tensor.name}' for {instance.name}: "
                        f"{engine.logger.complaints()}"
                    )
            for i, tensor in enumerate(outputs):
                dims = tuple(context.get_tensor_shape(tensor.name))
                if -1 in dims and not tensor.on_host:
                    unknown.add(i)
                else:
                    sizes[i] = max(sizes[i], self._output_size(context, tensor, dims))
            ranges = [_of(profile, place.tensor) for place in inputs]
            instance.add_profile(
                context,
                profile.index,
                [number for one in ranges for number in one.low],
                [number for one in ranges for number in one.best],
                [number for one in ranges for number in one.high],
            )
        rooms = [make_room(instance, i) if i in unknown else None for i in range(len(outputs))]
        instance.allocate(sizes, rooms)
        for context in contexts:
            for tensor, room in zip(outputs, rooms, strict=True):
                if room is not None and not context.set_output_allocator(tensor.name, room):
                    raise Internal(f"unable to set the output allocator of '{tensor.name}'")

    def _tell_largest(self, instance: TrtInstance, context: Any, profile: Profile, i: int, place: _Place) -> bool:
        name = place.tensor.name
        if not place.tensor.is_shape:
            return bool(context.set_input_shape(name, self._largest(place, profile)))
        values = list(profile.values[name].high)
        batch = self._context.config.max_batch_size
        if batch > 0:
            values[0] = min(values[0], batch)
        instance.set_values(i, values)
        return bool(context.set_tensor_address(name, instance.input_address(i)))

    def _largest(self, place: _Place, profile: Profile) -> tuple[int, ...]:
        return check.largest_dims(self._context.config, place.dims, profile.shapes[place.tensor.name])

    def _input(self, place: _Place, profiles: Sequence[Profile]) -> tuple[str, int, int, bool, int, int]:
        tensor, config = place.tensor, self._context.config
        if tensor.is_shape:
            count = len(profiles[0].values[tensor.name].high)
            size = check.size_of(config, tensor.name, tensor.dtype, (count,))
            return tensor.name, int(tensor.dtype), len(tensor.dims), True, count, size
        size = max(check.size_of(config, tensor.name, tensor.dtype, self._largest(place, one)) for one in profiles)
        return tensor.name, int(tensor.dtype), len(tensor.dims), False, 0, size

    def _output_size(self, context: Any, tensor: Tensor, dims: tuple[int, ...]) -> int:
        config = self._context.config
        if tensor.on_host:
            return check.size_of(config, tensor.name, DataType.INT64, tensor.dims)
        # TensorRT may write more than the shape needs.
        size = max(
            check.size_of(config, tensor.name, tensor.dtype, dims), int(context.get_max_output_size(tensor.name))
        )
        return size if size <= AHEAD else 0


def _output(tensor: Tensor) -> tuple[str, int, int, bool, int, int]:
    count = 0
    if tensor.on_host:
        count = tensor.dims[0] if tensor.dims else 1
    return tensor.name, int(tensor.dtype), len(tensor.dims), tensor.on_host, count, 0


def _of(profile: Profile, tensor: Tensor) -> Range:
    return profile.values[tensor.name] if tensor.is_shape else profile.shapes[tensor.name]


def _profile(engine: Engine, index: int, name: str) -> Profile:
    if index >= engine.profiles:
        raise InvalidArg(
            f"Can not set the specified optimization profile {index}[{index}] for {name}. Expected optimization "
            f"profile index range 0-{engine.profiles - 1}"
        )
    return engine.profile(index)


def _groups(config: Any) -> list[_Group]:
    return [
        _Group(
            kind_name(group),
            list(group.gpus) or [0],
            check.profile_numbers(group),
            _dla_core([one.device_id for one in group.secondary_devices], group.name, config.name),
        )
        for group in config.instance_group
    ]


def _dla_core(secondary: Sequence[int], instance: str, model: str) -> int:
    if len(secondary) > 1:
        raise InvalidArg(f"{instance} of model {model} must have either zero or or one secondary devices")
    return secondary[0] if secondary else -1


def _open(context: LoadContext, plan: RunPlan, device: int, dla_core: int) -> Engine:
    driver.open_driver()
    found = next((one for one in driver.devices() if one.id == device), None)
    if found is None:
        raise Unavailable(f"unable to load model '{context.name}', there is no GPU {device}")
    path = files.plan_path(context, found.capability)
    engine = open_engine(context.name, files.read(context, path), device, dla_core, plan)
    log.verbose(1, f"opened {shown(context, path)}", model=context.name, device=device, profiles=engine.profiles)
    return engine
