"""Shape inference: type, shape and small integer data of every value, static and symbolic.

One walk in topological order. Operators that move shapes and shape data about are computed here
(`operators`), every other one by ONNX's own inference for that single node, so no weight is
ever read and the cost is linear. A dimension that cannot be told gets an unknown of its own, so
two equal expressions always denote equal sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.symbolic import Dim, Expr, clean_name, symbol
from graphopt.graph.axes import axis_name
from graphopt.graph.constants import constant_value
from graphopt.graph.traverse import all_graphs

__all__ = ["DATA_LIMIT", "Fact", "Shapes"]

#: Values up to this many elements are followed as data.
DATA_LIMIT = 128


class Fact(NamedTuple):
    """What is known about a value on every run.

    Attributes:
        dtype: element type of a tensor.
        dims: its shape, or None if not even the rank is known.
        data: its elements: an array of its dtype if all are known, an object array of
            `int` and `Expr` if some are symbolic, or None.
        type: the type of a value that is no tensor (a sequence, an optional).
    """

    dtype: ir.DataType | None = None
    dims: tuple[Dim, ...] | None = None
    data: np.ndarray[Any, Any] | None = None
    type: ir.TypeProtocol | None = None

    @property
    def concrete(self) -> np.ndarray[Any, Any] | None:
        """The data if every element is a known number."""
        return self.data if self.data is not None and self.data.dtype != object else None


UNKNOWN = Fact()


#: The facts of a node's outputs, from those of its inputs; None for an operator nobody knows.
InferNode = Callable[[ir.Node, "Sequence[Fact]", "Shapes"], "list[Fact] | None"]


class Shapes:
    """What is known of each value; values of subgraphs and new values can be asked for too."""

    def __init__(
        self,
        model: ir.Model,
        inputs: Mapping[str, Sequence[int]],
        trust: bool,
        infer: InferNode,
    ) -> None:
        self.model = model
        self.opsets = model.graph.opset_imports
        self._inputs = inputs
        self._trust = trust
        self._infer_node = infer
        self._facts: dict[ir.Value, Fact] = {}
        self._busy: set[ir.Node] = set()
        #: Numbers of unknowns; analyses whose facts are compared draw from one row.
        self.unknowns = itertools.count(1)
        self._vague = False

    def __eq__(self, other: object) -> bool:
        """Whether neither contradicts the other about a value of the model."""
        if not isinstance(other, Shapes):
            return NotImplemented
        values = [o for node in self.model.graph for o in node.outputs]
        return all(_agree(self.fact(v), other.fact(v)) for v in values)

    __hash__ = object.__hash__

    # --- questions --------------------------------------------------------------------------

    @property
    def certain(self) -> bool:
        """Whether the type and shape of everything are known, from the inputs' sizes alone."""
        return not self._vague

    def shape(self, value: ir.Value) -> tuple[Dim, ...] | None:
        """Its shape, dimensions as `int` or `Expr`; None if the rank is unknown."""
        return self.fact(value).dims

    def static(self, value: ir.Value) -> tuple[int, ...] | None:
        """Its shape if every dimension is a number."""
        dims = self.fact(value).dims
        if dims is None:
            return None
        for d in dims:
            if not isinstance(d, int):
                return None
        return dims  # type: ignore[return-value]

    def rank(self, value: ir.Value) -> int | None:
        """Number of dimensions."""
        dims = self.fact(value).dims
        return None if dims is None else len(dims)

    def dtype(self, value: ir.Value) -> ir.DataType | None:
        """Its element type."""
        return self.fact(value).dtype

    def data(self, value: ir.Value) -> np.ndarray[Any, Any] | None:
        """Its elements where it is small and they are known, some perhaps symbolic (see Fact)."""
        return self.fact(value).data

    def same_shape(self, a: ir.Value, b: ir.Value) -> bool:
        """Whether both have the same shape on every run."""
        dims = self.fact(a).dims
        return dims is not None and dims == self.fact(b).dims

    def fact(self, value: ir.Value | None) -> Fact:
        """Everything known of a value (an absent input is unknown)."""
        if value is None:
            return UNKNOWN
        known = self._facts.get(value)
        if known is not None:
            return known
        node = value.producer()
        if node is None:
            fact = self._source(value)
            self._facts[value] = fact
            return fact
        self._infer_with_producers(node)
        return self._facts.get(value, UNKNOWN)

    def learn(
        self,
        value: ir.Value,
        dtype: ir.DataType | None,
        dims: tuple[Dim, ...] | None,
        tensor: ir.TensorProtocol | None = None,
    ) -> None:
        """Take down the type and shape of a value, and the tensor that it always holds."""
        data = self.fact(value).data if tensor is None else small_data(tensor)
        self._facts[value] = Fact(dtype, dims, data)

    def take(self, values: Sequence[ir.Value], facts: Sequence[Fact]) -> None:
        """Take down what was found of other values, which are the same."""
        self._facts.update(zip(values, facts, strict=True))

    def fresh(self, *, sign: bool = False) -> Expr:
        """A new unknown: the size of an axis, or with `sign` any integer."""
        return symbol(f"{'~' if sign else '?'}{next(self.unknowns)}")

    def at(self, sizes: Mapping[str, int]) -> Shapes | None:
        """These shapes where the unknowns have these sizes; None if they leave one open."""
        found = Shapes(self.model, self._inputs, False, self._infer_node)
        sized: dict[tuple[Dim, ...], tuple[int | None, ...]] = {}
        for value, fact in self._facts.items():
            if fact.dims is None:
                found._facts[value] = fact
                continue
            dims = sized.get(fact.dims)
            if dims is None:
                dims = tuple(d if isinstance(d, int) else d.at(sizes) for d in fact.dims)
                if None in dims:
                    return None
                sized[fact.dims] = dims
            same = dims == fact.dims
            found._facts[value] = fact if same else Fact(fact.dtype, dims)  # type: ignore[arg-type]
        return found

    def of_copy(self, model: ir.Model) -> Shapes:
        """The same for `model`, a copy of the model that was walked."""
        found = Shapes(model, self._inputs, self._trust, self._infer_node)
        found.unknowns, found._vague = self.unknowns, self._vague
        graphs = zip(all_graphs(self.model.graph), all_graphs(model.graph), strict=True)
        for pair in graphs:
            for old, new in zip(*map(_values, pair), strict=True):
                fact = self._facts.get(old)
                if fact is not None:
                    found._facts[new] = fact
        return found

    # --- inference --------------------------------------------------------------------------

    def walk(self) -> Shapes:
        """Infer every node of the main graph in order."""
        for node in self.model.graph:
            if node.outputs and node.outputs[0] not in self._facts:
                self._infer_with_producers(node)
        return self

    def enter(self, graph: ir.Graph, inputs: Sequence[Fact]) -> list[Fact]:
        """Facts of a subgraph's outputs, given those of its inputs."""
        for value, fact in zip(graph.inputs, inputs, strict=False):
            self._facts[value] = fact
        for node in graph:
            self._infer_with_producers(node)
        return [self.fact(v) for v in graph.outputs]

    def forget(self, graph: ir.Graph) -> None:
        """Drop what was found inside a subgraph, to infer it again from other inputs."""
        for node in graph.all_nodes():
            for value in node.outputs:
                self._facts.pop(value, None)

    def _infer_with_producers(self, node: ir.Node) -> None:
        """Infer `node` after whatever it depends on (a stack: chains may be thousands long)."""
        stack = [node]
        while stack:
            top = stack[-1]
            self._busy.add(top)
            waiting = [
                p
                for v in top.inputs
                if v is not None and v not in self._facts
                for p in [v.producer()]
                if p is not None and p not in self._busy
            ]
            if waiting:
                stack.extend(waiting)
                continue
            stack.pop()
            self._busy.discard(top)
            if not all(o in self._facts for o in top.outputs):
                self._infer(top)

    def _infer(self, node: ir.Node) -> None:
        found = self._infer_node(node, [self.fact(v) for v in node.inputs], self)
        facts = (found or []) + [UNKNOWN] * (len(node.outputs) - len(found or []))
        for value, fact in zip(node.outputs, facts, strict=False):
            made = self._facts[value] = self._typed(value, fact, foreign=found is None)
            if not self._vague and value.name:
                self._vague = made.dims is None or made.dtype is None or self._invented(made)

    def _invented(self, fact: Fact) -> bool:
        """Whether an unknown of our own making is in a value's shape or data."""
        parts = list(fact.dims or ())
        if fact.data is not None and fact.data.dtype == object:
            parts += fact.data.ravel().tolist()
        atoms = (a for p in parts if isinstance(p, Expr) for a in p.atoms)
        return any("?" in a or "~" in a for a in atoms)

    def _source(self, value: ir.Value) -> Fact:
        """A graph input or an initializer."""
        tensor = constant_value(value)
        if tensor is not None:
            dims = tuple(int(d) for d in tensor.shape)  # type: ignore[arg-type]
            return Fact(tensor.dtype, dims, small_data(tensor))
        bound = self._inputs.get(value.name or "") if value.is_graph_input() else None
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            return Fact(type=value.type)
        if bound is not None and value.graph is self.model.graph:
            return Fact(_declared_type(value), tuple(int(d) for d in bound))
        return Fact(_declared_type(value), self._declared(value))

    def _declared(self, value: ir.Value) -> tuple[Dim, ...] | None:
        if value.shape is None:
            return None
        dims: list[Dim] = []
        for k, d in enumerate(value.shape):
            name = axis_name(d)
            bound = self._bound_symbols().get(name) if name else None
            if isinstance(d, int):
                dims.append(d)
            elif bound is not None:
                dims.append(bound)
            elif name or value.is_graph_input():
                dims.append(symbol(symbol_of(value.name or "", k, name)))
            else:
                dims.append(self.fresh())
        return tuple(dims)

    def _bound_symbols(self) -> dict[str, int]:
        """Sizes of the named dimensions that the bound inputs fix."""
        sizes: dict[str, int] = {}
        for value in self.model.graph.inputs:
            bound = self._inputs.get(value.name or "")
            if bound is not None and value.shape is not None:
                for d, size in zip(value.shape, bound, strict=False):
                    if (name := axis_name(d)) is not None:
                        sizes[name] = int(size)
        return sizes

    def _typed(self, value: ir.Value, fact: Fact, foreign: bool) -> Fact:
        """`fact` with the type that the file says; with its shape if no operator implies one.

        An annotation of an inner value is a claim: what depends on data is not known because a
        file says so. Of an operator that nobody here knows, it is the only word there is.
        """
        if fact.type is not None:
            return fact
        if value.type is not None and not isinstance(value.type, ir.TensorType):
            return fact if fact.dtype is not None else Fact(type=value.type)
        dtype = fact.dtype if fact.dtype is not None else _declared_type(value)
        if foreign and self._trust:
            return Fact(dtype, self._declared(value))
        return fact if dtype is fact.dtype else fact._replace(dtype=dtype, data=None)


def symbol_of(value: str, axis: int, name: str | None) -> str:
    """What the size of an input's axis is called, by the name of the axis if it has one."""
    return clean_name(name) if name else f"?@{clean_name(value)}.{axis}"


def from_values(dims: tuple[Dim, ...] | None) -> bool:
    """Whether a size of such a shape is not known from those of the inputs."""
    atoms = {a for d in dims or () if isinstance(d, Expr) for a in d.atoms}
    return dims is None or any(a.startswith(("?", "~")) and a[:2] != "?@" for a in atoms)


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    yield from graph.initializers.values()
    for node in graph:
        yield from node.outputs


def _agree(a: Fact, b: Fact) -> bool:
    if a.dtype != b.dtype and a.dtype is not None and b.dtype is not None:
        return False
    if a.dims is None or b.dims is None:
        return True
    return len(a.dims) == len(b.dims) and all(
        x == y or isinstance(x, Expr) or isinstance(y, Expr)
        for x, y in zip(a.dims, b.dims, strict=True)
    )


def _declared_type(value: ir.Value) -> ir.DataType | None:
    """Its element type, where a file says one."""
    return None if value.dtype is ir.DataType.UNDEFINED else value.dtype


def small_data(tensor: ir.TensorProtocol) -> np.ndarray[Any, Any] | None:
    """The elements of a small numeric tensor."""
    if tensor.size > DATA_LIMIT or tensor.dtype in (ir.DataType.STRING, ir.DataType.UNDEFINED):
        return None
    return tensor.numpy()
