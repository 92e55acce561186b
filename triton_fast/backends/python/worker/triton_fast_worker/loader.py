"""Importing model.py under the name and path that Triton gives it, and calling the methods around execute."""

from __future__ import annotations

import os
import sys
from typing import Any, Callable

from .errors import TritonModelException, show_relative_to
from .model_config import ModelConfig


def locate(context: dict[str, Any]) -> tuple[str, list[str]]:
    """Name of the model's module, and the folders in which it finds others."""
    path = context["model_path"]
    if not os.path.exists(path):
        raise ModelText(f"Python model file not found in '{path}'")
    folder, file = os.path.split(path)
    if not file.endswith(".py"):
        raise ModelText(f"Model name must end with '.py'. Model name is \"{file}\".")
    name = file[: -len(".py")]
    folders = [folder]
    # A Python-based backend's model.py lies with the backend, not in a version.
    if os.path.realpath(folder) == os.path.realpath(context["version_dir"]):
        parent, version = os.path.split(folder)
        folders.append(parent)
        name = f"{version}.{name}"
    show_relative_to(os.path.dirname(folders[-1]))
    return name, folders


def import_model(context: dict[str, Any]) -> Any:
    """The class TritonPythonModel. Whatever the import raises, as it is."""
    name, folders = locate(context)
    sys.path += [one for one in folders if one not in sys.path]
    module = __import__(name, fromlist=["TritonPythonModel"])
    return module.TritonPythonModel


def model_of(load: Callable[[str], Any], path: str) -> Any:
    """The same, by somebody else's ``load``, which returns the module of a file."""
    return load(path).TritonPythonModel


class ModelText(TritonModelException):
    """An error of ours, whose text stands alone."""


def auto_complete(model: Any, config_json: str, instance: str) -> dict[str, Any]:
    config: Any = ModelConfig(config_json)
    if hasattr(model, "auto_complete_config"):
        config = model.auto_complete_config(config)
    if not isinstance(config, ModelConfig):
        raise ModelText(
            f"auto_complete_config function in model '{instance}' must return a valid pb.ModelConfig object."
        )
    return config.as_dict()


def initialize(model: Any, args: dict[str, str]) -> Any:
    """The model's instance, initialized."""
    instance = model()
    if hasattr(instance, "initialize"):
        instance.initialize(args)
    return instance


def finalize(instance: Any) -> None:
    if hasattr(instance, "finalize"):
        instance.finalize()
