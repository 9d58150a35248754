"""Value numbering: the values of one graph as terms of a table that another graph shares.

Dead code, duplicates, moved constants, renamed values and decided branches need no further proof:
their values have one term.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.analyses.shapes.analysis import on_demand
from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim, Expr
from graphopt.graph.constants import QUANTIZATION
from graphopt.graph.evaluation import deterministic, evaluate
from graphopt.graph.traverse import subgraphs
from graphopt.proving.bodies import Body, ControlFlow, captured
from graphopt.proving.sequences import WITHOUT_SEQUENCE
from graphopt.proving.sizes import own_unknowns, shareable, window_sizes
from graphopt.proving.spelling import MOVED, attributes_of, hashable, version_of
from graphopt.proving.terms import Term, Terms
from graphopt.proving.unchanged import unchanged

__all__ = ["Numbered", "Walk", "numbered"]

#: Constants up to this many elements are computed when a term is made.
COMPUTED = 1 << 16
#: The subgraphs that a value is in, from the outermost on, and its name.
Name = tuple[tuple[str, ...], str]


@dataclasses.dataclass(frozen=True)
class Numbered:
    """A graph whose values have terms, of which the names alone are kept."""

    terms: Terms
    names: Mapping[Name, Term]
    outputs: tuple[Term | None, ...]


def numbered(model: ir.Model) -> Numbered:
    """The values of a graph as terms of a new table."""
    walk = Walk(Terms(), model, on_demand(model), trusted=True)
    for node in model.graph:
        walk.visit(node)
    return walk.done(model)


class Walk(ControlFlow):
    """One graph's values as terms.

    Args:
        terms: the table, shared by the graphs that are compared.
        model: the graph.
        facts: its shapes, from its inputs and operators alone.
        trusted: what its operators need to run is so.
    """

    def __init__(self, terms: Terms, model: ir.Model, facts: Shapes, trusted: bool = False) -> None:
        self.terms = terms
        self.trusted = trusted
        self.facts = facts
        facts.unknowns = terms.unknowns
        self.opsets = dict(model.graph.opset_imports)
        self.opset = self.opsets.get("", self.opsets.get("ai.onnx", 0))
        #: Before IR version 4 every initializer had to be listed as an input.
        self._overridable = model.ir_version >= 4
        self.values: dict[ir.Value, Term] = {}
        #: The same by name, of every value that was visited.
        self.names: dict[Name, Term] = {}
        #: Names the subgraph that is walked: two of them may use one name for different values.
        self.scope: tuple[str, ...] = ()
        #: Where those of unknown rank were made.
        self._unranked: dict[Term, tuple[str, ...]] = {}
        #: Told of every value, after its node was visited.
        self.met: Callable[[ir.Value], None] = lambda value: None
        for value in model.graph.inputs:
            if not value.is_initializer():
                self.values[value] = self.leaf(("input", value.name), "input", value)

    def of(self, value: ir.Value | None) -> Term | None:
        """The term of a value that was visited, or is constant."""
        if value is None:
            return None
        term = self.values.get(value)
        if term is None:
            tensor = value.const_value if value.is_initializer() else None
            if tensor is None or (value.is_graph_input() and self._overridable):
                return self.leaf(("free", value.name), "input", value)
            term = self.values[value] = self.terms.constant(tensor)
            if value.is_graph_input():
                self.facts.learn(value, term.dtype, term.dims, tensor)
        return term

    def visit(self, node: ir.Node) -> None:
        """Give every output of `node` its term; its inputs have theirs."""
        made = self._made(node)
        if len(made) != len(node.outputs):  # as of a Loop whose body has another number of them
            made = [self.leaf(("odd", node.name, v.name), "input", v) for v in node.outputs]
        for value, term in zip(node.outputs, made, strict=True):
            self.put(value, term)
            self.met(value)
            self.names[self.scope, value.name or ""] = self.values[value]

    def put(self, value: ir.Value, term: Term) -> None:
        """Let a value be `term`: its sizes have one name in every graph of the table."""
        self.values[value] = term
        dims = self.facts.fact(value).dims
        if dims is not None and (term.dims is None or own_unknowns(term.dims) > own_unknowns(dims)):
            term.dims = dims
        if term.dims is None:
            self._unranked.setdefault(term, self.scope)
        if term.tensor is not None or dims != term.dims:
            self.facts.learn(value, term.dtype, term.dims, term.tensor)

    def done(self, model: ir.Model) -> Numbered:
        """What is kept of a graph all of whose nodes were visited."""
        return Numbered(self.terms, self.names, tuple(map(self.of, model.graph.outputs)))

    def leaf(self, key: Any, op: str, value: ir.Value) -> Term:
        """The term of a value that no operator makes, named `key`."""

        def make() -> Term:
            fact = self.facts.fact(value)
            return Term(op, attributes={"name": key}, dims=fact.dims, dtype=fact.dtype)

        return self.terms.named(key, make)

    def _made(self, node: ir.Node) -> list[Term]:
        domain = "" if node.domain == "ai.onnx" else node.domain
        if domain == "" and node.op_type == "Constant":
            tensor = ir.convenience.get_const_tensor(node.outputs[0])
            if tensor is not None:
                return [self.terms.constant(tensor)]
        args = [self.of(v) for v in node.inputs]
        attributes = attributes_of(node, self.opset)
        if next(subgraphs(node), None) is not None:
            self.facts.fact(node.outputs[0])  # so that bodies have the shapes that come in
        if domain == "ai.onnx.ml" and node.op_type == "ZipMap" and args[0] is not None:
            return [args[0]]  # the same numbers, a row as a dictionary
        if domain == "":
            same = unchanged(node, args, self.opset)
            if same is not None:
                return [same, *self._rest(node)]
            if node.op_type == "If":
                return self.branches(node, args)
            if node.op_type == "CastLike" and args[1] is not None and args[1].dtype is not None:
                return [self._cast(node, args[0], args[1].dtype)]
            if node.op_type in WITHOUT_SEQUENCE:
                part = WITHOUT_SEQUENCE[node.op_type](self.terms, node, args, self.opset)
                if part is not None:
                    return [part]
            for name, k in MOVED.get(node.op_type, ()):
                if name in attributes and k >= len(args):
                    args += [None] * (k - len(args))
                    array = np.array(attributes.pop(name))
                    if array.dtype.kind == "f":
                        array = array.astype(np.float32)
                    args.append(self.terms.constant(ir.Tensor(array)))
        while args and args[-1] is None:
            args.pop()
        if self.trusted and node.op_type == "Conv" and domain == "":
            self._convolved(node.inputs[0], *args[:2])
        turned = self.turns(node, args) if domain == "" and node.op_type == "Loop" else None
        if turned is not None:
            return turned
        graphs: tuple[Body, ...] = ()
        fixed: dict[int, Term] = {}
        if next(subgraphs(node), None) is not None:
            args += [None] * (len(node.inputs) - len(args))
            if domain == "" and node.op_type == "Loop":
                args, varying, fixed = self.varying(node, args)
                graphs = (varying,)
            else:
                graphs = tuple(self.body(node, g, k) for k, g in enumerate(subgraphs(node)))
            attributes["\0graphs"] = graphs
            args += captured(graphs)
        op = f"{domain}:{node.op_type}" if domain else node.op_type
        stable = deterministic(node) or (domain not in ("", "ai.onnx.ml") and not graphs)
        version = version_of(op, self.opset)
        written = tuple(sorted((k, hashable(v)) for k, v in attributes.items()))
        key = (op, tuple(args), written, version, None if stable or graphs else node.name)
        again = (*key, len(node.outputs)) if stable and not graphs and not self.scope else None
        if again in self.terms.made:  # as in another graph: shapes need not be inferred again
            found, facts = self.terms.made[again]
            self.facts.take(node.outputs, facts)
            return found
        made = []
        changing = [v for k, v in enumerate(node.outputs) if k not in fixed]
        for k, value in enumerate(changing):

            def make(k: int = k, value: ir.Value = value) -> Term:
                fact = self.facts.fact(value)
                dims = self._sized(fact.dims, window_sizes(op, attributes, args))
                return Term(
                    op, tuple(args), attributes, k, dims, fact.dtype, None, node, self.opset
                )

            known = self._data(value) if stable and not graphs else None
            made.append(known or self.terms.named((key, k), make))
        if len(made) == 1 and made[0].op != "const" and stable and not graphs and args:
            made = [self._computed(node, args, made[0])]
        for k, term in sorted(fixed.items()):
            made.insert(k, term)
        if again is not None:
            self.terms.made[again] = made, [self.facts.fact(v) for v in node.outputs]
        return made

    def _convolved(self, value: ir.Value | None, x: Term | None, w: Term | None) -> None:
        """What is made where it is convolved has as many axes as the weights, or nothing runs."""
        if value is None or x is None or w is None or x.dims is not None or w.dims is None:
            return
        if self._unranked.get(x) == self.scope:
            x.dims = tuple(self.facts.fresh() for _ in w.dims)
            self.facts.learn(value, x.dtype, x.dims)

    def _sized(
        self, dims: tuple[Dim, ...] | None, keys: list[Any] | None
    ) -> tuple[Dim, ...] | None:
        """Unknown sizes by what they follow from."""
        if dims is None or keys is None:
            return dims
        known = self.terms.sizes
        spatial = (
            d if isinstance(d, int) or shareable(d) else known.setdefault(key, d)
            for d, key in zip(dims[2:], keys, strict=True)
        )
        return (*dims[:2], *spatial)

    def _rest(self, node: ir.Node) -> list[Term]:
        """Terms for outputs that nobody reads."""
        return [
            self.leaf(("unread", node.name, k), "input", o) for k, o in enumerate(node.outputs[1:])
        ]

    def _cast(self, node: ir.Node, x: Term | None, to: ir.DataType) -> Term:
        """CastLike(x, y) = Cast(x) to the type of y."""
        assert x is not None
        cast = ir.Node("", "Cast", [], [ir.AttrInt64("to", to.value)], name=node.name)
        cast.outputs[0].name = node.outputs[0].name
        key = (("Cast", (x,), (("to", to.value),), 0, None), 0)
        made = self.terms.named(
            key, lambda: Term("Cast", (x,), {"to": to.value}, 0, x.dims, to, None, cast, self.opset)
        )
        return self._computed(cast, [x], made)

    def _data(self, value: ir.Value) -> Term | None:
        """A small value whose elements are numbers or sizes."""
        fact = self.facts.fact(value)
        if fact.data is None or fact.dtype is None:
            return None
        if fact.data.dtype != object:
            return self.terms.constant(ir.Tensor(np.array(fact.data, order="C"), dtype=fact.dtype))
        elements = tuple(fact.data.ravel().tolist())
        if any(isinstance(e, Expr) and not shareable(e) for e in elements):
            return None
        shape = fact.data.shape
        key = ("data", shape, fact.dtype, elements)
        return self.terms.named(
            key, lambda: Term("data", (), {"elements": elements}, 0, shape, fact.dtype)
        )

    def _computed(self, node: ir.Node, args: Sequence[Term | None], term: Term) -> Term:
        """What is constant, computed."""
        if node.op_type in QUANTIZATION or any(a is not None and a.op != "const" for a in args):
            return term
        for one in (term, *args):
            size = COMPUTED + 1 if one is None or one.dims is None else math.prod(one.dims)
            if one is not None and not (isinstance(size, int) and size <= COMPUTED):
                return term
        found = evaluate(node, [None if a is None else a.array() for a in args], self.opsets)
        if found is None or term.dtype is None or found[0].dtype != term.dtype.numpy():
            return term
        return self.terms.constant(ir.Tensor(np.array(found[0], order="C"), dtype=term.dtype))
