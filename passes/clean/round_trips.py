"""Inverse pair elimination: views and transposes that lead back to what they started from."""

from __future__ import annotations

import onnx_ir as ir

from graphopt import Context, Replacement, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes

__all__ = ["RULES"]

#: Operators that keep the order of elements, so that the shape says everything.
_VIEWS = frozenset({"Flatten", "Reshape", "Squeeze", "Unsqueeze"})
#: Views of views that are looked through.
_LONGEST = 8


class ViewsBack(Walker):
    """f(... g(x)) -> x for Reshape, Flatten, Squeeze, Unsqueeze that lead to the shape x has"""

    roots = tuple(sorted(_VIEWS))
    shared = True

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        facts, found, last = ctx.get(shapes), None, node
        for _ in range(_LONGEST):
            before = _producer(last)
            if before is None or before.op_type not in _VIEWS:
                break
            last = before
            x = last.inputs[0]
            if x is not None and _back(node, last, x, facts):
                found = x
        return None if found is None else Replacement(lambda op: found)


class TransposesBack(Walker):
    """Transpose(Transpose(x, p), q) -> x where p[q[k]] = k for every axis k"""

    roots = ("Transpose",)
    shared = True

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        before = _producer(node)
        if before is None or before.op_type != "Transpose":
            return None
        x, p, q = before.inputs[0], _permutation(before), _permutation(node)
        if x is None or len(p) != len(q) or [p[k] for k in q] != list(range(len(q))):
            return None
        return Replacement(lambda op: x)


def _producer(node: ir.Node) -> ir.Node | None:
    """What makes its first input, if a standard operator of the same graph does."""
    x = node.inputs[0]
    made = None if x is None else x.producer()
    return made if made is not None and not made.domain and made.graph is node.graph else None


def _back(node: ir.Node, first: ir.Node, x: ir.Value, facts: Shapes) -> bool:
    """Whether `node`, after views that begin with `first` on `x`, has the shape of `x`."""
    if facts.same_shape(x, node.outputs[0]):
        return True
    pair = {node.op_type, first.op_type}
    if pair != {"Squeeze", "Unsqueeze"} or node.inputs[0] is not first.outputs[0]:
        return False
    one, other = _axes(node, facts), _axes(first, facts)
    return one is not None and one == other


def _axes(node: ir.Node, facts: Shapes) -> list[int] | None:
    """The axes that a Squeeze or an Unsqueeze names."""
    if "axes" in node.attributes:
        return sorted(node.attributes["axes"].as_ints())
    given = node.inputs[1] if len(node.inputs) > 1 else None
    data = None if given is None else facts.data(given)
    return None if data is None or data.dtype == object else sorted(data.ravel().tolist())


def _permutation(node: ir.Node) -> list[int]:
    """Its axes; none where it turns an unknown number of them round, as twice does nothing."""
    if "perm" in node.attributes:
        return list(node.attributes["perm"].as_ints())
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return list(reversed(range(len(shape)))) if shape is not None else []


RULES = (ViewsBack, TransposesBack)
