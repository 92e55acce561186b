"""Loads and unloads that models ask for: the repository's own verbs, and no waiting in a circle.

A model that is still being loaded holds its name's turn: whoever loads or unloads that model waits for it. So what it
asks for then must not lead back to itself. Satisfies ``backends.host.ModelControl``. Knows nothing of workers.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import Any

from triton_fast.backends.host import Caller
from triton_fast.errors import InvalidArg, NotFound, Unavailable
from triton_fast.repository.lifecycle import ModelRepositoryManager

MAX_VERSION_DIGITS = 18


class NestedControl:
    """``repository`` gives the repository when there is one: it is made after what this is made for."""

    def __init__(self, repository: Callable[[], ModelRepositoryManager[Any]]) -> None:
        self._repository = repository
        self._lock = threading.Lock()
        # Model that is being loaded -> models that it waits for meanwhile.
        self._waits: dict[str, Counter[str]] = {}

    def load_model(self, caller: Caller, name: str, config: str, files: Mapping[str, bytes]) -> None:
        """Load or reload. Raises ServerError; Unavailable where it would wait for the caller's own load."""
        self._repository().load(
            name, config_json=config or None, files=files or None, is_nested=True, asking=partial(self._waiting, caller)
        )

    def unload_model(self, caller: Caller, name: str, unload_dependents: bool) -> None:
        self._repository().unload(name, unload_dependents=unload_dependents, asking=partial(self._waiting, caller))

    def is_model_ready(self, caller: Caller, name: str, version: str) -> bool:
        try:
            return self._repository().is_ready(name, _version(version))
        except NotFound:
            return False  # models ask so whether they have to load it

    @contextmanager
    def _waiting(self, caller: Caller, name: str) -> Iterator[None]:
        if not caller.loading:
            # It is served, and holds nobody up.
            yield
            return
        name = self._repository().plain_name(name)
        with self._lock:
            way = self._way(name, caller.model)
            if way is not None:
                shown = " -> ".join([caller.model, *way])
                raise Unavailable(f"model '{caller.model}' is being loaded and would wait for itself: {shown}")
            targets = self._waits.setdefault(caller.model, Counter())
            targets[name] += 1
        try:
            yield
        finally:
            with self._lock:
                targets[name] -= 1
                if targets[name] == 0:
                    del targets[name]
                if not targets:
                    self._waits.pop(caller.model, None)

    def _way(self, start: str, end: str) -> list[str] | None:
        """Return the models from ``start`` to ``end`` by what each waits for; None when there is no way."""
        ways = [[start]]
        seen = {start}
        while ways:
            way = ways.pop()
            if way[-1] == end:
                return way
            for target in self._waits.get(way[-1], ()):
                if target not in seen:
                    seen.add(target)
                    ways.append([*way, target])
        return None


def _version(text: str) -> int:
    if not text:
        return -1
    if not text.isascii() or not text.isdigit() or len(text) > MAX_VERSION_DIGITS:
        raise InvalidArg(
            f"failed to get model version from specified version string '{text}' (details: stol), "
            "version should be an integral value > 0"
        )
    return int(text)
