"""Find what is wrong in model repositories without loading a model: every fault with its place and what to do.

Reads configs, directories, label files and the first bytes of model files; the syntax of model.py too. Runs nothing of
a model. Source of the wish: spec/users.md 14.
"""

from __future__ import annotations

import ast
import errno
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from triton_fast import backends
from triton_fast import config as configs
from triton_fast.backends.paths import faults
from triton_fast.config.defaults import ENSEMBLE, KINDS
from triton_fast.config.errors import ConfigError, did_you_mean, one_line
from triton_fast.config.locate import locate
from triton_fast.config.validate import parts
from triton_fast.errors import ServerError
from triton_fast.repository import placement
from triton_fast.repository.ensembles import no_version, refuse_circle
from triton_fast.repository.sources import DUPLICATE, LocalSource, check_name, odd_names
from triton_fast.repository.versions import discover, select

_LFS = b"version https://git-lfs"
# First bytes of model files, where all of a kind begin alike. A zip file: PyTorch, and savedmodel archives.
_MAGIC = {
    "model.pt": (b"PK\x03\x04", "a TorchScript archive (torch.jit.save)"),
    "model.pt2": (b"PK\x03\x04", "a package of torch.export or AOTInductor"),
}
_MAX_SOURCE = 4 << 20
_MODEL_CLASS = "TritonPythonModel"


@dataclass(frozen=True, order=True)
class Finding:
    """One fault. ``file`` is relative to the repository; ``line`` and ``column`` from 1, 0 where there is none."""

    model: str
    file: str
    line: int
    column: int
    text: str
    hint: str = ""
    warning: bool = False

    def __str__(self) -> str:
        place = ":".join([one_line(self.file), *(str(number) for number in (self.line, self.column) if number)])
        kind = "warning" if self.warning else "error"
        return f"{place}: {kind}: {self.text}" + (f"\n    {self.hint}" if self.hint else "")


class Checker:
    """Checks repositories.

    Parameters
    ----------
    paths
        ``--model-repository``.
    config_name
        ``--model-config-name``.
    strict
        ``--disable-auto-complete-config``.
    backend_directory
        Where Python-based backends are.
    gpus
        Ids of the usable GPUs.
    """

    def __init__(
        self, paths: Sequence[Path], *, config_name: str = "", strict: bool = False,
        backend_directory: Path | None = None, gpus: Sequence[int] = (),
        also: Sequence[Callable[[Any, Path], object]] = (),
    ) -> None:  # fmt: skip
        """``also``: what else reads a config and its directory at load, and raises ServerError where it can not be."""
        self.sources = [LocalSource(path) for path in paths]
        self._config_name = config_name
        self._strict = strict
        self._backend_directory = backend_directory
        self._gpus = tuple(gpus)
        self._also = tuple(also)
        self._found: list[Finding] = []
        # Of the models whose config can be read, with their directories.
        self._configs: dict[str, tuple[Any, Path]] = {}
        # And the versions that a load takes of them.
        self._versions: dict[str, list[int]] = {}

    def run(self, only: Collection[str] = ()) -> list[Finding]:
        """Return every fault, by model and place; with ``only`` the models to look at, and the members of those."""
        self._found = []
        self._configs, self._versions = {}, {}
        owners: dict[str, int] = {}
        for source in self.sources:
            root = Path(source.location)
            models = source.list_models()
            for name in odd_names(models):
                self._add(name, f"{name!r}", "the directory's name begins or ends with white space",
                          f"rename it to '{name.strip()}'")  # fmt: skip
            self._check_loose_files(source)
            for raw in _not_utf8(root):
                self._add("", raw, "the directory's name is not UTF-8: no request can name the model", "rename it")
            for name in models:
                owners[name] = owners.get(name, 0) + 1
                if not only or name in only:
                    self._try_model(name, root / name)
        for name in self._configs:
            self._check_members(name)
        for name, count in owners.items():
            if count > 1:
                self._add(name, name, DUPLICATE, "none of them is served: remove all but one")
        return sorted(set(self._found))

    # ---- one model

    def _try_model(self, name: str, folder: Path) -> None:
        try:
            self._check_model(name, folder)
        except OSError as error:
            where = Path(os.fsdecode(error.filename)) if error.filename else folder
            hint = "give the server's user the right to" if error.errno in (errno.EACCES, errno.EPERM) else ""
            self._add(name, self._shown(where), f"can not be read: {error.strerror}", hint)

    def _check_model(self, name: str, folder: Path) -> None:
        try:
            check_name(name)
            parsed = configs.read_model_config(
                folder, strict=self._strict, config_name=self._config_name,
                backend_names=lambda: backends.names(self._backend_directory),
            )  # fmt: skip
        except ServerError as error:
            self._add_error(name, folder, error)
            self._check_layout(name, folder, None)
            return
        config = parsed.config
        placed = placement.Placement()
        try:
            placed = placement.of_name(
                config.backend, lambda backend: backends.find(backend, self._backend_directory), self._gpus
            )
        except ServerError as error:
            self._add_error(name, folder, error)
        configs.normalize(config, cpu_count=1, gpus=placed.usable)
        self._configs[name] = config, folder
        io = self._strict or bool(config.input and config.output) or config.platform == ENSEMBLE
        for check in parts(
            config, folder, gpus=self._gpus, on_gpu=placed.on_gpu, no_gpu=placed.no_gpu, io=io
        ):  # fmt: skip
            self._guard(name, folder, check)
        for read in self._also:
            self._guard(name, folder, partial(read, config, folder))
        for output in config.output:
            if output.label_filename:
                self._check_labels(name, folder, output, config)
        self._check_templates(name, folder)
        self._check_backend(name, folder, config)
        self._check_paths(name, folder, config)
        self._check_layout(name, folder, config)

    def _check_members(self, name: str) -> None:
        """Compare an ensemble with its members, as far as their configs say what they take and give."""
        config, folder = self._configs[name]
        edges = {model: configs.member_names(found[0]) for model, found in self._configs.items()}
        try:
            refuse_circle(name, edges)
        except ConfigError as error:
            self._add_error(name, folder, error, *edges[name])
            return
        members = {}
        for step in config.ensemble_scheduling.step:
            member = step.model_name
            found = self._configs.get(member)
            if member and found is None:
                listed = [model for source in self.sources for model in source.list_models()]
                if member not in listed:
                    self._add_at(name, folder, f"ensemble {name} contains models that are not available: {member}",
                                 did_you_mean(member, listed), member)  # fmt: skip
                return
            if found is None:
                return
            versions = self._versions.get(member)
            if versions and step.model_version != -1 and step.model_version not in versions:
                self._add_error(name, folder, no_version(name, member, step.model_version), member)
                return
            if not (found[0].input and found[0].output):
                return
            members[member, step.model_version] = found[0]
        if members:
            self._guard(name, folder, lambda: _compare(config, members))

    def _check_labels(self, name: str, folder: Path, output: Any, config: Any) -> None:
        try:
            labels = configs.read_labels(output, config, folder)
        except ServerError as error:
            self._add_error(name, folder, error, output.label_filename)
            return
        classes = output.dims[-1] if output.dims else -1
        if classes > 0 and len(labels) != classes:
            self._add(
                name, f"{name}/{output.label_filename}",
                f"{len(labels)} labels for output '{output.name}', which has {classes} classes",
                "one line for each class", warning=True,
            )  # fmt: skip

    def _check_templates(self, name: str, folder: Path) -> None:
        path = configs.config_path(folder, self._config_name)
        for line, column, variable in configs.templates(configs.readable(path) or ""):
            self._add(name, self._shown(path), f"the template variable {variable} was not filled in",
                      "fill the template before the server starts", line=line, column=column)  # fmt: skip

    def _check_backend(self, name: str, folder: Path, config: Any) -> None:
        backend = config.backend
        if not backend or (self._backend_directory is None and backend in backends.NAMES):
            return
        try:
            known = backends.find(backend, self._backend_directory)
        except (ServerError, ImportError, OSError) as error:
            self._add_at(name, folder, f"backend '{backend}' can not be used: {error}", "", backend)
            return
        if known is None:
            known_names = backends.names(self._backend_directory)
            nearest = backends.INSTEAD.get(backend) or did_you_mean(backend, known_names)
            hint = nearest or f"this server has {', '.join(known_names)}"
            self._add_at(name, folder, f"unable to find backend library for backend '{backend}'", hint, backend)

    def _check_paths(self, name: str, folder: Path, config: Any) -> None:
        """Report files that the config names and that are not there: perhaps they are where the server is."""
        try:
            places = backends.path_parameters(config.backend, self._backend_directory)
        except (ServerError, ImportError, OSError):
            return  # said of the backend
        for text, hint, value in faults(config, places, folder):
            self._add_at(name, folder, text, hint, value, warning=True)

    # ---- files

    def _check_layout(self, name: str, folder: Path, config: Any) -> None:
        warnings: list[str] = []
        versions = discover(folder, name, warnings.append)
        for text in warnings:
            self._add(name, name, text, "version directories are named by plain numbers: 1, 2, ...", warning=True)
        loose = [row.filename for row in KINDS if (folder / row.filename).exists()]
        for filename in loose:
            self._add(name, f"{name}/{filename}", f"'{filename}' is not in a version directory",
                      f"move it to {name}/1/{filename}")  # fmt: skip
        if not versions:
            if not loose:
                self._add(name, name, "the model has no version directory",
                          f"make {name}/1" + ("" if config is None or config.platform == ENSEMBLE else
                                              " and put the model file there"))  # fmt: skip
            return
        if config is None:
            return
        try:
            chosen = self._versions[name] = select(config, versions, name, warnings.append)
        except ServerError as error:
            self._add_error(name, folder, error)
            return
        for version in chosen if config.platform != ENSEMBLE else ():
            self._check_version(name, folder / versions[version], config)

    def _check_version(self, name: str, folder: Path, config: Any) -> None:
        filename = config.default_model_filename
        if not filename:
            return
        path = folder / filename
        if config.backend == "pytorch" and (folder / "model.py").is_file():
            return  # a class of PyTorch, and perhaps its weights: no Python model, and no model.pt is needed
        if not path.exists() and filename == f"model.{config.backend}":
            return  # made of the model's or the backend's name: the backend may have a file of another name
        if not path.exists():
            there = sorted(entry.name for entry in os.scandir(folder))
            hint = did_you_mean(filename, there) or (f"the directory has {', '.join(there[:5])}" if there else
                                                     "the directory is empty")  # fmt: skip
            self._add(name, self._shown(folder), f"there is no '{filename}'", hint)
        elif path.is_file():
            self._check_file(name, path)
        elif not path.is_dir():
            self._add(name, self._shown(path), "not a regular file", "put a copy of the model there")

    def _check_file(self, name: str, path: Path) -> None:
        shown = self._shown(path)
        try:
            with path.open("rb") as file:
                head = file.read(64)
        except OSError as error:
            self._add(name, shown, f"the file can not be read: {error.strerror}", "give the server's user the right to")
            return
        magic, what = _MAGIC.get(path.name, (b"", ""))
        if not head:
            self._add(name, shown, "the file is empty", "copy the model again")
        elif head.startswith(_LFS):
            self._add(name, shown, "the file is a Git LFS pointer, not a model", "run git lfs pull")
        elif not head.startswith(magic):
            self._add(name, shown, f"the file is not {what}", "save the model in the form that its name says")
        elif path.name == "model.py":
            self._check_python(name, path)

    def _check_python(self, name: str, path: Path) -> None:
        shown = self._shown(path)
        if path.stat().st_size > _MAX_SOURCE:
            return
        try:
            tree = ast.parse(path.read_bytes(), str(path))
        except SyntaxError as error:
            self._add(name, shown, f"{type(error).__name__}: {error.msg}", one_line((error.text or "").strip()),
                      line=max(1, error.lineno or 1), column=max(1, error.offset or 1))  # fmt: skip
            return
        except ValueError as error:
            self._add(name, shown, str(error), "save the file as UTF-8 text")
            return
        except (RecursionError, MemoryError):
            self._add(name, shown, "the code is nested too deeply for Python's parser", "split up its expressions")
            return
        classes = [node for node in tree.body if isinstance(node, ast.ClassDef)]
        model = next((node for node in classes if node.name == _MODEL_CLASS), None)
        if model is None:
            if any(isinstance(node, (ast.ImportFrom, ast.Import, ast.If, ast.Try, ast.Assign)) and _MODEL_CLASS in
                   ast.unparse(node) for node in tree.body):  # fmt: skip
                return
            near = did_you_mean(_MODEL_CLASS, [node.name for node in classes])
            self._add(name, shown, f"no class {_MODEL_CLASS}", near and f"{near[:-1]} is the class: rename it",
                      line=1, column=1)  # fmt: skip
            return
        methods = {node.name for node in model.body if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))}
        if not model.bases and "execute" not in methods:
            self._add(name, shown, f"class {_MODEL_CLASS} has no method execute", did_you_mean("execute", methods),
                      line=model.lineno, column=model.col_offset + 1)  # fmt: skip

    def _check_loose_files(self, source: LocalSource) -> None:
        names = {row.filename for row in KINDS} | {"config.pbtxt"}
        for name in source.list_others():
            if name in names:
                self._add("", name, f"'{name}' lies in the repository itself",
                          "a repository holds <model>/config.pbtxt and <model>/<version>/<model file>")  # fmt: skip

    # ---- findings

    def _guard(self, name: str, folder: Path, check: Callable[[], object]) -> None:
        try:
            check()
        except ServerError as error:
            self._add_error(name, folder, error)

    def _add_error(self, name: str, folder: Path, error: ServerError, *words: str) -> None:
        if isinstance(error, ConfigError) and error.file:
            self._add(name, error.file, error.text, error.hint, line=error.line, column=error.column)
            return
        text, hint = (error.text, error.hint) if isinstance(error, ConfigError) else (error.message, "")
        self._add_at(name, folder, text, hint, *words)

    def _add_at(self, name: str, folder: Path, text: str, hint: str, *words: str, warning: bool = False) -> None:
        """Report what the config says wrongly, at the line that says it."""
        path = configs.config_path(folder, self._config_name)
        config = configs.readable(path)
        if config is None:
            self._add(name, name, text, hint, warning=warning)
            return
        line, column = locate(config, text, words)
        self._add(name, self._shown(path), text, hint, line=line, column=column, warning=warning)

    def _add(
        self, name: str, file: str, text: str, hint: str = "", *, line: int = 0, column: int = 0, warning: bool = False
    ) -> None:
        self._found.append(Finding(name, file, line, column, one_line(text), one_line(hint), warning))

    def _shown(self, path: Path) -> str:
        for source in self.sources:
            if path.is_relative_to(source.location):
                return str(path.relative_to(source.location))
        return path.name


def _compare(config: Any, members: Mapping[tuple[str, int], Any]) -> None:
    configs.check_members(config, members)


def _not_utf8(root: Path) -> list[str]:
    """Return the directories of a repository that no model can be, as they may be printed."""
    with os.scandir(os.fsencode(root)) as entries:
        names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(b"."))
    shown = [name.decode("utf-8", "backslashreplace") for name in names]
    return [text for name, text in zip(names, shown, strict=True) if text.encode() != name]


def report(findings: Sequence[Finding], models: int) -> Iterator[str]:
    """Yield the lines of a report for people."""
    yield from map(str, findings)
    errors = sum(not finding.warning for finding in findings)
    broken = len({finding.model for finding in findings if not finding.warning})
    yield f"{models} models, {broken} with errors: {errors} errors, {len(findings) - errors} warnings"
