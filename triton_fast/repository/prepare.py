"""From a model directory to what a version's start needs: the config, its backend and the load context.

Knows configs and backends. Must not start anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from triton_fast import config as configs
from triton_fast.backends.base import Backend, LoadContext
from triton_fast.backends.host import Host
from triton_fast.errors import InvalidArg, ServerError
from triton_fast.repository.agents import Agents
from triton_fast.repository.sources import MaterializedDir


class Preparer:
    """Reads and completes configs.

    Parameters
    ----------
    find_backend
        Name -> backend, or None for one that this build does not have.
    settings
        ``--backend-config`` of a backend by name, the global ones included.
    strict
        ``--disable-auto-complete-config``.
    cpu_count, gpus
        What instance groups may use: usable cores and the ids of usable GPUs.
    host
        What backends may ask of the server.
    agents
        The repository agents.
    """

    def __init__(
        self,
        find_backend: Callable[[str], Backend | None],
        *,
        settings: Callable[[str], Mapping[str, str]] = lambda _: {},
        strict: bool = False,
        config_name: str = "",
        cpu_count: int = 1,
        gpus: Sequence[int] = (),
        host: Host | None = None,
        agents: Agents | None = None,
    ) -> None:
        self._find_backend = find_backend
        self._settings = settings
        self._strict = strict
        self._config_name = config_name
        self._cpu_count = max(1, cpu_count)
        self._gpus = tuple(gpus)
        self._host = host or Host()
        self._agents = agents or Agents()

    def read(
        self, name: str, model_dir: Path, override_json: str | None = None, *, is_renamed: bool = False
    ) -> configs.Parsed:
        """Return the model's config, checked, as far as it can be told without opening a model file.

        ``is_renamed``: whatever the config says, this is the model's name.

        Raises
        ------
        ConfigError, Unsupported, InvalidArg
        """
        parsed = configs.read_model_config(
            model_dir, strict=self._strict, config_name=self._config_name, override_json=override_json, name=name
        )
        if is_renamed:
            parsed.config.name = name
        on_gpu = self._runs_on_gpus(parsed.config.backend)
        configs.normalize(parsed.config, cpu_count=self._cpu_count, gpus=self._gpus if on_gpu else ())
        # Nothing completes an ensemble.
        io = self._strict or parsed.config.HasField("ensemble_scheduling")
        configs.validate(parsed.config, model_dir, name=name, gpus=self._gpus, on_gpu=on_gpu, io=io)
        return parsed

    def invoke_agents(self, name: str, directory: MaterializedDir, override_json: str | None) -> MaterializedDir:
        """Have the repository agents that a config names act; return where to load from, which takes over the hold.

        A config that can not be read has none: that is said where it is loaded.
        """
        try:
            config = configs.read_agents(directory.path, self._config_name, override_json)
        except (ServerError, OSError):
            return directory
        return directory if config is None else self._agents.invoke(name, config, directory)

    def members(self, model_dir: Path, override_json: str | None = None) -> list[str]:
        """Return the models that an ensemble's config names; none when it is no ensemble or can not be read."""
        try:
            return configs.read_member_names(model_dir, self._config_name, override_json)
        except (ServerError, OSError):
            return []  # said where it is loaded

    def version(
        self,
        name: str,
        version: int,
        model_dir: Path,
        version_dir: Path,
        parsed: configs.Parsed,
        *,
        namespace: str = "",
    ) -> tuple[LoadContext, Backend]:
        """Return the context and the backend to start one version with; ``parsed`` itself is not changed.

        Raises
        ------
        ServerError
            The build has no such backend, or the model file contradicts the config.
        """
        config = parsed.config
        backend = self._find_backend(config.backend)
        if backend is None:
            raise InvalidArg(
                f"unable to find backend library for backend '{config.backend}', try specifying runtime on the "
                "model configuration."
            )
        own = _copy(config)
        settings = dict(self._settings(config.backend))
        context = LoadContext(
            name, version, model_dir, version_dir, own, settings, given=parsed.given, host=self._host,
            namespace=namespace,
        )  # fmt: skip
        if self._strict:
            return context, backend
        own = backend.complete_config(context)
        on_gpu = bool(self._gpus) and backend.gpu
        configs.normalize(own, cpu_count=self._cpu_count, gpus=self._gpus if on_gpu else ())
        configs.validate(own, model_dir, name=name, gpus=self._gpus, on_gpu=on_gpu)
        return dataclasses.replace(context, config=own), backend

    def _runs_on_gpus(self, name: str) -> bool:
        """Tell whether a backend can use the GPUs that there are."""
        if not self._gpus or not name:
            return False
        try:
            backend = self._find_backend(name)
        except (ServerError, ImportError, OSError):
            return False  # said where the model is loaded
        return backend is not None and backend.gpu

    def ensemble(self, context: LoadContext, plan: configs.EnsemblePlan) -> LoadContext:
        """Return the context to start one version of an ensemble with; it is decoupled if a step is."""
        return self.refit(dataclasses.replace(context, host=self._host), plan)

    @staticmethod
    def refit(context: LoadContext, plan: configs.EnsemblePlan) -> LoadContext:
        """Return the context of an ensemble's version with what a new plan changes in its config."""
        own = _copy(context.config)
        own.model_transaction_policy.decoupled = plan.decoupled
        return dataclasses.replace(context, config=own)


def _copy(config: configs.ModelConfig) -> configs.ModelConfig:
    own = type(config)()
    own.CopyFrom(config)
    return own
