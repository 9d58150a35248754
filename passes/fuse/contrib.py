"""Contrib operator fusion: FusedConv, FusedGemm, FusedMatMul, BiasGelu, SkipLayerNormalization."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.availability import has
from graphopt.passes.fuse.weights import FLOATS

from graphopt import Bind, Context, Replacement, Rule, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
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
    return op.any(
        *(getattr(op, name)(x, as_="act") for name in _ACTIVATIONS), op.Clip(x, ..., as_="act")
    )


class ConvActivation(Rule):
    """act(Conv(x, W, b)) -> FusedConv(x, W, b, activation=act)"""

    def pattern(self, op: Any, x: Any, w: Any) -> Any:
        return _activated(op, op.Conv(x, w, ..., as_="conv"))

    def check(self, ctx: Context, act: ir.Node, x: ir.Value) -> Bind | None:
        parameters = _activation_parameters(act)
        fits = parameters is not None and _has_for_floats(ctx, "FusedConv", x)
        return Bind(parameters=parameters or None) if fits else None

    def rewrite(self, op: Builder, act: ir.Node, conv: ir.Node, parameters: Any) -> ir.Value:
        said = {"activation": act.op_type, "activation_params": parameters}
        return op.FusedConv(*conv.inputs, **conv.attributes, **said, domain_=DOMAIN)


class GemmActivation(Rule):
    """act(Gemm(a, b, c)) -> FusedGemm(a, b, c, activation=act), Clip not among the activations"""

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        return _activated(op, op.Gemm(a, b, ..., as_="gemm"))

    def check(self, ctx: Context, act: ir.Node, a: ir.Value) -> Bind | None:
        return Bind() if act.op_type != "Clip" and _has_for_floats(ctx, "FusedGemm", a) else None

    def rewrite(self, op: Builder, act: ir.Node, gemm: ir.Node) -> ir.Value:
        own = {f"activation_{k}": attribute(act, k) for k in ("alpha", "beta")}
        said = {"activation": act.op_type, **own}
        return op.FusedGemm(*gemm.inputs, **gemm.attributes, **said, domain_=DOMAIN)


def _has_for_floats(ctx: Context, name: str, x: ir.Value) -> bool:
    return has(ctx, f"{DOMAIN}:{name}") and ctx.get(shapes).dtype(x) == ir.DataType.FLOAT


class TransposedMatMul(Rule):
    """MatMul(A^T, B) -> FusedMatMul(A, B, transA=1), and for B alike

    for a transposition of the last two axes; a constant operand is left to folding.
    """

    shared = True

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        return op.any(
            op.MatMul(op.Transpose(a, ..., as_="turned"), b),
            op.MatMul(a, op.Transpose(b, ..., as_="turned")),
        )

    def check(self, ctx: Context, match: Match, turned: ir.Node) -> Bind | None:
        facts, out = ctx.get(shapes), turned.outputs[0]
        if not has(ctx, "com.microsoft:FusedMatMul"):
            return None
        if len(out.uses()) != 1 or out.is_graph_output() or facts.dtype(out) != ir.DataType.FLOAT:
            return None
        if turned.inputs[0] is None or constant_value(turned.inputs[0]) is not None:
            return None
        if any((facts.rank(v) or 0) < 2 for v in match.root.inputs if v is not None):
            return None
        return Bind() if _swaps_last(turned, facts.rank(out) or 0) else None

    def rewrite(self, op: Builder, match: Match, turned: ir.Node) -> ir.Value:
        out = turned.outputs[0]
        name = "transA" if match.root.inputs[0] is out else "transB"
        inputs = [turned.inputs[0] if v is out else v for v in match.root.inputs]
        return op.node("FusedMatMul", inputs, {name: 1}, domain=DOMAIN).outputs[0]


def _swaps_last(transpose: ir.Node, rank: int) -> bool:
    perm = attribute(transpose, "perm") or range(rank)[::-1]
    return list(perm) == [*range(rank - 2), rank - 1, rank - 2]


class BiasGelu(Rule):
    """Gelu(x + b) -> BiasGelu(x, b), b along the last axis"""

    def pattern(self, op: Any, x: Any, b: Any) -> Any:
        added = op.Add(x, b)
        return op.any(op.Gelu(added, approximate="none"), op.Gelu(added, domain_=DOMAIN))

    def check(self, ctx: Context, x: ir.Value, b: ir.Value) -> Bind | None:
        dims = ctx.get(shapes).shape(x) or ()
        fits = len(dims) > 1 and constant_shape(b) == dims[-1:]
        return Bind() if fits and has(ctx, "com.microsoft:BiasGelu") else None

    def rewrite(self, op: Builder, x: ir.Value, b: ir.Value) -> ir.Value:
        return op.BiasGelu(x, b, domain_=DOMAIN)


class SkipLayerNorm(Walker):
    """LayerNormalization(a + b [+ c]) -> SkipLayerNormalization(a, b, scale, bias[, c])

    The sum is a further output of the operator, for whatever else reads it.
    """

    shared = True
    roots = ("LayerNormalization",)
    operator = "SkipLayerNormalization"

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        total = None if node.inputs[0] is None else node.inputs[0].producer()
        if total is None or total.op_type != "Add" or total.graph is not node.graph:
            return None
        a, b = total.inputs
        if a is None or b is None or not _skips(ctx, self.operator, node, total, a, b):
            return None
        for x, skip in ((a, b), (b, a)):
            biased = _bias_of(ctx, x, total)
            if biased is not None:
                data, c, add = biased
                build = partial(self._fused, node, total, data, skip, c)
                return Replacement(build, (total, add))
        return Replacement(partial(self._fused, node, total, a, b, None), (total,))

    def _fused(
        self,
        norm: ir.Node,
        total: ir.Node,
        x: ir.Value,
        skip: ir.Value,
        c: ir.Value | None,
        op: Builder,
    ) -> ir.Value:
        weights = list(norm.inputs[1:])
        if norm.op_type == "LayerNormalization" and c is not None and len(weights) == 1:
            weights.append(None)
        others = [u for u in total.outputs[0].uses() if u.node is not norm]
        node = op.node(
            self.operator,
            [x, skip, *weights, *([c] if c is not None else [])],
            {"epsilon": float(attribute(norm, "epsilon"))},
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
        return node.outputs[0]


class SkipRMSNorm(SkipLayerNorm):
    """RMSNormalization(a + b [+ c]) -> SkipSimplifiedLayerNormalization(a, b, scale[, c])"""

    roots = ("RMSNormalization",)
    operator = "SkipSimplifiedLayerNormalization"


def _skips(
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
    return not total.outputs[0].is_graph_output()


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


def _move_uses(old: ir.Value, new: ir.Value, uses: list[Any]) -> None:
    new.type, new.shape = old.type, old.shape
    for use in uses:
        use.node.replace_input_with(use.idx, new)
