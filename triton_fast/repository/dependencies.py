"""Which ensemble depends on which models: orders, cycles, and whom a change concerns.

Source: spec/model_config.md section 7. Pure but for one lock; knows neither configs nor what is loaded.
"""

from __future__ import annotations

import threading
from collections.abc import Collection, Iterable, Mapping

# Ensembles in ensembles: a request passes this many queues at most.
MAX_DEPTH = 64

Edges = Mapping[str, Collection[str]]


def levels(edges: Edges) -> list[list[str]]:
    """Return the models in the order to load them: those of a level need only those of earlier ones.

    Those on a cycle share a level; who is behind one comes after it. Members that are no key count as there.
    """
    left = {name: {member for member in members if member in edges} for name, members in edges.items()}
    found = []
    while left:
        level = sorted(name for name, members in left.items() if not members & left.keys())
        if not level:
            level = sorted(name for name in left if cycle(name, left))
        found.append(level)
        for name in level:
            del left[name]
    return found


def cycle(name: str, edges: Edges) -> list[str]:
    """Return a shortest way from a model through its members back to itself, both ends named; empty if none."""
    ways = [[name]]
    seen = set()
    for way in ways:
        for member in sorted(edges.get(way[-1], ())):
            if member == name:
                return [*way, name]
            if member not in seen:
                seen.add(member)
                ways.append([*way, member])
    return []


def is_too_deep(name: str, edges: Edges) -> bool:
    """Tell whether ensembles are nested below ``name`` more than MAX_DEPTH deep. Ends on cycles too."""
    level = {name}
    for _ in range(MAX_DEPTH):
        level = {member for one in level for member in edges.get(one, ()) if edges.get(member)}
        if not level:
            return False
    return True


def dependents(names: Iterable[str], edges: Edges) -> list[str]:
    """Return all ensembles that depend on one of the models, also through others, each after those it depends on."""
    users: dict[str, list[str]] = {}
    for name, members in edges.items():
        for member in members:
            users.setdefault(member, []).append(name)
    found: set[str] = set()
    todo = list(names)
    while todo:
        for user in users.get(todo.pop(), ()):
            if user not in found:
                found.add(user)
                todo.append(user)
    return [name for level in levels({name: edges[name] for name in found}) for name in level]


class Graph:
    """The members of each ensemble that is served or should be. Safe to use from any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._edges: dict[str, frozenset[str]] = {}

    def edges(self) -> dict[str, frozenset[str]]:
        """Return a copy."""
        with self._lock:
            return dict(self._edges)

    def members(self, name: str) -> frozenset[str]:
        with self._lock:
            return self._edges.get(name, frozenset())

    def replace(self, name: str, members: Iterable[str]) -> None:
        """Set an ensemble's members; without any it is no ensemble."""
        with self._lock:
            if found := frozenset(members):
                self._edges[name] = found
            else:
                self._edges.pop(name, None)

    def add(self, name: str, members: Iterable[str]) -> None:
        """Add to an ensemble's members: what serves and what is about to depend on different ones."""
        with self._lock:
            if found := self._edges.get(name, frozenset()).union(members):
                self._edges[name] = found

    def is_used(self, name: str) -> bool:
        """Tell whether an ensemble has this member."""
        with self._lock:
            return any(name in members for members in self._edges.values())

    def dependents(self, names: Iterable[str]) -> list[str]:
        """As ``dependents`` above."""
        return dependents(names, self.edges())
