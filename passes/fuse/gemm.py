"""Gemm fusion: MatMul and Add as one Gemm, and transposed operands as its attributes."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from graphopt.passes.fuse.weights import FLOATS

from graphopt import Bind, Context, Refused, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.graph.traverse import read_once
from graphopt.rewriting.rules import Verdict

__all__ = ["MatMulAdd", "TransposedOperand"]


class MatMulAdd(Rule):
    """Add(MatMul(A, B), C) -> Gemm(A, B, C), A and B matrices, C broadcasting to their product"""

    def pattern(self, op: Any, a: Any, b: Any, c: Any) -> Any:
        return op.Add(op.MatMul(a, b), c)

    def check(self, a: ir.Value, b: ir.Value, c: ir.Value, ctx: Context) -> Verdict:
        facts = ctx.get(shapes)
        left, right, bias = facts.shape(a), facts.shape(b), facts.shape(c)
        if left is None or right is None or bias is None or facts.dtype(a) not in FLOATS:
            return None
        if len(left) != 2 or len(right) != 2 or len(bias) > 2:
            return None
        for have, want in zip(reversed(bias), (right[1], left[0]), strict=False):
            if have not in (1, want):
                return Refused("the bias may broadcast the product")
        return Bind()

    def rewrite(self, op: Builder, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return op.Gemm(a, b, c)


class TransposedOperand(Rule):
    """Gemm(A, Transpose(B)) -> Gemm(A, B, transB=1), and for A alike"""

    shared = True

    def pattern(self, op: Any, a: Any, b: Any) -> Any:
        return op.any(
            op.Gemm(a, op.Transpose(b, perm=[1, 0], as_="transposed"), ..., as_="gemm"),
            op.Gemm(op.Transpose(a, perm=[1, 0], as_="transposed"), b, ..., as_="gemm"),
        )

    def check(self, transposed: ir.Node) -> Bind | None:
        out = transposed.outputs[0]
        return Bind() if read_once(out) else None

    def rewrite(self, op: Builder, gemm: ir.Node, transposed: ir.Node) -> ir.Value:
        out = transposed.outputs[0]
        name = "transA" if gemm.inputs[0] is out else "transB"
        inputs = [transposed.inputs[0] if v is out else v for v in gemm.inputs]
        return op.again(gemm, inputs, **{name: 1 - int(attribute(gemm, name))})
