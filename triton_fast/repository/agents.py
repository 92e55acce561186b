"""Repository agents: what looks at a model's directory, or gives another one, before the model is loaded from it.

``checksum`` is built in; ``<repoagent-directory>/<name>/agent.py`` adds others. Source: spec/capi.md section 5,
docs/model_control.md. Knows directories and agents; nothing of versions or of what is served.
"""

from __future__ import annotations

import hashlib
import importlib.util
import shutil
import tempfile
import threading
from collections.abc import Iterable, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from triton_fast.config.paths import check_name as check_path
from triton_fast.config.paths import is_inside
from triton_fast.errors import Internal, InvalidArg, NotFound, ServerError, Unsupported, describe
from triton_fast.observability import log
from triton_fast.repository.sources import MaterializedDir, check_name

BUILT_IN = "built in"
_FILE = "agent.py"
_CLASS = "RepoAgent"
_CHUNK = 1 << 20


class Action(str, Enum):
    """LOAD, then LOAD_COMPLETE or LOAD_FAIL; after LOAD_COMPLETE once UNLOAD and UNLOAD_COMPLETE."""

    LOAD = "LOAD"
    LOAD_COMPLETE = "LOAD_COMPLETE"
    LOAD_FAIL = "LOAD_FAIL"
    UNLOAD = "UNLOAD"
    UNLOAD_COMPLETE = "UNLOAD_COMPLETE"


class Agent(Protocol):
    """One object serves all models, from several threads."""

    def action(self, action: str, model: AgentModel) -> None:
        """Raise to refuse a LOAD; what is raised of the other actions is only logged."""


class AgentModel:
    """One load of a model, as one agent sees it. ``state`` is the agent's own.

    Attributes
    ----------
    name, config
        The model, and its ``ModelConfig`` message as it is written: nothing is completed yet.
    parameters
        Pairs of the config's ``parameters`` for this agent.
    """

    def __init__(self, name: str, config: Any, parameters: Sequence[tuple[str, str]], location: Path) -> None:
        self.name = name
        self.config = config
        self.parameters = tuple(parameters)
        self.state: Any = None
        self._location = location
        self._action: Action | None = None
        self._acquired: list[Path] = []

    @property
    def location(self) -> Path:
        """The model's directory, as the agents before have left it."""
        return self._location

    def update(self, location: str | Path) -> None:
        """Have the model loaded from another directory. Only during LOAD."""
        if self._action is not Action.LOAD:
            current = self._action.value if self._action else "none"
            raise InvalidArg(
                "location can only be updated during TRITONREPOAGENT_ACTION_LOAD, current action type is "
                f"TRITONREPOAGENT_ACTION_{current}"
            )
        if not Path(location).is_dir():
            raise InvalidArg(f"the location given for model '{self.name}' is not a directory")
        self._location = Path(location)

    def acquire(self) -> Path:
        """Return a new empty directory, which goes when the model has been unloaded or its load has failed."""
        self._acquired.append(Path(tempfile.mkdtemp(prefix="triton_fast_agent_")))
        return self._acquired[-1]

    def end(self) -> None:
        """Give back what was acquired."""
        for path in self._acquired:
            shutil.rmtree(path, ignore_errors=True)
        self._acquired.clear()

    def invoke(self, agent: Agent, action: Action) -> None:
        """Have the agent act; raises what it raises."""
        self._action = action
        try:
            agent.action(action.value, self)
        finally:
            self._action = None


class Checksum:
    """Triton's checksum agent: ``MD5:<file>`` -> digest in hex. Ours takes ``SHA256:`` too."""

    def action(self, action: str, model: AgentModel) -> None:
        if action != Action.LOAD:
            return
        for key, expected in model.parameters:
            kind, separator, filename = key.partition(":")
            if not separator:
                raise InvalidArg(f"unexpected checksum parameter '{key}', expecting <hash function>:<file path>")
            if kind not in ("MD5", "SHA256"):
                raise Unsupported(f"unsupported hash function '{kind}' of checksum parameter '{key}'")
            found = self._digest(model, kind, filename)
            if found != expected.strip().lower():
                raise InvalidArg(f"Mismatched {kind} hash for file {filename}, expecting: {expected}, got: {found}")

    @staticmethod
    def _digest(model: AgentModel, kind: str, filename: str) -> str:
        check_path(filename, "checksum file", model.name)
        path = model.location / filename
        if not is_inside(path, model.location):
            raise InvalidArg(f"checksum file '{filename}' of model '{model.name}' is outside model directory")
        if not path.is_file():
            raise NotFound(f"failed to open checksum file '{filename}' of model '{model.name}': no such file")
        digest = hashlib.new(kind.lower(), usedforsecurity=False)
        try:
            with path.open("rb") as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
        except OSError as error:
            raise Internal(f"failed to read checksum file '{filename}': {error.strerror}") from None
        return digest.hexdigest()


class Agents:
    """All agents of a server. ``directory``: ``--repoagent-directory``."""

    def __init__(self, directory: Path | None = None) -> None:
        self._directory = directory
        self._lock = threading.Lock()
        self._found: dict[str, tuple[Agent, str]] = {"checksum": (Checksum(), BUILT_IN)}

    def rows(self) -> list[tuple[str, str]]:
        """Return the name of each agent that is there for use or was used, and where it is from."""
        return sorted((name, path) for name, (_, path) in self._found.items())

    def invoke(self, name: str, config: Any, directory: MaterializedDir) -> MaterializedDir:
        """Have the agents that a config names act on LOAD; return where to load from, which takes over the hold.

        Raises ServerError as an agent refuses; the caller holds ``directory`` then as before.
        """
        wanted = [(one.name, [*one.parameters.items()]) for one in config.model_repository_agents.agents]
        return _AgentDir.make(name, config, directory, [(self._find(agent), given) for agent, given in wanted])

    def _find(self, name: str) -> Agent:
        with self._lock:
            if name in self._found:
                return self._found[name][0]
            check_name(name)
            path = self._directory / name / _FILE if self._directory is not None else None
            if path is None or not path.is_file():
                raise InvalidArg(
                    f"unable to find 'libtritonrepoagent_{name}.so' for repo agent '{name}', searched: "
                    f"{self._directory}/{name}"
                )
            agent = _import(name, path)
            self._found[name] = agent, str(path)
            return agent


class _AgentDir(MaterializedDir):
    """The directory that agents made of another; they act on the rest of its life."""

    def __init__(self, inner: MaterializedDir, path: Path, acting: Sequence[tuple[Agent, AgentModel]]) -> None:
        super().__init__(path, self._unused, is_renamed=inner.is_renamed)
        self._inner = inner
        self._acting = tuple(acting)
        self._is_complete = False

    @classmethod
    def make(
        cls, name: str, config: Any, inner: MaterializedDir, agents: Iterable[tuple[Agent, list[tuple[str, str]]]]
    ) -> _AgentDir:
        path = inner.path
        acting: list[tuple[Agent, AgentModel]] = []
        try:
            for agent, parameters in agents:
                model = AgentModel(name, config, parameters, path)
                acting.append((agent, model))
                model.invoke(agent, Action.LOAD)
                path = model.location
        except BaseException as error:
            # Who refused is told nothing more.
            _act(acting[:-1], Action.LOAD_FAIL)
            _end(acting)
            if isinstance(error, ServerError) or not isinstance(error, Exception):
                raise
            raise Internal(describe(error).partition(": ")[2]) from error
        return cls(inner, path, acting)

    def completed(self) -> None:
        self._is_complete = True
        _act(self._acting, Action.LOAD_COMPLETE)

    def _unused(self) -> None:
        if self._is_complete:
            _act(self._acting, Action.UNLOAD)
            _act(self._acting, Action.UNLOAD_COMPLETE)
        else:
            _act(self._acting, Action.LOAD_FAIL)
        _end(self._acting)
        self._inner.release()


def _act(acting: Sequence[tuple[Agent, AgentModel]], action: Action) -> None:
    """Have agents act, in the config's order; when something has ended the last one first."""
    for agent, model in acting if action is Action.UNLOAD else reversed(acting):
        try:
            model.invoke(agent, action)
        except Exception as error:
            log.error(f"repository agent failed on {action.value} of model '{model.name}': {describe(error)}")


def _end(acting: Sequence[tuple[Agent, AgentModel]]) -> None:
    for _, model in acting:
        model.end()


def _import(name: str, path: Path) -> Agent:
    try:
        spec = importlib.util.spec_from_file_location(f"triton_fast_repoagent_{name}", path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        made: Agent = getattr(module, _CLASS)()
    except Exception as error:
        log.error(f"repository agent '{name}' could not be started from {path}: {describe(error)}")
        raise Internal(f"repository agent '{name}' could not be started: {type(error).__name__}: {error}") from None
    return made
