"""Whether a config can be served, as far as config and model directory tell: identity, tensors, groups, warm-up.

Texts are Triton's; a hint in brackets may follow. Schedulers are in validate_scheduling.py, the comparison with
the model's own tensors in complete.py. Source: spec/model_config.md sections 3, 4, 8-11, spec/metrics.md section 3.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from triton_fast import protos
from triton_fast.config import paths
from triton_fast.config.defaults import ENSEMBLE, KINDS, TENSORRT_PLATFORM
from triton_fast.config.errors import ConfigError, did_you_mean, shape_text
from triton_fast.config.validate_scheduling import check_scheduling
from triton_fast.errors import Internal
from triton_fast.types import TYPES, DataType

INT64_MAX = 2**63 - 1
# Threads, not a Triton limit: a config that asks for a million instances must not take the server down.
MAX_INSTANCES = 1024
MAX_BUCKETS = 512   # of a histogram, likewise
MAX_RANK = 64   # as core/model.pxd
_PLATFORMS: dict[str, tuple[str, ...]] = {}
for _row in KINDS:
    if _row.platform:
        _PLATFORMS[_row.backend] = (*_PLATFORMS.get(_row.backend, ()), _row.platform)


def validate(
    config: Any,
    model_dir: Path,
    *,
    name: str = "",
    gpus: Sequence[int] = (),
    on_gpu: bool = True,
    no_gpu: str = "",
    io: bool = True,
) -> None:
    """Check a normalized config.

    Parameters
    ----------
    config
        After `normalize`.
    model_dir
        Its directory; file names in the config may not lead out of it.
    name
        The model's name where it is not the directory's.
    gpus
        Ids of the usable GPUs.
    on_gpu
        Whether the model's backend can use them.
    no_gpu
        Why not, where it can be said.
    io
        False while inputs and outputs may still come from the model (auto-complete): they are checked later.

    Raises
    ------
    ConfigError
        With Triton's text.
    """
    for check in parts(config, model_dir, name=name, gpus=gpus, on_gpu=on_gpu, no_gpu=no_gpu, io=io):
        check()


def parts(
    config: Any,
    model_dir: Path,
    *,
    name: str = "",
    gpus: Sequence[int] = (),
    on_gpu: bool = True,
    no_gpu: str = "",
    io: bool = True,
) -> list[Callable[[], None]]:
    """Return the checks of `validate`, in its order, so that all faults of a config can be told and not only the first.

    Each finds at most one.
    """
    checks: list[Callable[[], None]] = [
        partial(_check_identity, config, name or model_dir.name), partial(check_scheduling, config),
        partial(_check_cache, config), partial(_check_metrics, config),
    ]  # fmt: skip
    if io:
        checks.append(partial(check_tensors, config))
    checks += [partial(check_groups, config, gpus, on_gpu=on_gpu, no_gpu=no_gpu), partial(_check_warmup, config)]
    return [*checks, partial(paths.check_files, config, model_dir)]


def _check_identity(config: Any, expected: str) -> None:
    name, backend, platform = config.name, config.backend, config.platform
    if not name:
        raise ConfigError("model configuration must specify 'name'")
    if not backend and platform != ENSEMBLE:
        raise ConfigError(f"unexpected platform type '{platform}' for {name}", hint=_platform_hint(config))
    if backend and platform == ENSEMBLE:
        raise ConfigError(f"Ensemble model '{name}' must have platform type '{ENSEMBLE}' and empty backend type")
    known = _PLATFORMS.get(backend)
    if known and platform not in known:
        raise ConfigError(
            f"unexpected 'platform' and 'backend' pair, got:{platform}, {backend}",
            hint=f"for backend '{backend}' the platform is {' or '.join(known)}, or leave platform out",
        )
    if config.max_batch_size < 0:
        raise ConfigError(
            f"'max_batch_size' must be non-negative value for {name}",
            hint=f"got {config.max_batch_size}; 0 means no batching",
        )
    if not config.HasField("version_policy"):
        raise ConfigError(f"must specify 'version policy' for {name}")
    if name != expected:
        raise ConfigError(
            f"unexpected directory name '{expected}' for model '{name}', directory name must equal model name",
            hint=_name_hint(name, expected),
        )


def _platform_hint(config: Any) -> str:
    platforms = [row.platform for row in KINDS if row.platform] + [ENSEMBLE]
    if config.platform:
        return did_you_mean(config.platform, platforms) or "set 'backend' to the name of the backend"
    for row in KINDS:
        if config.default_model_filename.endswith(row.filename.removeprefix("model")):
            return f'add backend: "{row.backend}"'
    return "set 'backend' to the name of the backend"


def _name_hint(name: str, directory: str) -> str:
    if name.strip() == directory.strip():
        return f"the {'name' if name != name.strip() else 'directory name'} begins or ends with white space"
    if "${" in name:
        return "a template variable in 'name' was not filled in"
    return f"remove 'name' from the config or write name: \"{directory}\""


def check_tensors(config: Any) -> None:
    """Check inputs, outputs and batch inputs and outputs. Raises ConfigError, ``... for <model>``."""
    try:
        for kind, tensors in (("input", config.input), ("output", config.output)):
            seen: set[str] = set()
            for tensor in tensors:
                _check_tensor(tensor, kind, config)
                if tensor.name in seen:
                    raise ConfigError(f"model {kind} '{tensor.name}' is specified more than once")
                seen.add(tensor.name)
        _check_batch_tensors(config)
    except ConfigError as error:
        raise ConfigError(f"{error.text} for {config.name}", hint=error.hint) from None


def _check_tensor(tensor: Any, kind: str, config: Any) -> None:
    prefix = f"model {kind} "
    if not tensor.name:
        raise ConfigError(f"{prefix}must specify 'name'")
    prefix += f"'{tensor.name}' "
    if tensor.data_type == DataType.INVALID:
        raise ConfigError(f"{prefix}must specify 'data_type'")
    if not tensor.dims:
        raise ConfigError(f"{prefix}must specify 'dims'", hint="a scalar is dims: [ 1 ]")
    if tensor.HasField("reshape") and not tensor.reshape.shape and config.max_batch_size == 0:
        raise ConfigError(
            f"{prefix}cannot have empty reshape for non-batching model as scalar tensors are not supported"
        )
    for label, dims in (("dimension", tensor.dims), ("reshape dimensions", tensor.reshape.shape)):
        if len(dims) > MAX_RANK:
            raise ConfigError(f"{prefix}{label} must be at most {MAX_RANK} integers", hint=f"got {len(dims)}")
        if any(dim < 1 and dim != -1 for dim in dims):
            raise ConfigError(
                f"{prefix}{label} must be integer >= 1, or -1 to indicate a variable-size dimension",
                hint=f"got {shape_text(dims)}",
            )
    if tensor.HasField("reshape"):
        _check_reshape(tensor, prefix)
    else:
        _element_count(tensor.dims, f"{tensor.name} dims")
    if kind == "input" and tensor.format and len(tensor.dims) != 3:
        raise ConfigError(
            "model input NHWC/NCHW require 3 dims",
            hint=f"input '{tensor.name}' has {shape_text(tensor.dims)}; leave the batch dimension out",
        )
    if config.platform == TENSORRT_PLATFORM:
        if tensor.is_non_linear_format_io and len(tensor.dims) != 3:
            raise ConfigError(f"Non-linear IO format {kind} requires 3 dims")
    elif tensor.is_shape_tensor:
        raise ConfigError("shape tensors are only supported for TensorRT platform")
    elif tensor.is_non_linear_format_io:
        raise ConfigError("Non-linear IO format is only supported for the TensorRT platform")


def _check_reshape(tensor: Any, prefix: str) -> None:
    dims, shape = list(tensor.dims), list(tensor.reshape.shape)
    hint = f"dims {shape_text(dims)}, reshape {shape_text(shape)}"
    dims_count = _element_count(dims, f"{tensor.name} dims")
    shape_count = _element_count(shape, f"{tensor.name} reshape") if shape else 0
    if dims_count != shape_count and (shape_count != 0 or dims_count != 1):
        raise ConfigError(f"{prefix}has different size for dims and reshape", hint=hint)
    if dims_count == -1:
        # Between two variable dimensions the fixed ones must multiply to the same number on both sides.
        left, right = _trunks(dims), _trunks(shape)
        if len(left) != len(right):
            raise ConfigError(
                f"{prefix}has different number of variable-size dimensions for dims and reshape", hint=hint
            )
        if left != right:
            raise ConfigError(f"{prefix}has different size for dims and reshape", hint=hint)


def _trunks(dims: Sequence[int]) -> list[int]:
    counts = [1]
    for dim in dims:
        if dim == -1:
            counts.append(1)
        else:
            counts[-1] *= dim
    return counts


def _element_count(dims: Sequence[int], name: str) -> int:
    """Return the number of elements, -1 when a dimension is variable."""
    count = 1
    for dim in dims:
        if dim < -1:
            raise ConfigError(f"tensor '{name}' contains an invalid dimension in shape {shape_text(dims)}")
        if dim != -1:
            count *= dim
        if count > INT64_MAX:
            raise ConfigError(f"element count for tensor '{name}' exceeds maximum size of {INT64_MAX}")
    return -1 if -1 in dims else count


def _check_batch_tensors(config: Any) -> None:
    inputs = [tensor.name for tensor in config.input]
    outputs = [tensor.name for tensor in config.output]
    for item in config.batch_input:
        _check_sources(item, "input", protos.BatchInput, inputs)
        if item.data_type not in (DataType.INT32, DataType.FP32):
            raise ConfigError("batch input data type must be TYPE_INT32 or TYPE_FP32")
    for item in config.batch_output:
        _check_sources(item, "output", protos.BatchOutput, inputs)
        seen: set[str] = set()
        for target in item.target_name:
            if target not in outputs:
                raise ConfigError(f"unknown target output name '{target}'", hint=did_you_mean(target, outputs))
            if target in seen:
                raise ConfigError(f"target output name '{target}' can only be specified once")
            seen.add(target)


def _check_sources(item: Any, direction: str, message: Any, inputs: Sequence[str]) -> None:
    if len(item.source_input) != 1:
        kind = message.Kind.Name(item.kind)
        raise ConfigError(f"batch {direction} kind '{kind}' expects 1 source input, got {len(item.source_input)}")
    source = item.source_input[0]
    if source not in inputs:
        raise ConfigError(f"unknown source input name '{source}'", hint=did_you_mean(source, inputs))


def check_groups(config: Any, gpus: Sequence[int] = (), *, on_gpu: bool = True, no_gpu: str = "") -> None:
    """Check instance groups after their normalization. ``on_gpu``: the backend can use GPUs; ``no_gpu``: why not.

    Raises ConfigError, or Internal for a group left AUTO.
    """
    if config.HasField("ensemble_scheduling"):
        return
    if not config.instance_group:
        raise ConfigError(f"must specify one or more 'instance group's for {config.name}")
    kinds = protos.ModelInstanceGroup
    total = 0
    for group in config.instance_group:
        where = f"instance group {group.name} of model {config.name}"
        kind = kinds.Kind.Name(group.kind)
        if group.kind == kinds.KIND_GPU:
            if gpus and not on_gpu:
                raise ConfigError(
                    f"{where} has kind KIND_GPU but backend '{config.backend}' as installed runs on the CPU only"
                    + (f": {no_gpu}" if no_gpu else ""),
                    hint="use KIND_CPU or KIND_AUTO",
                )
            _check_group_gpus(group, where, gpus)
        elif group.kind == kinds.KIND_AUTO:
            raise Internal(f"{where} has unexpected kind KIND_AUTO")
        elif group.gpus:
            raise ConfigError(f"{where} has kind {kind} but specifies one or more GPUs")
        if group.profile:
            _check_profile(group, where, config.platform)
        total += group.count * max(1, len(group.gpus))
    if total > MAX_INSTANCES:
        raise ConfigError(
            f"model {config.name} asks for {total} instances, the limit is {MAX_INSTANCES}",
            hint="each instance is a thread; lower 'count'",
        )


def _check_group_gpus(group: Any, where: str, gpus: Sequence[int]) -> None:
    if not gpus:
        raise ConfigError(f"{where} has kind KIND_GPU but no GPUs are available", hint="use KIND_CPU or KIND_AUTO")
    if not group.gpus:
        raise ConfigError(f"{where} has kind KIND_GPU but specifies no GPUs")
    for gpu in group.gpus:
        if gpu not in gpus:
            listed = ", ".join(str(known) for known in sorted(gpus))
            raise ConfigError(f"{where} specifies invalid or unsupported gpu id {gpu}. Usable GPUs are: {listed}")


def _check_profile(group: Any, where: str, platform: str) -> None:
    if platform != TENSORRT_PLATFORM:
        raise ConfigError(
            f"{where} and platform {platform}specifies profile field which is only supported for TensorRT models"
        )
    for profile in group.profile:
        if not profile:
            raise ConfigError("profile name must not be empty")
        if not profile.isdecimal():
            raise ConfigError(
                f"{where} and platform {platform} specifies invalid profile {profile}. The field should contain "
                "the string representation of a non-negative integer."
            )


def _check_cache(config: Any) -> None:
    if config.response_cache.enable and config.model_transaction_policy.decoupled:
        raise ConfigError(
            f"Response Cache does not currently support model {config.name} with 'decoupled' transaction policy. "
            "Please disable the response cache."
        )


def _check_metrics(config: Any) -> None:
    for control in config.model_metrics.metric_control:
        if not control.HasField("metric_identifier"):
            raise ConfigError("metric control must specify 'metric_identifier'")
        if not control.metric_identifier.family:
            raise ConfigError("metric identifier must specify non-empty 'family'")
        if not control.HasField("histogram_options"):
            raise ConfigError("metric control must specify 'histogram_options'")
        if not control.histogram_options.buckets:
            raise ConfigError("histogram options must specify non-empty 'buckets'")
        buckets = control.histogram_options.buckets
        if len(buckets) > MAX_BUCKETS:
            raise ConfigError(f"histogram options must specify at most {MAX_BUCKETS} 'buckets'")
        # A number that is none compares with nothing.
        if not all(low < high for low, high in itertools.pairwise((-math.inf, *buckets))):
            raise ConfigError("Bucket Boundaries must be strictly sorted")


def _check_warmup(config: Any) -> None:
    for sample in config.model_warmup:
        if sample.batch_size == 0:
            continue
        for name, source in sorted(sample.inputs.items()):
            count = _element_count(source.dims, name)
            if count == -1:
                raise ConfigError(
                    f"warmup setting expects all variable-size dimensions are specified for input '{name}'",
                    hint=f"sample '{sample.name}' gives {shape_text(source.dims)}",
                )
            size = TYPES[DataType(source.data_type)].size if source.data_type else 0
            if count * max(size, 4 if source.data_type == DataType.STRING else 1) > INT64_MAX:
                raise ConfigError(f"byte size for tensor '{name}' exceeds maximum size of {INT64_MAX}")
            if source.WhichOneof("input_data_type") is None:
                raise ConfigError(
                    f"warmup setting expects input '{name}' to have input_data_type set",
                    hint="zero_data: true, random_data: true or input_data_file",
                )
