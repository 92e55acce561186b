"""From a model directory to what a version's start needs: the config, its backend and the load context.

Knows configs and backends. Must not start anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

from triton_fast import config as configs
from triton_fast.backends import NAMES, path_parameters, paths
from triton_fast.backends.base import Backend, LoadContext
from triton_fast.backends.host import Host
from triton_fast.errors import InvalidArg, ServerError
from triton_fast.repository import placement
from triton_fast.repository.agents import Agents
from triton_fast.repository.sources import MaterializedDir
from triton_fast.repository.versions import discover, select


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
    any_path
        The config of a load request may name files outside the model's directory.
    backend_names
        The names that ``find_backend`` knows, for models of which only a file says whose they are.
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
        any_path: bool = False,
        backend_names: Callable[[], Collection[str]] = tuple,
    ) -> None:
        self._find_backend = find_backend
        self._backend_names = backend_names
        self._settings = settings
        self._strict = strict
        self._config_name = config_name
        self._cpu_count = max(1, cpu_count)
        self._gpus = tuple(gpus)
        self._host = host or Host()
        self._agents = agents or Agents()
        self._any_path = any_path

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
            model_dir, strict=self._strict, config_name=self._config_name, override_json=override_json, name=name,
            backend_names=self._backend_names,
        )  # fmt: skip
        if is_renamed:
            parsed.config.name = name
        if override_json is not None and not self._any_path:
            self._check_paths(parsed.config, model_dir)
        placed = placement.of_name(parsed.config.backend, self._find_backend, self._gpus)
        configs.normalize(parsed.config, cpu_count=self._cpu_count, gpus=placed.usable)
        # Nothing completes an ensemble.
        io = self._strict or parsed.config.HasField("ensemble_scheduling")
        configs.validate(
            parsed.config, model_dir, name=name, gpus=self._gpus, on_gpu=placed.on_gpu, no_gpu=placed.no_gpu, io=io,
        )  # fmt: skip
        return parsed

    def wanted_versions(self, name: str, override_json: str | None, model_dir: Path) -> list[str] | None:
        """Return the version directories that a load takes, as far as the config alone tells; None: perhaps all.

        All where agents are to see the files, or the config names files by paths, which may lie in any version.
        """
        try:
            config = configs.read_written(model_dir, self._config_name, override_json)
            if config.model_repository_agents.agents or config.model_operations.op_library_filename:
                return None
            names = [output.label_filename for output in config.output]
            names += [parameter.string_value for parameter in config.parameters.values()]
            files = [config.default_model_filename, *config.cc_model_filenames.values()]
            if any("/" in one for one in names) or any(".." in one.split("/") for one in files):
                return None
            available = discover(model_dir, name)
            return [available[version] for version in select(config, available, name)]
        except (ServerError, OSError):
            return None  # said where it is loaded

    def _check_paths(self, config: configs.ModelConfig, model_dir: Path) -> None:
        """Refuse a load request's config that leads its backend out of the model's directory. Raises InvalidArg."""
        if config.backend in NAMES:
            places = path_parameters(config.backend)
        else:
            backend = self._find_backend(config.backend)
            places = () if backend is None else backend.path_parameters
        try:
            own = configs.read_written(model_dir, self._config_name)
        except (ServerError, OSError):
            own = None  # nothing on disk that could be sent as well
        paths.check(config, places, model_dir, own)

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
        placed = placement.of_backend(backend, self._gpus)
        configs.normalize(own, cpu_count=self._cpu_count, gpus=placed.usable)
        configs.validate(
            own, model_dir, name=name, gpus=self._gpus, on_gpu=placed.on_gpu, no_gpu=placed.no_gpu
        )  # fmt: skip
        return dataclasses.replace(context, config=own), backend

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
