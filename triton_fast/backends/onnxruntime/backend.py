"""The backend's three duties: say what a model file contains, open it, hand out instances.

Knows configs and ORT sessions; nothing of front ends, schedulers or the repository beyond one model's directory.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from triton_fast._native.ort import capi
from triton_fast._native.ort.instance import OrtInstance
from triton_fast._native.ort.session import TYPE_OF, Session, SessionOptions
from triton_fast.backends.base import Backend, BackendModel, InstanceSpec, LoadContext
from triton_fast.backends.model_file import check_file, shown, without_paths
from triton_fast.backends.onnxruntime import library, providers
from triton_fast.backends.onnxruntime.paths import PATHS
from triton_fast.backends.onnxruntime.plan import SessionPlan, build, make_plan
from triton_fast.backends.values import default_max_batch_size, kind_name
from triton_fast.config import IoSpec, ModelTensor, added_specs, check_against_model, complete_from_model
from triton_fast.errors import Internal, Unsupported
from triton_fast.observability import log
from triton_fast.types import DataType

if TYPE_CHECKING:
    from triton_fast._native.ort.session import TensorRow

Key = tuple[bool, int]  # on a GPU, and which


class OnnxRuntimeBackend(Backend):
    name = "onnxruntime"
    platform = "onnxruntime_onnx"
    default_filename = "model.onnx"
    decoupled = True
    makes_batch_tensors = True
    path_parameters = PATHS

    def __init__(self) -> None:
        self.version = library.open_library()

    def datatypes(self) -> frozenset[DataType]:
        return frozenset(map(DataType, TYPE_OF.values()))

    @property
    def gpu(self) -> bool:
        """Whether the installed ONNX Runtime can use a GPU here; else KIND_AUTO means the CPU."""
        return not providers.why_not("cuda")

    @property
    def no_gpu(self) -> str:
        """Why KIND_GPU is refused; empty where it is not."""
        return providers.why_not("cuda")

    def complete_config(self, context: LoadContext) -> Any:
        config = context.config
        if config.output and (config.input or config.batch_input):
            return config
        library.prepare(context.settings)
        default = default_max_batch_size(context.settings)
        plan = make_plan(context, available=capi.providers(), global_pool=False)
        # Only names, types and shapes are wanted: no optimisation, no thread pool.
        options = SessionOptions()
        options.log(context.name, 4)
        options.graph_level(0)
        options.threads(1, 1)
        for path in plan.libraries:
            options.custom_ops(path)
        try:
            session = _open(context, options)
        except Internal:
            # Some datatypes have kernels for GPUs only.
            gpu, device = _first_place(config)
            if not gpu:
                raise
            session = _open(context, _options(context, plan, gpu, device))
        # What the sequence batcher adds is not the clients'.
        added = added_specs(config)
        complete_from_model(
            config, _without(session.inputs, added.inputs), _without(session.outputs, added.outputs),
            default_max_batch_size=default, given=context.given,
        )  # fmt: skip
        return config

    def load(self, context: LoadContext) -> BackendModel:
        pool = library.prepare(context.settings)
        plan = make_plan(context, available=capi.providers(), global_pool=pool)
        return OnnxModel(context, plan)


class OnnxModel(BackendModel):
    """One opened version. Sessions are made when an instance needs one; see ``SessionPlan.shareable``."""

    def __init__(self, context: LoadContext, plan: SessionPlan) -> None:
        self._context = context
        self._plan = plan
        self._lock = threading.Lock()
        self._sessions: dict[Key, Session] = {}
        first = _first_place(context.config)
        self._sessions[first] = self._new_session(first)

    def create_instance(self, spec: InstanceSpec) -> OrtInstance:
        gpu = spec.kind == "KIND_GPU"
        session = self._session((gpu, spec.device if gpu else 0))
        config = self._context.config
        inputs = {row[0]: row for row in (*session.initializers, *session.inputs)}
        outputs = {row[0]: row for row in session.outputs}
        lead = _lead_symbol(session, batched=config.max_batch_size > 0)
        added = added_specs(config)
        with _clean(self._context):
            return OrtInstance(
                spec.name,
                session,
                config.max_batch_size,
                [inputs[tensor.name][:4] for tensor in (*config.input, *added.inputs)],
                [
                    (outputs[tensor.name][:4], lead is None or outputs[tensor.name][4][:1] == (lead,))
                    for tensor in (*config.output, *added.outputs)
                ],
                self._plan.run_entries(gpu=gpu, device=spec.device),
                batch_inputs=_batch_inputs(config, inputs),
                cuts=_cuts(config),
                device=spec.device if gpu else -1,
            )

    def close(self) -> None:
        with self._lock:
            self._sessions.clear()
        library.flush_log()

    def _session(self, key: Key) -> Session:
        with self._lock:
            shareable = self._plan.shareable and not key[0]
            found = self._sessions.get(key) if shareable else self._sessions.pop(key, None)
            if found is None:
                found = self._new_session(key)
                if shareable:
                    self._sessions[key] = found
            return found

    def _new_session(self, key: Key) -> Session:
        context, (gpu, device) = self._context, key
        session = _open(context, _options(context, self._plan, gpu, device))
        check_against_model(
            context.config, _tensors(session.inputs), _tensors(session.outputs),
            optional=_tensors(session.initializers),
        )  # fmt: skip
        log.verbose(
            1, f"opened {shown(context, _model_path(context))}", model=context.name, intra=self._plan.intra,
            providers=",".join(provider.name for provider in self._plan.providers if gpu or not provider.gpu) or "CPU",
            device=device if gpu else "-",
        )  # fmt: skip
        return session


def _first_place(config: Any) -> Key:
    """Return where the first instance is to run."""
    groups = config.instance_group
    gpu = bool(groups) and kind_name(groups[0]) == "KIND_GPU"
    return gpu, groups[0].gpus[0] if gpu and groups[0].gpus else 0


def _options(context: LoadContext, plan: SessionPlan, gpu: bool, device: int) -> SessionOptions:
    """Return the options of a session; on a GPU, open what its providers need. Raises Unsupported with what lacks."""
    if gpu:
        for name, (_, appended, _file) in providers.GPU.items():
            wanted = any(provider.name == appended for provider in plan.providers)
            reason = providers.why_not(name) if wanted else ""
            if reason:
                what = "KIND_GPU" if name == "cuda" else f"Execution Accelerator '{name}'"
                raise Unsupported(f"unable to load model '{context.name}', {what} is requested but {reason}")
        context.host.use_gpu(device)
    with _clean(context):
        return build(plan, gpu=gpu, device=device)


def _batch_inputs(config: Any, rows: Mapping[str, TensorRow]) -> list[tuple[str, int, int, int, int]]:
    """Return what ``OrtInstance`` makes of the shapes of a batch; ``rows``: the model's inputs by name."""
    positions = {tensor.name: number for number, tensor in enumerate(config.input)}
    return [
        (target, item.kind, positions[item.source_input[0]], item.data_type, rows[target][2])
        for item in config.batch_input
        for target in item.target_name
    ]


def _cuts(config: Any) -> list[tuple[int, int]]:
    """Return (position of the output, position of the input whose shapes cut it)."""
    inputs = {tensor.name: number for number, tensor in enumerate(config.input)}
    outputs = {tensor.name: number for number, tensor in enumerate(config.output)}
    return [
        (outputs[target], inputs[item.source_input[0]]) for item in config.batch_output for target in item.target_name
    ]


def _lead_symbol(session: Session, *, batched: bool) -> str | None:
    """Return the name all inputs give their first dimension; '?' if they disagree, None without batching.

    An output that gives its first dimension the same name has one row per batch item, so its memory can be made ready
    before the run.
    """
    if not batched:
        return None
    names = {row[4][0] for row in session.inputs if row[4]}
    name = names.pop() if len(names) == 1 else ""
    return name or "?"


def _tensors(rows: tuple[TensorRow, ...]) -> list[ModelTensor]:
    return [ModelTensor(row[0], DataType(row[1]), row[3]) for row in rows]


def _without(rows: tuple[TensorRow, ...], added: Sequence[IoSpec]) -> list[ModelTensor]:
    names = {spec.name for spec in added}
    return [tensor for tensor in _tensors(rows) if tensor.name not in names]


def _model_path(context: LoadContext) -> Path:
    """Return the model file: the configured name, or model.onnx inside it where that is a directory."""
    path = context.version_dir / (context.config.default_model_filename or OnnxRuntimeBackend.default_filename)
    return path / "model.onnx" if path.is_dir() else path


def _open(context: LoadContext, options: SessionOptions) -> Session:
    path = _model_path(context)
    check_file(context, path)
    with _clean(context):
        return Session(str(path), options)


@contextmanager
def _clean(context: LoadContext) -> Iterator[None]:
    """Keep absolute paths out of the errors of ORT, and its log lines in front of them."""
    try:
        with without_paths(context):
            yield
    finally:
        library.flush_log()
