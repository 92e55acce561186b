"""From a model's config to what its workers are started with: files, arguments, first message.

Texts are Triton's. Source: spec/python_backend.md section 1, docs/python_worker.md. Starts nothing.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from pathlib import Path
from typing import Any

from google.protobuf import json_format

from triton_fast.backends import host_policy
from triton_fast.backends.base import InstanceSpec, LoadContext
from triton_fast.backends.host_policy import HostPolicy
from triton_fast.backends.python import environment
from triton_fast.backends.python.cache import EnvironmentCache
from triton_fast.backends.python.environment import Environment
from triton_fast.backends.python.frames import Message
from triton_fast.backends.python.native import client_path
from triton_fast.backends.python.settings import Parameters, Settings
from triton_fast.backends.python.template import Kind
from triton_fast.backends.python.worker_process import Launch
from triton_fast.config import added_specs, to_json
from triton_fast.errors import InvalidArg

PLATFORM_FILE = "model.py"
ENVIRONMENT_FILE = "pb_exec_env_model.py.tar.gz"
# Triton's list, from the time when the name reached a shell. Here it does not; the refusal stays the same.
_INVALID = frozenset(";|&$`<>()[]{}\\\"'*?~#!")
WORKER = Path(__file__).with_name("worker") / "start.py"
# Free outbound memory that a worker keeps without being asked.
KEEP_BYTES = 64 << 20
_KINDS = {"KIND_CPU": "CPU", "KIND_GPU": "GPU", "KIND_MODEL": "MODEL"}


@dataclasses.dataclass(frozen=True)
class ModelPlan:
    """``model_path``: the file that workers run; ``script``: start.py."""

    context: LoadContext
    settings: Settings
    parameters: Parameters
    environment: Environment
    model_path: Path
    script: Path

    def launch(self, instance: str, policy: HostPolicy = host_policy.NONE) -> Launch:
        if not instance or _INVALID & set(instance):
            raise InvalidArg("Invalid stub name: contains invalid characters")
        argv = (self.environment.interpreter, "-u", str(self.script))
        # Not the server's directory: files that a model writes by relative names, and modules that it imports so.
        variables, folder = self.environment.variables, tempfile.gettempdir()
        # A template has one place to run, and the server's own interpreter.
        native = self._client() if self.settings.template and self.script == WORKER and policy.is_anywhere else ""
        kind = Kind(argv, variables, folder, native) if native else None
        return Launch(self.context.name, instance, argv, variables, folder, policy, self.context.version, kind)

    def _client(self) -> str:
        return client_path() if self.environment.own and self.settings.native_client else ""

    def context_fields(self, instance: str) -> Message:
        context = self.context
        return {
            "model_path": str(self.model_path),
            "version_dir": str(context.version_dir),
            "model_dir": str(context.model_dir),
            "model_name": context.name,
            "instance_name": instance,
            "explicit_control": context.host.explicit_control,
            "native": self._client(),
            "keep_bytes": KEEP_BYTES,
            "bls_threads": self.settings.threads,
            "shm_wait": self.settings.shm_wait_s,
        }

    def auto_complete(self) -> Message:
        config = to_json(self.context.config)
        return {"type": "auto_complete", "config": config, "context": self.context_fields(self.context.name)}

    def init(self, spec: InstanceSpec) -> Message:
        context, config = self.context, self.context.config
        added = added_specs(config)
        arguments = {
            "model_config": json.dumps(to_json(config), separators=(",", ":"), ensure_ascii=False),
            "model_instance_kind": _KINDS.get(spec.kind, "CPU"),
            "model_instance_device_id": str(spec.device),
            "model_instance_name": spec.name,
            "model_repository": str(context.model_dir),
            "model_version": str(context.version),
            "model_name": context.name,
        }
        return {
            "type": "init",
            "args": arguments,
            "inputs": [tensor.name for tensor in (*config.input, *added.inputs)],
            "outputs": [tensor.name for tensor in (*config.output, *added.outputs)],
            "decoupled": bool(config.model_transaction_policy.decoupled),
            "context": self.context_fields(spec.name),
        }


def make_plan(
    context: LoadContext, settings: Settings, given: Parameters, cache: EnvironmentCache, directory: Path | None
) -> ModelPlan:
    """Return the plan of a model; ``directory``: of the Python-based backend it belongs to. May make an environment.

    Raises
    ------
    ServerError
        There is no model file, or its environment can not be had.
    """
    path = given.env_path
    if given.in_process and directory is not None and (directory / ENVIRONMENT_FILE).is_file():
        raise InvalidArg(
            f"model '{context.name}': its backend has an environment of its own, which EXECUTION_MODE 'in_process' "
            "can not use"
        )
    if directory is None:
        name = context.config.default_model_filename or PLATFORM_FILE
        model_path = context.version_dir / name
        if not model_path.is_file():
            raise InvalidArg(f"model '{context.name}' has no file '{context.version}/{name}'")
    else:
        model_path = directory / PLATFORM_FILE
        context.config.runtime = context.config.runtime or PLATFORM_FILE
        if not path and (directory / ENVIRONMENT_FILE).is_file():
            path = str(directory / ENVIRONMENT_FILE)
    found = environment.prepare(path, context.model_dir, cache, base=context.host.variables)
    return ModelPlan(context, settings, given, found, model_path, WORKER)


def merged(config: Any, answer: object) -> Any:
    """Return ``config`` with what auto-complete may change: batch size, inputs, outputs, scheduling, policy.

    ``answer`` is the JSON that the worker gave back. Raises InvalidArg when it is no config.
    """
    if not isinstance(answer, dict):
        raise InvalidArg(f"auto_complete_config of model '{config.name}' returned no config")
    changed = _parse(config, answer)
    config.max_batch_size = changed.max_batch_size
    for field in ("input", "output"):
        config.ClearField(field)
        getattr(config, field).extend(getattr(changed, field))
    if config.WhichOneof("scheduling_choice") is None and changed.HasField("dynamic_batching"):
        config.dynamic_batching.CopyFrom(changed.dynamic_batching)
    if changed.HasField("model_transaction_policy"):
        config.model_transaction_policy.CopyFrom(changed.model_transaction_policy)
    return config


def _parse(config: Any, answer: Message) -> Any:
    """Read only the fields that count, so that the rest may be anything."""
    wanted = ("max_batch_size", "input", "output", "dynamic_batching", "model_transaction_policy")
    text = json.dumps({key: answer[key] for key in wanted if answer.get(key) is not None})
    try:
        return json_format.Parse(text, type(config)(), ignore_unknown_fields=True)
    except (json_format.ParseError, ValueError, RecursionError) as error:
        raise InvalidArg(
            f"auto_complete_config of model '{config.name}' returned a config that can not be read: {error}"
        ) from None
