"""Affine operators with constant operands, y = s * x + t, which fold into linear operators.

    Mul(x, c)   s = c        Add(x, c)  t = c     BatchNormalization  s = scale / sqrt(var + eps)
    Div(x, c)   s = 1 / c    Sub(x, c)  t = -c                        t = bias - mean * s
    Neg(x)      s = -1       Sub(c, x)  s = -1, t = c

Scales and shifts are computed in float64 and rounded once, to the weight's type.
"""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.weights import FLOATS, Array, per_channel

from graphopt.analyses.linear import Linear, linear_of
from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import array_of, constant_shape

__all__ = ["Affine", "affine_of", "held_linear", "output_rank", "rounded"]

_AFFINE = ("Mul", "Div", "Add", "Sub", "Neg", "BatchNormalization")


@dataclasses.dataclass(frozen=True)
class Affine:
    """y = s * x + t: which constants make s and t, loaded by `scale_shift`."""

    node: ir.Node
    input: ir.Value
    constants: tuple[ir.Value, ...]

    @property
    def scales(self) -> bool:
        """Whether s may differ from 1."""
        return self.node.op_type in ("Mul", "Div", "Neg", "BatchNormalization") or (
            self.node.op_type == "Sub" and self.node.inputs[0] is not self.input
        )

    @property
    def shifts(self) -> bool:
        """Whether t may differ from 0."""
        return self.node.op_type in ("Add", "Sub", "BatchNormalization")

    def fits(self, rank: int | None, axis: int, channels: int) -> bool:
        """Whether s and t are constant but along `axis`, of `channels` entries."""
        if self.node.op_type == "BatchNormalization":
            normalized = 1 if rank is not None else None
            return rank is not None and axis % rank == normalized
        return all(
            per_channel(shape, rank, axis, channels) is not None
            for shape in map(constant_shape, self.constants)
            if shape is not None
        )

    def scale_shift(self, constant: Array | None = None) -> tuple[Array, Array]:
        """s and t, float64: each a scalar or as long as the constants are.

        `constant` stands for the one constant of an arithmetic operator, in another shape.
        """
        op = self.node.op_type
        one, zero = np.ones(()), np.zeros(())
        if op == "Neg":
            return -one, zero
        flat = [array_of(c).astype(np.float64).reshape(-1) for c in self.constants]
        if op == "BatchNormalization":
            scale, bias, mean, var = flat
            s = scale / np.sqrt(var + float(attribute(self.node, "epsilon")))
            return s, bias - mean * s
        c = constant if constant is not None else flat[0]
        c = c.reshape(()) if c.size == 1 else c
        if op == "Sub":
            return (one, -c) if self.node.inputs[0] is self.input else (-one, c)
        if op == "Add":
            return one, c
        with np.errstate(divide="ignore"):
            return (c, zero) if op == "Mul" else (1.0 / c, zero)


def affine_of(node: ir.Node, facts: Shapes, through: ir.Value | None = None) -> Affine | None:
    """`node` as an affine function of its one operand (or of `through`) that is not constant."""
    if node.op_type not in _AFFINE or node.domain not in ("", "ai.onnx"):
        return None
    if facts.dtype(node.outputs[0]) not in FLOATS:
        return None
    values = [v for v in node.inputs if v is not None]
    if node.op_type == "BatchNormalization":
        if len(values) != 5 or attribute(node, "training_mode"):
            return None
        if any(o.uses() or o.is_graph_output() for o in node.outputs[1:]):
            return None
        if any(constant_shape(v) is None for v in values[1:]):
            return None
        return Affine(node, values[0], tuple(values[1:]))
    if node.op_type == "Neg":
        return Affine(node, values[0], ())
    free = [v for v in values if constant_shape(v) is None]
    if len(free) != 1 or (through is not None and free[0] is not through):
        return None
    if node.op_type == "Div" and values[0] is not free[0]:
        return None
    return Affine(node, free[0], tuple(v for v in values if v is not free[0]))


def held_linear(node: ir.Node, facts: Shapes) -> Linear | None:
    """`node` as a linear operator that reads one weight as it is held, or None."""
    op = linear_of(node)
    if isinstance(op, str) or op.stacked or constant_shape(op.weight) is None:
        return None
    return None if op.left and (facts.rank(op.x) or 0) < 2 else op


def output_rank(op: Linear, facts: Shapes) -> int | None:
    """The rank of the output, or None."""
    return facts.rank(op.y) if op.node.op_type == "MatMul" else len(op.shape)


def rounded(new: Array, like: Array) -> Array | None:
    """`new` in the type of `like`, or None if rounding makes a finite weight infinite or NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = new.astype(like.dtype)
        return cast if bool(np.isfinite(cast.astype(np.float32)).all()) else None
