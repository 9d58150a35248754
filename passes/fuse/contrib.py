"""Operators beyond the standard, where the target has them: one pass over memory instead of two."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.availability import has
from graphopt.passes.fuse.weights import FLOATS

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_shape, constant_value, number
from graphopt.rewriting.patterns import Match

__all__ = [
    "BiasGelu",
    "ConvActivation",
    "GemmActivation",
    "SkipLayerNorm",
    "SkipRMSNorm",
    "TransposedMatMul",
]

DOMAIN = "com.microsoft"


def _single(node: ir.Node) -> bool:
    return not any(o.uses() or o.is_graph_output() for o in node.outputs[1:])


def _activation_parameters(node: ir.Node) -> list[float] | None:
    """What the fused operators call activation_params; None if they are not constant."""
    if node.op_type in ("Relu", "Sigmoid", "Tanh"):
        return []
    if node.op_type == "LeakyRelu":
        return [float(attribute(node, "alpha"))]
    if node.op_type == "HardSigmoid":
        return [float(attribute(node, "alpha")), float(attribute(node, "beta"))]
    limits: list[float] = []
    bounds = [*node.inputs[1:], None, None][:2]
    for value, default in zip(bounds, (np.finfo("f4").min, np.finfo("f4").max), strict=True):
        limit = float(default) if value is None else number(value)
        if limit is None:
            return None
        limits.append(limit)
    return limits


_ACTIVATIONS = ("Relu", "Sigmoid", "Tanh", "LeakyRelu", "HardSigmoid")


def _activated(op: Any, x: Any) -> Any:
    return op.any(*(getattr(op, name)(x) for name in _ACTIVATIONS), op.Clip(x, ...))


class ConvActivation(Rule):
    """act(Conv(x, W, b)) -> FusedConv(x, W, b, activation=act)"""

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        """An activation of a convolution."""
        return _activated(op, op.Conv(x, w, ..., as_="conv"))

    def check(self, ctx: Context, match: Match, x: ir.Value) -> bool | dict[str, Any]:
        """Floats, and constant parameters."""
        if not has(ctx, "com.microsoft:FusedConv"):
            return False
        parameters = _activation_parameters(match.root)
        if parameters is None or ctx.get(shapes).dtype(x) != ir.DataType.FLOAT:
            return False
        return {"parameters": parameters}

    def rewrite(self, op: Any, match: Match, conv: ir.Node, parameters: list[float]) -> ir.Value:
        """FusedConv."""
        attributes: dict[str, Any] = {**conv.attributes, "activation": match.root.op_type}
        if parameters:
            attributes["activation_params"] = parameters
        out: ir.Value = op.node("FusedConv", list(conv.inputs), attributes, domain=DOMAIN).outputs[
            0
        ]
        return out


class GemmActivation(Rule):
    """act(Gemm(a, b, c)) -> FusedGemm(a, b, c, activation=act)"""

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        """An activation of a Gemm."""
        return _activated(op, op.Gemm(a, b, ..., as_="gemm"))

    def check(self, ctx: Context, match: Match, a: ir.Value) -> bool:
        """Floats; Clip is not among its activations."""
        return (
            has(ctx, "com.microsoft:FusedGemm")
            and match.root.op_type != "Clip"
            and ctx.get(shapes).dtype(a) == ir.DataType.FLOAT
        )

    def rewrite(self, op: Any, match: Match, gemm: ir.Node) -> ir.Value:
        """FusedGemm."""
        root = match.root
        attributes: dict[str, Any] = {**gemm.attributes, "activation": root.op_type}
        for name in ("alpha", "beta"):
            value = attribute(root, name)
            if value is not None:
                attributes[f"activation_{name}"] = float(value)
        out: ir.Value = op.node("FusedGemm", list(gemm.inputs), attributes, domain=DOMAIN).outputs[
            0
        ]
        return out


class TransposedMatMul(Rule):
    """MatMul(A^T, B) -> FusedMatMul(A, B, transA=1), and for B alike

    for a transposition of the last two axes; a constant operand is left to folding.
    """

    shared = True

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        """A product with a transposed operand."""
        return op.any(
            op.MatMul(op.Transpose(a, ..., as_="turned"), b),
            op.MatMul(a, op.Transpose(b, ..., as_="turned")),
        )

    def check(self, ctx: Context, match: Match, turned: ir.Node) -> bool:
        """The last two axes are swapped, for this product alone."""
        facts = ctx.get(shapes)
        if not has(ctx, "com.microsoft:FusedMatMul"):
            return False
        out = turned.outputs[0]
        if len(out.uses()) != 1 or out.is_graph_output() or facts.dtype(out) != ir.DataType.FLOAT:
            return False
        if turned.inputs[0] is None or constant_value(turned.inputs[0]) is not None:
            return False
        rank = facts.rank(out)
        ranks = [facts.rank(v) for v in match.root.inputs if v is not None]
        if rank is None or rank < 2 or None in ranks or min(r for r in ranks if r) < 2:
            return False
        want = [*range(rank - 2), rank - 1, rank - 2]
        perm = attribute(turned, "perm")
        return list(perm if perm is not None else range(rank)[::-1]) == want

    def rewrite(self, op: Any, match: Match, turned: ir.Node) -> ir.Value:
        """FusedMatMul."""
        inputs = list(match.root.inputs)
        which = 0 if inputs[0] is turned.outputs[0] else 1
        inputs[which] = turned.inputs[0]
        out: ir.Value = op.FusedMatMul(*inputs, domain_=DOMAIN, **{("transA", "transB")[which]: 1})
        return out


class BiasGelu(Rule):
    """Gelu(x + b) -> BiasGelu(x, b), b along the last axis"""

    def pattern(self, op: Any, x: Any, b: Any) -> Any:
        """The exact Gelu of a sum with a vector."""
        added = op.Add(x, b)
        return op.any(op.Gelu(added, approximate="none"), op.Gelu(added, domain_=DOMAIN))

    def check(self, ctx: Context, x: ir.Value, b: ir.Value) -> bool:
        """A constant vector as long as the last axis."""
        if not has(ctx, "com.microsoft:BiasGelu"):
            return False
        dims = ctx.get(shapes).shape(x)
        return dims is not None and len(dims) > 1 and constant_shape(b) == dims[-1:]

    def rewrite(self, op: Any, x: ir.Value, b: ir.Value) -> ir.Value:
        """BiasGelu."""
        out: ir.Value = op.BiasGelu(x, b, domain_=DOMAIN)
        return out


def _skip_check(
    ctx: Context, name: str, norm: ir.Node, total: ir.Node, a: ir.Value, b: ir.Value
) -> bool:
    """Two values of one shape, of rank 3, normalized over the last axis."""
    facts = ctx.get(shapes)
    dims = facts.shape(a)
    if not has(ctx, f"com.microsoft:{name}") or dims is None or len(dims) != 3:
        return False
    if facts.shape(b) != dims or facts.dtype(a) not in FLOATS or not _single(norm):
        return False
    if attribute(norm, "axis") not in (-1, 2) or constant_shape(norm.inputs[1]) != dims[2:]:
        return False
    return total.outputs[0].is_graph_output() is False


def _bias_of(
    ctx: Context, value: ir.Value, total: ir.Node
) -> tuple[ir.Value, ir.Value, ir.Node] | None:
    """x, bias and the Add, if `value` is x + bias for `total` alone."""
    node = value.producer()
    if node is None or node.op_type != "Add" or len(value.uses()) != 1 or node is total:
        return None
    dims = ctx.get(shapes).shape(value)
    for x, c in ((node.inputs[0], node.inputs[1]), (node.inputs[1], node.inputs[0])):
        if x is None or c is None or constant_value(c) is None or dims is None:
            continue
        if constant_shape(c) == dims[-1:] and ctx.get(shapes).shape(x) == dims:
            return x, c, node
    return None


class SkipLayerNorm(Rule):
    """LayerNormalization(a + b [+ c]) -> SkipLayerNormalization(a, b, scale, bias[, c])

    The sum is a further output of the operator, for whatever else reads it.
    """

    shared = True
    operator = "SkipLayerNormalization"
    norm = "LayerNormalization"

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        """The normalization of a sum."""
        total = op.Add(a, b, as_="total")
        return getattr(op, self.norm)(total, ..., as_="norm")

    def check(
        self, ctx: Context, norm: ir.Node, total: ir.Node, a: ir.Value, b: ir.Value
    ) -> bool | dict[str, Any]:
        """Shapes, and where the bias of the layer before is."""
        if not _skip_check(ctx, self.operator, norm, total, a, b):
            return False
        for x, skip in ((a, b), (b, a)):
            found = _bias_of(ctx, x, total)
            if found is not None:
                return {"x": found[0], "skip": skip, "c": found[1], "nodes": [found[2]]}
        return {"x": a, "skip": b, "c": None}

    def rewrite(
        self, op: Any, norm: ir.Node, total: ir.Node, x: ir.Value, skip: ir.Value, c: Any
    ) -> ir.Value:
        """The fused operator; the sum's other readers get its last output."""
        weights = list(norm.inputs[1:])
        if self.norm == "LayerNormalization" and c is not None and len(weights) == 1:
            weights.append(None)
        epsilon = attribute(norm, "epsilon")
        others = [u for u in total.outputs[0].uses() if u.node is not norm]
        node = op.node(
            self.operator,
            [x, skip, *weights, *([c] if c is not None else [])],
            {"epsilon": float(epsilon)},
            domain=DOMAIN,
            outputs=4 if others else 1,
        )
        if others:
            # they may come before the normalization: stand where the sum stood
            graph = total.graph
            assert isinstance(graph, ir.Graph)
            graph.remove(node)
            graph.insert_before(total, node)
            _move_uses(total.outputs[0], node.outputs[3], others)
        out: ir.Value = node.outputs[0]
        return out


def _move_uses(old: ir.Value, new: ir.Value, uses: list[Any]) -> None:
    new.type, new.shape = old.type, old.shape
    for use in uses:
        use.node.replace_input_with(use.idx, new)


class SkipRMSNorm(SkipLayerNorm):
    """RMSNormalization(a + b [+ c]) -> SkipSimplifiedLayerNormalization(a, b, scale[, c])"""

    operator = "SkipSimplifiedLayerNormalization"
    norm = "RMSNormalization"
