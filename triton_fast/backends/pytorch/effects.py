"""What a program of torch.export changes: its own state, its inputs, or neither. In doubt, both.

The signature tells it only of programs without operators that write in place; those are as their model wrote them.
"""

from __future__ import annotations

from typing import Any

_INPUT, _STATE = "input", "state"
_ALL = frozenset((_INPUT, _STATE))
# Arguments of normalisation that make it update its statistics, which no schema tells.
_TRAINING = frozenset(("training", "use_input_stats", "train"))


def effects(program: Any) -> tuple[bool, bool]:
    """Return whether calls change the program's state, and whether they may write to their inputs."""
    signature = program.graph_signature
    try:
        found = _written(program)
    except Exception:
        found = set(_ALL)
    return bool(signature.buffers_to_mutate) or _STATE in found, (
        bool(signature.user_inputs_to_mutate) or _INPUT in found
    )


def _written(program: Any) -> set[str]:
    given = {
        getattr(spec.arg, "name", "") for spec in program.graph_signature.input_specs if spec.kind.name == "USER_INPUT"
    }
    # Where the memory of a node's value comes from; nothing: an operator has made it.
    origins: dict[Any, set[str]] = {}
    found: set[str] = set()
    for node in program.graph.nodes:
        sources = {origin for one in node.all_input_nodes for origin in origins[one]}
        origins[node] = set()
        if node.op == "placeholder":
            origins[node] = {_INPUT if node.name in given else _STATE}
        elif node.op == "get_attr":
            origins[node] = {_STATE}
        elif node.op == "call_function":
            schema = getattr(node.target, "_schema", None)
            if schema is None:
                # An item of several results, or arithmetic of sizes; all else calls graphs of its own.
                if getattr(node.target, "__module__", "") != "_operator":
                    found |= sources
                origins[node] = sources
                continue
            found |= _by(node, schema, origins)
            if any(result.alias_info is not None for result in schema.returns):
                origins[node] = sources
    return found


def _by(node: Any, schema: Any, origins: dict[Any, set[str]]) -> set[str]:
    found: set[str] = set()
    for at, argument in enumerate(schema.arguments):
        value = node.args[at] if at < len(node.args) else node.kwargs.get(argument.name)
        if argument.alias_info is not None and argument.alias_info.is_write:
            for one in value if isinstance(value, (list, tuple)) else [value]:
                found |= origins.get(one, set())
        if argument.name in _TRAINING and value not in (False, None) and "dropout" not in schema.name:
            found.add(_STATE)
    return found
