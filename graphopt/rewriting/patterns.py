"""Patterns: a small part of a graph written as ONNX code, and where it occurs.

Inside `Rule.pattern(self, op, x, w)` every argument after `op` stands for any value, and
`op.Conv(x, w)` for a node. What can be written:

    op.Add(x, 1.0)                    a constant: every element equal to it
    op.Conv(x, w, ...)                further inputs may follow (`...`); without it none may
    op.Resize(x, None, s)             an absent optional input
    op.Transpose(x, perm=[0, 2, 1])   an attribute with this value (or its ONNX default)
    op.Softmax(x, as_="softmax")      the node, bound to a name for `check` and `rewrite`
    op.Gelu(x, domain_="com.microsoft")
    op.Split(x, outputs_=2)           a tuple of two values
    op.any(p, q)                      either

Add, Mul and the other commutative operators match in either order. The same variable twice means
the same value twice.
"""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import EllipsisType
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from graphopt.errors import UsageError, nearest
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_value

__all__ = [
    "AnyOf",
    "Match",
    "NodePattern",
    "Output",
    "Var",
    "check_operator",
    "compile_pattern",
    "match_at",
    "possible",
]

COMMUTATIVE = frozenset({"Add", "Mul", "And", "Or", "Xor", "Max", "Min", "Equal", "Sum", "Mean"})
#: Constants up to this many elements are compared with a number in a pattern.
SCALAR_LIMIT = 1 << 16


@dataclasses.dataclass(frozen=True, eq=False)
class Var:
    """Any value, bound to `name`."""

    name: str


@dataclasses.dataclass(frozen=True, eq=False)
class Const:
    """A constant tensor whose every element equals `value` (to 1e-6, relative)."""

    value: float


@dataclasses.dataclass(frozen=True, eq=False)
class NodePattern:
    """A node with this operator, inputs and attributes."""

    op_type: str
    domain: str
    inputs: tuple[Pattern | None, ...]
    open_ended: bool
    attributes: Mapping[str, Any]
    name: str | None
    outputs: int


@dataclasses.dataclass(frozen=True, eq=False)
class Output:
    """One output of a node."""

    node: NodePattern
    index: int


@dataclasses.dataclass(frozen=True, eq=False)
class AnyOf:
    """The first alternative that leads to a whole match."""

    options: tuple[Pattern, ...]


Pattern = Var | Const | Output | AnyOf


@dataclasses.dataclass(frozen=True)
class Match:
    """One occurrence: values and nodes bound by name, and every node matched (root first)."""

    bindings: Mapping[str, ir.Value | ir.Node]
    nodes: tuple[ir.Node, ...]

    @property
    def root(self) -> ir.Node:
        """The node whose outputs the rewrite replaces."""
        return self.nodes[0]


class _Operators:
    """The `op` handed to `Rule.pattern`: any attribute is an operator."""

    def any(self, *options: Any) -> AnyOf:
        return AnyOf(tuple(_as_pattern(o) for o in options))

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        def make(
            *inputs: Any,
            as_: str | None = None,
            domain_: str = "",
            outputs_: int = 1,
            **attributes: Any,
        ) -> Output | tuple[Output, ...]:
            check_operator(op_type, domain_)
            open_ended = bool(inputs) and isinstance(inputs[-1], EllipsisType)
            closed = inputs[:-1] if open_ended else inputs
            args = tuple(None if i is None else _as_pattern(i) for i in closed)
            node = NodePattern(op_type, domain_, args, open_ended, attributes, as_, outputs_)
            made = tuple(Output(node, i) for i in range(outputs_))
            return made[0] if outputs_ == 1 else made

        return make


def check_operator(op_type: str, domain: str = "") -> None:
    """Raise UsageError for a standard operator that there is not; other domains may have any."""
    if domain == "" and not onnx.defs.has(op_type):
        names = {s.name for s in onnx.defs.get_all_schemas() if not s.domain}
        raise UsageError(f"there is no ONNX operator '{op_type}'{nearest(op_type, names)}")


def _as_pattern(x: Any) -> Pattern:
    if isinstance(x, (Var, Const, Output, AnyOf)):
        return x
    if isinstance(x, (int, float)):
        return Const(float(x))
    raise TypeError(f"{x!r} cannot stand in a pattern: use a variable, a number or op.Name(...)")


def compile_pattern(function: Callable[..., Any]) -> tuple[NodePattern, ...]:
    """The root node patterns that `function(op, x, ...)` describes (several if it ends in any)."""
    names = list(inspect.signature(function).parameters)[1:]
    result = function(_Operators(), *(Var(n) for n in names))
    if isinstance(result, tuple):
        result = result[0]
    options = result.options if isinstance(result, AnyOf) else (result,)
    roots = []
    for option in options:
        if not isinstance(option, Output):
            raise TypeError("a pattern must end in an operator")
        roots.append(option.node)
    return tuple(roots)


def possible(pattern: NodePattern, made_by: tuple[str, ...]) -> bool:
    """False where the operators that make a node's inputs show at once that it cannot match."""
    makers = _makers(pattern)
    if makers is None or len(made_by) < len(makers):
        return True
    if all(m is None or h in m for m, h in zip(makers, made_by, strict=False)):
        return True
    if len(makers) != 2 or pattern.op_type not in COMMUTATIVE:
        return False
    a, b = makers
    return (a is None or made_by[1] in a) and (b is None or made_by[0] in b)


@cache
def _makers(pattern: NodePattern) -> tuple[frozenset[str] | None, ...] | None:
    """For each input, the operators that may produce it (None: anything); None if all may be."""
    found = tuple(None if p is None else _made_by(p) for p in pattern.inputs)
    return None if all(m is None for m in found) else found


def _made_by(pattern: Pattern) -> frozenset[str] | None:
    if isinstance(pattern, Var):
        return None
    if isinstance(pattern, Const):
        return frozenset({"Constant"})
    if isinstance(pattern, Output):
        return frozenset({pattern.node.op_type})
    parts = [_made_by(option) for option in pattern.options]
    return None if None in parts else frozenset[str]().union(*(p for p in parts if p is not None))


def match_at(pattern: NodePattern, node: ir.Node) -> Match | None:
    """The match of `pattern` whose root is `node`, or None. Interior nodes share its graph."""
    for state in _match_node(pattern, node, _State({}, (), node.graph)):
        return Match(state.bindings, state.nodes)
    return None


@dataclasses.dataclass(frozen=True)
class _State:
    bindings: dict[str, ir.Value | ir.Node]
    nodes: tuple[ir.Node, ...]
    graph: Any

    def bind(self, name: str, to: ir.Value | ir.Node) -> _State | None:
        bound = self.bindings.get(name)
        if bound is not None:
            return self if bound is to else None
        return _State({**self.bindings, name: to}, self.nodes, self.graph)


def _match_value(pattern: Pattern, value: ir.Value | None, state: _State) -> Iterator[_State]:
    if value is None:
        return
    if isinstance(pattern, Var):
        bound = state.bind(pattern.name, value)
        if bound is not None:
            yield bound
    elif isinstance(pattern, Output):
        node = value.producer()
        if node is not None and value.index() == pattern.index:
            yield from _match_node(pattern.node, node, state)
    elif isinstance(pattern, AnyOf):
        for option in pattern.options:
            yield from _match_value(option, value, state)
    elif _equals(value, pattern.value):
        yield state


def _match_node(pattern: NodePattern, node: ir.Node, state: _State) -> Iterator[_State]:
    if node.op_type != pattern.op_type or node.graph is not state.graph:
        return
    if (node.domain or "") != pattern.domain and not (
        node.domain == "ai.onnx" and pattern.domain == ""
    ):
        return
    if not all(_attribute_is(node, k, v) for k, v in pattern.attributes.items()):
        return
    inputs = list(node.inputs)
    while inputs and inputs[-1] is None:
        inputs.pop()
    want = len(pattern.inputs)
    if len(inputs) > want and not pattern.open_ended:
        return
    inputs += [None] * (want - len(inputs))
    if node not in state.nodes:
        state = _State(state.bindings, (*state.nodes, node), state.graph)
    if pattern.name is not None:
        bound = state.bind(pattern.name, node)
        if bound is None:
            return
        state = bound
    yield from _match_inputs(pattern.inputs, inputs[:want], state)
    if pattern.op_type in COMMUTATIVE and want == 2:
        yield from _match_inputs(pattern.inputs, inputs[1::-1], state)


def _match_inputs(
    patterns: tuple[Pattern | None, ...], values: list[ir.Value | None], state: _State
) -> Iterator[_State]:
    if not patterns:
        yield state
    elif patterns[0] is None:
        if values[0] is None:
            yield from _match_inputs(patterns[1:], values[1:], state)
    else:
        for after in _match_value(patterns[0], values[0], state):
            yield from _match_inputs(patterns[1:], values[1:], after)


def _equals(value: ir.Value, number: float) -> bool:
    tensor = constant_value(value)
    if tensor is None or not 0 < tensor.size <= SCALAR_LIMIT:
        return False
    array = tensor.numpy()
    if array.dtype.kind not in "fiu" and tensor.dtype not in (ir.DataType.BFLOAT16,):
        return False
    first = float(array.flat[0])  # most that differ do so here, and comparing arrays takes long
    if first != number and not abs(first - number) <= 1e-6 * abs(number) < math.inf:
        return False
    return array.size == 1 or bool(np.allclose(array.astype(np.float64), number, rtol=1e-6, atol=0))


def _attribute_is(node: ir.Node, name: str, want: Any) -> bool:
    got = attribute(node, name)
    if isinstance(want, (list, tuple)):
        return got is not None and list(got) == list(want)
    if isinstance(want, float):
        return got is not None and bool(np.isclose(got, want, rtol=1e-6))
    return bool(got == want)
