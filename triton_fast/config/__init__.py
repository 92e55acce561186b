"""Model configuration: read, fill, check, show.

The order for one model: `load_model_config`, `normalize`, `validate` (``io=False`` while auto-complete is to come),
the backend's `complete_from_model`, `validate` again, `check_against_model`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from triton_fast.config.complete import ModelTensor, check_against_model, complete_from_model
from triton_fast.config.defaults import fill_backend, normalize_blocks, normalize_groups
from triton_fast.config.ensemble_members import EnsemblePlan, check_members, member_names
from triton_fast.config.errors import ConfigError
from triton_fast.config.hints import templates
from triton_fast.config.io import IoSpec
from triton_fast.config.parse import Parsed, parse_json, parse_text, read_file, readable
from triton_fast.config.paths import check_name, read_labels, read_warmup_file, version_dirs
from triton_fast.config.render import to_json
from triton_fast.config.sequence import Added, Control, added_specs, controls, kept_outputs
from triton_fast.config.validate import check_groups, check_tensors, validate
from triton_fast.types import DataType

# The message class is made at run time; see triton_fast/protos.
ModelConfig: TypeAlias = Any

__all__ = [
    "Added", "ConfigError", "Control", "EnsemblePlan", "IoSpec", "ModelConfig", "ModelTensor", "Parsed",
    "added_specs", "check_against_model", "check_groups", "check_members", "check_name", "check_tensors",
    "complete_from_model", "config_path", "controls", "io_specs", "load_model_config", "member_names",
    "normalize", "read_agents", "read_labels", "read_member_names", "read_model_config", "read_warmup_file",
    "read_written", "readable", "templates", "to_json", "validate", "version_dirs",
]  # fmt: skip


def load_model_config(
    model_dir: Path, *, strict: bool, config_name: str = "", override_json: str | None = None, name: str = ""
) -> ModelConfig:
    """Return a model's config with everything the server can fill in by itself.

    Parameters
    ----------
    model_dir
        ``<repository>/<model>``.
    strict
        True (``--disable-auto-complete-config``): a config file must exist.
    config_name
        ``--model-config-name``: ``configs/<name>.pbtxt`` is used when it exists.
    override_json
        The ``config`` parameter of a load request; it replaces the file.
    name
        The model's name where it is not the directory's (a load with ``file:`` parameters).

    Raises
    ------
    ConfigError
    """
    parsed = read_model_config(
        model_dir, strict=strict, config_name=config_name, override_json=override_json, name=name
    )
    return parsed.config


def read_model_config(
    model_dir: Path, *, strict: bool, config_name: str = "", override_json: str | None = None, name: str = "",
    backend_names: Callable[[], Collection[str]] = tuple,
) -> Parsed:  # fmt: skip
    """Do what `load_model_config` does, and also return the names of the fields that the user gave.

    ``backend_names``: the backends there are, for a model of which only a file model.<backend> says whose it is.
    """
    if override_json is not None:
        parsed = parse_json(override_json)
    else:
        path = config_path(model_dir, config_name)
        label = f"{name or model_dir.name}/{path.relative_to(model_dir)}"
        if path.exists() or path.is_symlink() or strict:
            parsed = parse_text(read_file(path, label), label)
        else:
            parsed = parse_text(b"", label)
    fill_backend(parsed.config, model_dir, name, backend_names)
    return parsed


def read_member_names(model_dir: Path, config_name: str = "", override_json: str | None = None) -> list[str]:
    """Return the models that an ensemble names, [] for another model. Cheap where it is none.

    Raises
    ------
    ServerError, OSError
        The config can not be read.
    """
    if override_json is not None:
        return member_names(parse_json(override_json).config)
    path = config_path(model_dir, config_name)
    data = read_file(path, path.name) if path.exists() else b""
    # The name of a field can not be written otherwise.
    return member_names(parse_text(data, path.name).config) if b"ensemble_scheduling" in data else []


def read_agents(model_dir: Path, config_name: str = "", override_json: str | None = None) -> ModelConfig | None:
    """Return the config as it is written where it names repository agents, else None. Cheap where it does not.

    Raises
    ------
    ServerError, OSError
        The config can not be read.
    """
    if override_json is not None:
        config = parse_json(override_json).config
    else:
        path = config_path(model_dir, config_name)
        data = read_file(path, path.name) if path.exists() else b""
        if b"model_repository_agents" not in data:
            return None
        config = parse_text(data, path.name).config
    return config if config.model_repository_agents.agents else None


def read_written(model_dir: Path, config_name: str = "", override_json: str | None = None) -> ModelConfig:
    """Return the config as it is written; nothing is filled in. Raises ServerError, OSError."""
    if override_json is not None:
        return parse_json(override_json).config
    path = config_path(model_dir, config_name)
    return parse_text(read_file(path, path.name) if path.exists() else b"", path.name).config


def config_path(model_dir: Path, config_name: str = "") -> Path:
    """Return the config file of a model, whether or not it exists."""
    if config_name:
        if "/" in config_name or "\0" in config_name or config_name in (".", ".."):
            raise ConfigError(f"model config name '{config_name}' must be a plain name, without '/'")
        named = model_dir / "configs" / f"{config_name}.pbtxt"
        if named.exists():
            return named
    return model_dir / "config.pbtxt"


def normalize(config: ModelConfig, *, cpu_count: int, gpus: Sequence[int] = ()) -> None:
    """Bring a config to Triton's normal form, in place: version policy, batching, optimization, instance groups."""
    normalize_blocks(config)
    normalize_groups(config, cpu_count=cpu_count, gpus=gpus)


def io_specs(config: ModelConfig, model_dir: Path | None = None) -> tuple[list[IoSpec], list[IoSpec]]:
    """Return the inputs and outputs of a validated config; labels are read when ``model_dir`` is given."""
    inputs = [
        IoSpec(
            tensor.name, DataType(tensor.data_type), tuple(tensor.dims), _reshape(tensor),
            tensor.optional, tensor.allow_ragged_batch,
        )
        for tensor in config.input
    ]  # fmt: skip
    outputs = [
        IoSpec(
            tensor.name, DataType(tensor.data_type), tuple(tensor.dims), _reshape(tensor),
            labels=read_labels(tensor, config, model_dir) if model_dir and tensor.label_filename else (),
        )
        for tensor in config.output
    ]  # fmt: skip
    return inputs, kept_outputs(config, outputs)


def _reshape(tensor: Any) -> tuple[int, ...] | None:
    return tuple(tensor.reshape.shape) if tensor.HasField("reshape") else None
