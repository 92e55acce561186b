"""The graph of ensembles and members: orders, cycles, depth, and whom a change concerns."""

from __future__ import annotations

import random

import pytest

from triton_fast.repository.dependencies import MAX_DEPTH, Graph, cycle, dependents, is_too_deep, levels


@pytest.mark.parametrize(
    ("edges", "expected"),
    [
        ({}, []),
        ({"b": [], "a": []}, [["a", "b"]]),
        ({"e": ["a"], "a": []}, [["a"], ["e"]]),
        ({"e": ["elsewhere"]}, [["e"]]),
        ({"f": ["e", "a"], "e": ["a", "b"], "a": [], "b": [], "c": []}, [["a", "b", "c"], ["e"], ["f"]]),
        ({"x": ["y"], "y": ["x"], "z": ["x"], "a": []}, [["a"], ["x", "y"], ["z"]]),
        ({"s": ["s"]}, [["s"]]),
    ],
)
def test_levels(edges, expected):
    assert levels(edges) == expected


def test_levels_of_random_graphs_put_everybody_after_its_members():
    rng = random.Random(5)
    for _ in range(200):
        n = rng.randrange(1, 30)
        names = [f"m{k}" for k in range(n)]
        rng.shuffle(names)
        edges = {name: rng.sample(names[:k], rng.randrange(k + 1)) for k, name in enumerate(names)}
        at = {name: index for index, level in enumerate(levels(edges)) for name in level}
        assert at.keys() == edges.keys()
        assert all(at[member] < at[name] for name, members in edges.items() for member in members)
        assert not any(cycle(name, edges) for name in names)


@pytest.mark.parametrize(
    ("name", "edges", "expected"),
    [
        ("a", {"a": ["a"]}, ["a", "a"]),
        ("a", {"a": ["b"], "b": ["a"]}, ["a", "b", "a"]),
        ("b", {"a": ["b"], "b": ["a"]}, ["b", "a", "b"]),
        ("a", {"a": ["x", "c"], "c": ["d"], "d": ["a", "c"]}, ["a", "c", "d", "a"]),
        ("o", {"o": ["a"], "a": ["b"], "b": ["a"]}, []),  # looks at a cycle, is on none
        ("a", {"a": ["b", "c"], "b": ["d"], "c": ["d"]}, []),
        ("a", {}, []),
    ],
)
def test_cycle(name, edges, expected):
    assert cycle(name, edges) == expected


def test_depth():
    chain = {f"e{k}": [f"e{k + 1}"] for k in range(MAX_DEPTH + 1)}
    assert is_too_deep("e0", chain)
    assert not is_too_deep("e1", chain)
    assert is_too_deep("x", {"x": ["y"], "y": ["x"]})


def test_dependents_come_in_the_order_to_look_at_them():
    edges = {"f": ["e"], "e": ["a"], "g": ["a", "f"], "h": ["b"]}
    assert dependents(["a"], edges) == ["e", "f", "g"]
    assert dependents(["f"], edges) == ["g"]
    assert dependents(["a", "b"], edges) == ["e", "h", "f", "g"]
    assert dependents(["nobody"], edges) == []
    assert sorted(dependents(["x"], {"x": ["y"], "y": ["x"]})) == ["x", "y"]


def test_graph():
    graph = Graph()
    graph.add("e", ["a"])
    graph.add("e", ["b"])
    graph.add("plain", [])
    assert graph.edges() == {"e": {"a", "b"}}
    assert graph.is_used("a")
    graph.replace("e", ["b"])
    assert (graph.is_used("a"), graph.is_used("b")) == (False, True)
    assert graph.members("e") == {"b"}
    assert graph.dependents(["b"]) == ["e"]
    graph.replace("e", [])
    assert graph.edges() == {}
    assert graph.members("e") == frozenset()
