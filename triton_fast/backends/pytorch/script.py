"""TorchScript: opens model.pt, reads forward's arguments and whether calls leave something behind.

The archive tells names of arguments, not datatypes or shapes.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from triton_fast.backends.pytorch.opened import Argument, Opened
from triton_fast.backends.pytorch.texts import short
from triton_fast.errors import Internal, InvalidArg

_TENSORS = ("Tensor", "Optional[Tensor]")
_TEXTS = ("List[str]", "Optional[List[str]]")
_DICT = "Dict[str, Tensor]"
# What an operator may change.
_INPUT, _STATE = "input", "state"
# Values pass through these unchanged.
_CARRY = frozenset({
    "prim::ListConstruct", "prim::TupleConstruct", "prim::DictConstruct", "prim::ListUnpack", "prim::TupleUnpack",
    "prim::TupleIndex", "prim::unchecked_cast", "prim::unchecked_unwrap_optional", "aten::__getitem__",
})  # fmt: skip


def open_script(torch: Any, path: Path, device: Any, prefix: str) -> Opened:
    """Return the model. Raises InvalidArg or Internal with the cause."""
    try:
        # Loaded where it was saved unless a device is asked for; on a machine without a GPU always on the CPU.
        module = torch.jit.load(str(path), map_location=device or (None if torch.cuda.is_available() else "cpu"))
        module.eval()
        arguments = list(module.forward.schema.arguments)[1:]
    except AttributeError:
        raise InvalidArg(f"{prefix}: the module has no method 'forward'") from None
    except Exception as error:
        raise InvalidArg(f"{prefix}: {short(error)}") from None
    stateless, writes = _effects(torch, module)
    types = [str(argument.type) for argument in arguments]
    made = Opened((), module, stateless=stateless, writes_inputs=writes, module=module)
    if types[:1] == [_DICT] and all(argument.has_default_value() for argument in arguments[1:]):
        made.is_dict = True
        return made
    inputs = []
    for argument, kind in zip(arguments, types, strict=True):
        needed = not argument.has_default_value()
        if kind not in _TENSORS and kind not in _TEXTS:
            if not needed:
                break
            if kind.startswith("Dict["):
                raise Internal(
                    f"{prefix}: Multiple inputs of kind DictType were detected. Only a single input of type "
                    "Dict(str, Tensor) is supported."
                )
            raise Internal(
                f"{prefix}: An input of type '{kind}' was detected in the model. Only a single input of type "
                "Dict(str, Tensor) or input(s) of type Tensor are supported."
            )
        inputs.append(Argument((argument.name,), texts=kind in _TEXTS, needed=needed))
    made.inputs = tuple(inputs)
    return made


def _effects(torch: Any, module: Any) -> tuple[bool, bool]:
    """Return whether calls leave nothing behind, and whether they may write to their inputs; in doubt no and yes."""
    try:
        graph = module.inlined_graph
        inputs = [value.debugName() for value in graph.inputs()]
        origins = _Origins(torch, set(inputs[1:]))
        found = set()
        for node in _all(graph):
            found |= origins.written(node)
    except Exception:
        return False, True
    return _STATE not in found, _INPUT in found or _STATE in found


def _all(block: Any) -> Iterable[Any]:
    for node in block.nodes():
        yield node
        for inner in node.blocks():
            yield from _all(inner)


class _Origins:
    """Where values come from: an argument, the module's own state, or neither (made by an operator)."""

    def __init__(self, torch: Any, inputs: set[str]) -> None:
        self._parse = torch._C.parse_schema
        self._inputs = inputs
        self._known: dict[str, set[str]] = {}

    def written(self, node: Any) -> set[str]:
        kind = node.kind()
        if kind == "prim::SetAttr" or kind.startswith(("prim::Call", "prim::PythonOp", "prim::fork", "prim::rpc")):
            return {_STATE}
        if kind.startswith("prim::") and kind in _CARRY:
            return set()
        schema = self._schema(node)
        if schema is None:
            return set() if kind.startswith("prim::") else {_STATE}
        found: set[str] = set()
        values = list(node.inputs())
        for argument, value in zip(schema.arguments, values, strict=False):
            if argument.alias_info is not None and argument.alias_info.is_write:
                found |= self._of(value)
            if argument.name == "training" and value.node().kind() != "prim::Constant":
                # Normalisation with statistics that it updates, if that is decided while it runs.
                found.add(_STATE)
            elif argument.name == "training" and value.toIValue() and "dropout" not in kind:
                found.add(_STATE)
        return found

    def _schema(self, node: Any) -> Any:
        text = node.schema()
        return None if not text or text == "(no schema)" else self._parse(text)

    def _of(self, value: Any) -> set[str]:
        name = value.debugName()
        if name not in self._known:
            self._known[name] = set()
            self._known[name] = self._find(value)
        return self._known[name]

    def _find(self, value: Any) -> set[str]:
        node = value.node()
        kind = node.kind()
        if kind == "prim::Param":
            return {_INPUT} if value.debugName() in self._inputs else {_INPUT, _STATE}
        if kind in ("prim::GetAttr", "prim::If", "prim::Loop"):
            return {_STATE}
        if kind == "prim::Constant":
            return {_STATE} if "Tensor" in str(value.type()) else set()
        values = list(node.inputs())
        schema = self._schema(node)
        if schema is not None and kind not in _CARRY:
            if all(result.alias_info is None for result in schema.returns):
                return set()
            values = [
                one for argument, one in zip(schema.arguments, values, strict=False) if argument.alias_info is not None
            ]
        return {origin for one in values for origin in self._of(one)}
