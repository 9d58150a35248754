"""Affine operators with constant operands, y = s * x + t, and the linear operators they fold into.

    Mul(x, c)   s = c        Add(x, c)  t = c     BatchNormalization  s = scale / sqrt(var + eps)
    Div(x, c)   s = 1 / c    Sub(x, c)  t = -c                        t = bias - mean * s
    Neg(x)      s = -1       Sub(c, x)  s = -1, t = c

Scales and shifts are computed in float64 and rounded once, to the weight's type.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.weights import FLOATS, Array, array, constant_shape, per_channel

from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.attributes import default_attribute

__all__ = ["Affine", "Linear", "affine_of", "attribute", "linear_of", "rounded"]

_AFFINE = ("Mul", "Div", "Add", "Sub", "Neg", "BatchNormalization")


def attribute(node: ir.Node, name: str) -> Any:
    """An attribute's value, or the ONNX default, or None."""
    have = node.attributes.get(name)
    if have is not None:
        return have.value
    return default_attribute(node.domain, node.op_type, name)


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
        flat = [array(c).astype(np.float64).reshape(-1) for c in self.constants]
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


@dataclasses.dataclass(frozen=True)
class Linear:
    """A linear operator with a constant weight.

    Attributes:
        node: Conv, ConvTranspose, Gemm or MatMul.
        data: the operand that is not constant.
        weight: the constant one.
        bias: the third operand, or None.
        out_axis, out_channels: where output channels lie in the output, and how many there are.
        in_channels: how many input channels there are.
        rank: rank of the output, or None.
        left: MatMul(weight, data).
    """

    node: ir.Node
    data: ir.Value
    weight: ir.Value
    bias: ir.Value | None
    out_axis: int
    out_channels: int
    in_channels: int
    rank: int | None
    left: bool = False

    @property
    def in_axis(self) -> int:
        """Where input channels lie in the data."""
        return -1 if self.node.op_type == "Gemm" else self.out_axis

    def _groups(self) -> int:
        return int(attribute(self.node, "group") or 1)

    def scale_outputs(self, w: Array, s: Array) -> Array:
        """The weight w' with w' x = s * (w x), s of shape () or (out_channels,)."""
        op, tail = self.node.op_type, (1,) * (w.ndim - 2)
        if s.ndim == 0:
            return w * s
        if op == "Conv":
            return w * s.reshape(-1, 1, *tail)
        if op == "ConvTranspose":
            g = self._groups()
            split = w.reshape(g, w.shape[0] // g, *w.shape[1:])
            return (split * s.reshape(g, 1, -1, *tail)).reshape(w.shape)
        rows = self.left or (op == "Gemm" and bool(attribute(self.node, "transB")))
        return w * (s[:, None] if rows else s)

    def scale_inputs(self, w: Array, s: Array) -> Array:
        """The weight w' with w' x = w (s * x), s of shape () or (in_channels,)."""
        op, tail = self.node.op_type, (1,) * (w.ndim - 2)
        if s.ndim == 0:
            return w * s
        if op == "Conv":
            g = self._groups()
            split = w.reshape(g, w.shape[0] // g, *w.shape[1:])
            return (split * s.reshape(g, 1, -1, *tail)).reshape(w.shape)
        if op == "ConvTranspose":
            return w * s.reshape(-1, 1, *tail)
        rows = not (self.left or (op == "Gemm" and bool(attribute(self.node, "transB"))))
        return w * (s[:, None] if rows else s)

    def shift_inputs(self, w: Array, t: Array) -> Array:
        """The output w t for inputs that are t everywhere: shape (out_channels,)."""
        op = self.node.op_type
        full = np.broadcast_to(t, (self.in_channels,))
        if op == "Conv":
            g = self._groups()
            split = w.reshape(g, w.shape[0] // g, w.shape[1], -1).sum(-1)
            summed: Array = np.einsum("goi,gi->go", split, full.reshape(g, -1))
            return summed.reshape(-1)
        rows = op == "Gemm" and bool(attribute(self.node, "transB"))
        product: Array = np.asarray(w @ full if rows else full @ w)
        if op == "Gemm":
            product = np.asarray(product * float(attribute(self.node, "alpha")))
        return product


def linear_of(node: ir.Node, facts: Shapes) -> Linear | None:
    """`node` as a linear operator with a constant weight of known shape, or None."""
    if node.domain not in ("", "ai.onnx"):
        return None
    inputs = list(node.inputs) + [None] * 3
    a, b, bias = inputs[0], inputs[1], inputs[2]
    if a is None or b is None:
        return None
    shape = constant_shape(b)
    rank = facts.rank(node.outputs[0])
    op = node.op_type
    if op in ("Conv", "ConvTranspose"):
        if shape is None or constant_shape(a) is not None:
            return None
        g = int(attribute(node, "group") or 1)
        wide = shape[1] * g
        out, into = (shape[0], wide) if op == "Conv" else (wide, shape[0])
        return Linear(node, a, b, bias, 1, out, into, len(shape))
    if op == "Gemm":
        if shape is None or constant_shape(a) is not None:
            return None
        into, out = reversed(shape) if attribute(node, "transB") else shape
        return Linear(node, a, b, bias, -1, out, into, 2)
    if op == "MatMul":
        if shape is not None and len(shape) == 2 and constant_shape(a) is None:
            return Linear(node, a, b, None, -1, shape[1], shape[0], rank)
        left = constant_shape(a)
        if left is not None and len(left) == 2 and shape is None:
            if (facts.rank(b) or 0) < 2:
                return None
            return Linear(node, b, a, None, -2, left[0], left[1], rank, left=True)
    return None


def rounded(new: Array, like: Array) -> Array | None:
    """`new` in the type of `like`, or None if rounding makes a finite weight infinite or NaN."""
    with np.errstate(over="ignore", invalid="ignore"):
        cast = new.astype(like.dtype)
        return cast if bool(np.isfinite(cast.astype(np.float32)).all()) else None
