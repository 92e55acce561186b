"""Random ensembles against the same graph worked out in plain Python, with streams and failing steps."""

from __future__ import annotations

from dataclasses import dataclass, field

from hypothesis import example, given, settings
from hypothesis import strategies as st

from tests.helpers.ensemble_models import Zoo, ints, io, mapped, step, values, zoo
from tests.helpers.models import LONG_S, counters_at_base
from triton_fast._native.sched.inprocess import StreamCall
from triton_fast.errors import InvalidArg, ServerError

__all__ = ["counters_at_base"]

INPUTS = ("X0", "X1", "X2")


@dataclass(frozen=True)
class Node:
    """A step: it adds its inputs and ``bias``; a stream gives ``n`` of that, each one more."""

    takes: tuple[str, ...]
    gives: tuple[str, ...]
    bias: int
    n: int = -1
    bad: bool = False


@dataclass
class Graph:
    nodes: list[Node] = field(default_factory=list)
    outputs: list[str] = field(default_factory=list)
    wanted: list[str] = field(default_factory=list)


@st.composite
def graphs(draw, streams):
    graph = Graph()
    tensors = list(INPUTS)
    depth = dict.fromkeys(tensors, 0)  # streams that a tensor has come through; one chain of them only
    deepest = 0
    for k in range(draw(st.integers(1, 9))):
        takes = tuple(draw(st.lists(st.sampled_from(tensors), min_size=1, max_size=3)))
        gives = tuple(f"t{k}_{j}" for j in range(draw(st.integers(1, 2))))
        level = max(depth[name] for name in takes)
        n = -1
        if streams and level == deepest and deepest < 2 and draw(st.booleans()):
            n = draw(st.integers(0, 3))
            deepest = level = level + 1
        graph.nodes.append(Node(takes, gives, draw(st.integers(-3, 3)), n, draw(st.integers(0, 19)) == 0))
        for name in gives:
            tensors.append(name)
            depth[name] = level
    made = tensors[len(INPUTS) :]
    graph.outputs = draw(st.lists(st.sampled_from(made), min_size=1, max_size=4, unique=True))
    graph.wanted = draw(st.lists(st.sampled_from(graph.outputs), unique=True))
    return graph


class Failed(Exception):
    pass


def needed(graph):
    """Numbers of the steps that the wanted outputs need."""
    wanted = set(graph.wanted or graph.outputs)
    found = []
    for k in range(len(graph.nodes) - 1, -1, -1):
        if wanted & set(graph.nodes[k].gives):
            found.append(k)
            wanted |= set(graph.nodes[k].takes)
    return found[::-1]


def worked_out(graph, known):
    """The answers, as a list of {output: number}; Failed if a step fails."""
    frames = [(0, dict(known))]  # (level, tensors); a stream replaces each frame by its children
    level_of = dict.fromkeys(known, 0)
    level = 0
    reached = [True]  # by level: whether its stream has given anything, so that what takes from it runs
    for k in needed(graph):
        node = graph.nodes[k]
        mine = max(level_of[name] for name in node.takes)
        if node.bad and reached[mine]:
            raise Failed
        if node.n >= 0:
            mine += 1
            level = max(level, mine)
            reached.append(reached[-1] and node.n > 0)
        fresh = []
        for _, tensors in frames:
            total = sum(tensors[name] for name in node.takes) + node.bias
            if node.n < 0:
                fresh.append((level, {**tensors, **{name: total + j for j, name in enumerate(node.gives)}}))
            else:
                fresh += [
                    (level, {**tensors, **{name: total + i + j for j, name in enumerate(node.gives)}})
                    for i in range(node.n)
                ]
        frames = fresh
        level_of.update(dict.fromkeys(node.gives, mine))
    names = graph.wanted or graph.outputs
    answers = [{name: tensors[name] for name in names} for _, tensors in frames]
    if max(level_of[name] for name in names) == 0:
        return answers[:1]
    return answers


def member(z: Zoo, k: int, node: Node) -> None:
    own_in = [f"I{j}" for j in range(len(node.takes))]
    own_out = [f"O{j}" for j in range(len(node.gives))]

    def total(given):
        return sum(given[name][0] for name in own_in) + node.bias

    def once(requests):
        if node.bad:
            return [InvalidArg("bad step") for _ in requests]
        return mapped(lambda given: {name: [total(given) + j] for j, name in enumerate(own_out)})(requests)

    def stream(requests):
        def responses(given):
            if node.bad:
                raise InvalidArg("bad step")
            for i in range(node.n):
                yield {name: ints(total(given) + i + j) for j, name in enumerate(own_out)}

        return [responses({name: values(tensor) for name, tensor in one.items()}) for one in requests]

    z.add(
        f"m{k}", *([once, once] if node.n < 0 else [stream]), decoupled=node.n >= 0,
        inputs=[io(name) for name in own_in], outputs=[io(name) for name in own_out],
    )  # fmt: skip


def steps_of(graph):
    return [
        step(
            f"m{k}",
            {f"I{j}": name for j, name in enumerate(node.takes)},
            {f"O{j}": name for j, name in enumerate(node.gives)},
            decoupled=node.n >= 0,
        )
        for k, node in enumerate(graph.nodes)
    ]


def compare(graph, numbers, limit):
    known = dict(zip(INPUTS, numbers, strict=True))
    try:
        expected = worked_out(graph, known)
    except Failed:
        expected = None
    with zoo() as z:
        for k, node in enumerate(graph.nodes):
            member(z, k, node)
        model = z.ensemble(
            "e", steps_of(graph), inputs=[io(name) for name in INPUTS], outputs=[io(name) for name in graph.outputs],
            max_inflight=limit,
        )  # fmt: skip
        call = StreamCall(model, [(name, *ints(value)) for name, value in known.items()], graph.wanted)
        made = []
        try:
            while (taken := call.take(LONG_S)) is not None:
                if taken[0]:
                    made.append({name: values(tensor)[0] for name, tensor in taken[0].items()})
        except ServerError as error:
            assert str(error) == "in ensemble 'e', bad step"
            assert expected is None
            return
        # Streams of streams run beside each other: the order between them is nobody's.
        ordered = sum(1 for node in graph.nodes if node.n >= 0) < 2
        assert expected is not None
        assert made == expected if ordered else by_number(made) == by_number(expected)
        ran = {k for k in range(len(graph.nodes)) if z.models[f"m{k}"].snapshot()["execution_count"]}
        assert ran <= set(needed(graph))


# A step that fails beside a stream that gives nothing: the request fails all the same.
BESIDE_NOTHING = Graph([Node(("X0",), ("a",), 0, n=0), Node(("X0",), ("b",), 0, bad=True)], ["a", "b"])


def by_number(answers):
    return sorted(tuple(sorted(answer.items())) for answer in answers)


@settings(max_examples=60, deadline=None)
@given(graphs(streams=False), st.tuples(*[st.integers(-100, 100)] * 3), st.sampled_from([0, 0, 1, 2]))
def test_graphs(graph, numbers, limit):
    compare(graph, numbers, limit)


@settings(max_examples=60, deadline=None)
@given(graphs(streams=True), st.tuples(*[st.integers(-100, 100)] * 3), st.sampled_from([0, 0, 1, 2]))
@example(BESIDE_NOTHING, (0, 0, 0), 0)
def test_graphs_with_streams(graph, numbers, limit):
    compare(graph, numbers, limit)
