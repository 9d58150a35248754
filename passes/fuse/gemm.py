"""Matrix products with a bias: MatMul and Add as one Gemm."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from graphopt.passes.fuse.weights import FLOATS

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute

__all__ = ["MatMulAdd", "TransposedOperand"]


class MatMulAdd(Rule):
    """Add(MatMul(A, B), C) -> Gemm(A, B, C)

    A and B are matrices and C broadcasts to the product (never the other way).
    """

    def pattern(self, op: Any, a: Any, b: Any, c: Any) -> Any:
        """A sum with a product."""
        return op.Add(op.MatMul(a, b), c)

    def check(self, a: ir.Value, b: ir.Value, c: ir.Value, ctx: Context) -> bool | str:
        """Ranks 2, a bias that broadcasts one way."""
        facts = ctx.get(shapes)
        left, right, bias = facts.shape(a), facts.shape(b), facts.shape(c)
        if left is None or right is None or bias is None or facts.dtype(a) not in FLOATS:
            return False
        if len(left) != 2 or len(right) != 2 or len(bias) > 2:
            return False
        for have, want in zip(reversed(bias), (right[1], left[0]), strict=False):
            if have not in (1, want):
                return "the bias may broadcast the product"
        return True

    def rewrite(self, op: Any, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        """The Gemm."""
        out: ir.Value = op.Gemm(a, b, c)
        return out


class TransposedOperand(Rule):
    """Gemm(A, Transpose(B)) -> Gemm(A, B, transB=1), and for A alike"""

    shared = True

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        """A Gemm on a transposed matrix."""
        return op.any(
            op.Gemm(a, op.Transpose(b, perm=[1, 0], as_="transposed"), ..., as_="gemm"),
            op.Gemm(op.Transpose(a, perm=[1, 0], as_="transposed"), b, ..., as_="gemm"),
        )

    def check(self, transposed: ir.Node) -> bool:
        """The Transpose goes away with this use."""
        out = transposed.outputs[0]
        return len(out.uses()) == 1 and not out.is_graph_output()

    def rewrite(self, op: Any, gemm: ir.Node, transposed: ir.Node) -> ir.Value:
        """The Gemm on the matrix as it lies."""
        which = 0 if gemm.inputs[0] is transposed.outputs[0] else 1
        name = ("transA", "transB")[which]
        inputs = list(gemm.inputs)
        inputs[which] = transposed.inputs[0]
        attributes = {k: a for k, a in gemm.attributes.items() if k != name}
        flag = 1 - int(attribute(gemm, name))
        out: ir.Value = op.node("Gemm", inputs, {**attributes, name: flag}).outputs[0]
        return out
