"""A package of its own for each in-process model: two models may have files of the same name, and a reload is fresh.

What a worker finds through sys.path the model's modules find through their own ``__import__``: files beside model.py,
after whatever else has that name. Knows nothing of what a model is.
"""

from __future__ import annotations

import builtins
import importlib.util
import itertools
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder, SourceFileLoader
from pathlib import Path
from types import ModuleType
from typing import Any

_numbers = itertools.count(1)


class ModelPackage:
    """``folders``: where its modules are. ``given``: what is put into the globals of each before it runs."""

    def __init__(self, folders: Sequence[str], given: dict[str, Any]) -> None:
        self.name = f"_python_model_{next(_numbers)}"
        self._folders = list(folders)
        self._globals = {**given, "__builtins__": {**vars(builtins), "__import__": self._import}}
        self._is_ours: dict[str, bool] = {}
        package = ModuleType(self.name)
        package.__path__ = self._folders
        sys.modules[self.name] = package
        _finder.packages[self.name] = self

    def load(self, path: str) -> ModuleType:
        """Return the module of the model's file. Whatever it raises, as it is."""
        name = f"{self.name}.{Path(path).stem}"
        spec = importlib.util.spec_from_file_location(name, path, loader=_Loader(name, path, self._globals))
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        spec.loader.exec_module(module)
        return module

    def close(self) -> None:
        """Forget the modules; whoever has one keeps it."""
        _finder.packages.pop(self.name, None)
        # A list first, made in one step: other threads import meanwhile.
        for name in list(sys.modules):
            if name == self.name or name.startswith(self.name + "."):
                sys.modules.pop(name, None)

    def find(self, name: str, path: Sequence[str] | None) -> ModuleSpec | None:
        spec = PathFinder.find_spec(name, path)
        if spec is not None and isinstance(spec.loader, SourceFileLoader):
            spec.loader = _Loader(name, spec.loader.path, self._globals)
        return spec

    def _import(
        self, name: str, globals: Any = None, locals: Any = None, fromlist: Sequence[str] = (), level: int = 0
    ) -> ModuleType:
        top = name.partition(".")[0]
        if level == 0 and self._ours(top):
            # Something from it is asked for, so that the last module of the name is what comes.
            found = __import__(f"{self.name}.{name}", globals, locals, fromlist or ("__name__",), 0)
            return found if fromlist else sys.modules[f"{self.name}.{top}"]
        return __import__(name, globals, locals, fromlist, level)

    def _ours(self, top: str) -> bool:
        known = self._is_ours.get(top)
        if known is None:
            places = [Path(folder, top) for folder in self._folders]
            is_here = any(place.is_dir() or place.with_name(top + ".py").is_file() for place in places)
            known = self._is_ours[top] = is_here and not _is_installed(top)
        return known


class _Finder:
    """One for all, and for ever: who searches sys.meta_path would miss the next finder when one is taken out."""

    def __init__(self) -> None:
        self.packages: dict[str, ModelPackage] = {}
        # Before the one that finds files, whose loader would be another.
        sys.meta_path.insert(0, self)

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        package = self.packages.get(name.partition(".")[0])
        return None if package is None else package.find(name, path)


class _Loader(SourceFileLoader):
    def __init__(self, name: str, path: str, given: dict[str, Any]) -> None:
        super().__init__(name, path)
        self._given = given

    def exec_module(self, module: ModuleType) -> None:
        vars(module).update(self._given)
        super().exec_module(module)


def _is_installed(top: str) -> bool:
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:
        # Of modules that were made and not found, such as __main__.
        return True
    # A directory without __init__.py gives way to a module further on.
    return spec is not None and (spec.origin is not None or spec.submodule_search_locations is None)


_finder = _Finder()
