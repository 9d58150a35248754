"""Attention scores: from a softmax up to the product of query and key, by scale, cap and masks.

The walk takes the operators in whatever order they come. Scores may have the axes [b, h, s, t] or,
as batched products want them, [b h, s, t], and change between the two on the way.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.attention.masks import HUGE, Term
from graphopt.passes.fuse.layout.views import is_view

from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.constants import constant_shape, constant_value, number
from graphopt.graph.traverse import read_once

__all__ = ["Scores", "find_scores", "find_softmax", "heads_of", "unscaled"]

#: More steps than any exporter takes between softmax and product.
LONGEST = 12


@dataclasses.dataclass
class Scores:
    """What the walk found.

    Attributes:
        nodes: every node passed, the product not among them.
        scale: factor of the product.
        by_head: constants [h, 1, 1] that scale the product too, one number a head.
        cap: c of c * tanh(x / c), or 0.
        terms: masks and biases, the last added first.
        heads: batch and heads, if the axes were seen apart.
        product: the product of query and key, or None.
        reason: why there is none.
    """

    nodes: list[ir.Node]
    scale: float = 1.0
    by_head: list[ir.Value] = dataclasses.field(default_factory=list)
    cap: float = 0.0
    terms: list[Term] = dataclasses.field(default_factory=list)
    heads: tuple[Dim, Dim] | None = None
    product: ir.Node | None = None
    reason: str = "no product of a query and a key leads to the softmax"


def find_softmax(p: ir.Value, root: ir.Node, facts: Shapes) -> tuple[list[ir.Node] | None, bool]:
    """The nodes from `p` up to the softmax, and whether a guard turns NaN rows into zeros.

    Views on the way may merge batch and heads or part them again, and nothing else.
    """
    nodes: list[ir.Node] = []
    node = p.producer()
    while node is not None and is_view(node) and node.graph is root.graph and len(nodes) < 2:
        if _apart(node, facts) is None:
            return None, False
        nodes.append(node)
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    if node is None or node.graph is not root.graph:
        return None, False
    if node.op_type == "Softmax":
        return [*nodes, node], False
    if node.op_type == "Where" and number(node.inputs[1]) == 0.0 and node.inputs[2] is not None:
        test, inner = node.inputs[0], node.inputs[2].producer()
        nan = test.producer() if test is not None else None
        if nan is None or nan.op_type != "IsNaN" or nan.inputs[0] is not node.inputs[2]:
            return None, False
        if inner is not None and inner.op_type == "Softmax":
            return [*nodes, node, nan, inner], True
    return None, False


def find_scores(softmax: ir.Node, facts: Shapes) -> Scores:
    """Walk from the softmax up to the product of query and key."""
    found = Scores([])
    value = softmax.inputs[0]
    merged = value is not None and facts.rank(value) == 3
    while value is not None and len(found.nodes) < LONGEST:
        node = value.producer()
        if node is None or node.graph is not softmax.graph:
            return found
        if node.op_type == "MatMul":
            if not any(constant_value(v) is not None for v in node.inputs):
                found.product = node
            return found
        found.nodes.append(node)
        if is_view(node):
            apart = _apart(node, facts)
            if apart is None:
                return found
            found.heads, merged = apart, facts.rank(value) == 4
            value = node.inputs[0]
        elif node.op_type in ("Mul", "Div"):
            factor = _factor(node)
            if factor is not None:
                found.scale *= factor[0]
                value = factor[1]
                continue
            per_head = None if merged else _head_factor(node)
            if per_head is None:
                return found
            found.by_head.append(per_head[0])
            value = per_head[1]
        elif node.op_type == "Tanh":
            if found.cap or found.scale <= 0 or found.by_head:
                return found
            found.cap, found.scale = found.scale, 1.0
            value = node.inputs[0]
        else:
            next_value, term = _masked(node, merged)
            if term is None:
                return found
            if found.scale != 1.0 or found.cap or found.by_head:
                # s (x + m): the mask would have to be scaled too
                found.reason = "the mask is scaled after it is added"
                return found
            found.terms.append(term)
            value = next_value
    return found


def _masked(node: ir.Node, merged: bool) -> tuple[ir.Value | None, Term | None]:
    """The scores that an Add or Where masks, and the mask."""
    inputs = node.inputs
    if node.op_type == "Add":
        a, b = inputs[0], inputs[1]
        if a is None or b is None:
            return None, None
        if _leads_to_product(a) and not (constant_value(b) is None and _leads_to_product(b)):
            return a, Term(b, merged=merged)
        return (b, Term(a, merged=merged)) if _leads_to_product(b) else (None, None)
    if node.op_type == "Where":
        for k, keeps in ((1, True), (2, False)):
            scores, fill = inputs[k], number(inputs[3 - k])
            if scores is not None and fill is not None and fill <= HUGE:
                return scores, Term(None, inputs[0], fill, keeps, merged)
    return None, None


def _factor(node: ir.Node) -> tuple[float, ir.Value | None] | None:
    """The scalar a Mul or Div multiplies by, and the other operand."""
    a, b = node.inputs[0], node.inputs[1]
    s, other = number(b), a
    if s is None and node.op_type == "Mul":
        s, other = number(a), b
    if s is None or s == 0.0 or not np.isfinite(s):
        return None
    return (s if node.op_type == "Mul" else 1.0 / s), other


def _head_factor(node: ir.Node) -> tuple[ir.Value, ir.Value | None] | None:
    """The constant [h, 1, 1] a Mul multiplies by, and the other operand."""
    if node.op_type != "Mul":
        return None
    for c, other in (node.inputs, node.inputs[::-1]):
        shape = constant_shape(c)
        if c is None or shape is None or len(shape) not in (3, 4) or shape[-2:] != (1, 1):
            continue
        if len(shape) == 3 or shape[0] == 1:
            return c, other
    return None


def _apart(node: ir.Node, facts: Shapes) -> tuple[Dim, Dim] | None:
    """b and h, if the view only merges the first two axes of [b, h, s, t], or parts them again."""
    if node.op_type == "Transpose" or node.inputs[0] is None:
        return None
    dims = [facts.shape(node.inputs[0]), facts.shape(node.outputs[0])]
    four = next((d for d in dims if d is not None and len(d) == 4), None)
    three = next((d for d in dims if d is not None and len(d) == 3), None)
    if four is None or three is None or three != (four[0] * four[1], *four[2:]):
        return None
    return four[0], four[1]


def _leads_to_product(value: ir.Value, depth: int = LONGEST) -> bool:
    """Whether scores come from here: one use each, away from a product of two variables."""
    node = value.producer()
    if node is None or depth == 0 or len(value.uses()) != 1:
        return False
    if node.op_type == "MatMul":
        return all(constant_value(v) is None for v in node.inputs)
    if node.op_type in ("Mul", "Div", "Add", "Tanh", "Where", "Reshape", "Unsqueeze", "Squeeze"):
        return any(
            v is not None and constant_value(v) is None and _leads_to_product(v, depth - 1)
            for v in node.inputs
        )
    return False


def unscaled(value: ir.Value) -> tuple[ir.Value, float, list[ir.Node]]:
    """The value without a scalar factor that only this use sees."""
    scale, nodes = 1.0, []
    while read_once(value):
        node = value.producer()
        factor = _factor(node) if node is not None and node.op_type in ("Mul", "Div") else None
        if node is None or factor is None or factor[1] is None:
            break
        scale *= factor[0]
        nodes.append(node)
        value = factor[1]
    return value, scale, nodes


def heads_of(value: ir.Value, facts: Shapes) -> tuple[Dim, Dim] | None:
    """b and h of an operand [b h, s, d] that was merged from four axes."""
    node = value.producer()
    for _ in range(3):
        if node is None or not is_view(node) or node.inputs[0] is None:
            return None
        dims, out = facts.shape(node.inputs[0]), facts.shape(node.outputs[0])
        if dims is not None and len(dims) == 4 and out is not None and out[0] == dims[0] * dims[1]:
            return dims[0], dims[1]
        node = node.inputs[0].producer()
    return None
