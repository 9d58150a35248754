"""Normalization fusion: Layer, RMS and Instance normalization, with the scale and shift after."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.affine.operators import Affine, affine_of, rounded
from graphopt.passes.fuse.availability import available
from graphopt.passes.fuse.weights import FLOATS, Array

from graphopt import Bind, Context, Refused, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape, number
from graphopt.rewriting.patterns import Match
from graphopt.rewriting.rules import Verdict

__all__ = ["InstanceNorm", "LayerNorm", "NormScaleShift", "RMSNorm", "reduced_axes"]


def reduced_axes(node: ir.Node, rank: int) -> tuple[int, ...] | None:
    """Axes a Reduce operator reduces, sorted, from 0; None if they are not constant."""
    given: Sequence[int] | None = attribute(node, "axes")
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        if constant_shape(node.inputs[1]) is None:
            return None
        given = [int(a) for a in array_of(node.inputs[1]).reshape(-1)]
    if not given:
        return () if attribute(node, "noop_with_empty_axes") else tuple(range(rank))
    return tuple(sorted(int(a) % rank for a in given))


def _over_last_axes(
    ctx: Context, name: str, since: int, match: Match, x: ir.Value, epsilon: ir.Value
) -> Verdict:
    """Whether the operator `name` can be written: binds the first axis, its scale of 1, epsilon."""
    means = [n for n in match.nodes if n.op_type == "ReduceMean"]
    facts = ctx.get(shapes)
    dims, eps, dtype = facts.shape(x), number(epsilon), facts.dtype(x)
    if dims is None or eps is None or dtype not in FLOATS:
        return None
    rank = len(dims)
    axes = {reduced_axes(m, rank) for m in means}
    if any(not attribute(m, "keepdims") for m in means) or len(axes) != 1:
        return Refused("the means are over different axes, or drop them")
    (over,) = axes
    if not over or over != tuple(range(rank - len(over), rank)):
        return Refused("the normalized axes are not the last ones")
    sizes = [d for d in dims[rank - len(over) :] if isinstance(d, int)]
    if len(sizes) != len(over):
        return Refused("the size of the normalized axes is not known")
    ones = np.ones(sizes, dtype.numpy())
    return available(ctx, name, since, axis=-len(over), ones=ones, eps=eps)


def _over_root(op: Any, x: Any, variance: Any) -> Any:
    """x / sqrt(variance), as exporters write it."""
    root = op.Sqrt(variance)
    return op.any(
        op.Div(x, root),
        op.Mul(x, op.Reciprocal(root)),
        op.Mul(x, op.Div(1.0, root)),
        op.Mul(x, op.Pow(variance, -0.5)),
    )


def _centred_over_root(op: Any, x: Any, epsilon: Any) -> Any:
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps), the mean subtracted once or twice."""
    centred = op.Sub(x, op.ReduceMean(x, ..., as_="mean"))
    square = op.any(op.Pow(centred, 2.0), op.Mul(centred, centred))
    variance = op.Add(op.ReduceMean(square, ..., as_="variance"), epsilon)
    return _over_root(op, centred, variance)


class InstanceNorm(Rule):
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) -> InstanceNormalization(x, 1, 0)

    over all axes but batch and channels, two at least (Ulyanov et al., arXiv:1607.08022), unless a
    scale of the normalized axes' own shape follows: that is a LayerNorm.
    """

    def pattern(self, op: Any, x: Any, epsilon: Any) -> Any:
        return _centred_over_root(op, x, epsilon)

    def check(
        self,
        ctx: Context,
        match: Match,
        x: ir.Value,
        epsilon: ir.Value,
        mean: ir.Node,
        variance: ir.Node,
    ) -> Bind | None:
        facts = ctx.get(shapes)
        dims, eps, dtype = facts.shape(x), number(epsilon), facts.dtype(x)
        if dims is None or len(dims) < 4 or eps is None or dtype not in FLOATS:
            return None
        axes = {reduced_axes(m, len(dims)) for m in (mean, variance)}
        if axes != {tuple(range(2, len(dims)))} or not isinstance(dims[1], int):
            return None
        if not all(attribute(m, "keepdims") for m in (mean, variance)):
            return None
        for use in match.root.outputs[0].uses():
            given = [constant_shape(v) for v in use.node.inputs]
            if any(s and s[-1] != 1 for s in given):
                return None
        return Bind(ones=np.ones(dims[1], dtype.numpy()), eps=eps)

    def rewrite(self, op: Builder, x: ir.Value, ones: Array, eps: float) -> ir.Value:
        scale = op.constant(ones, "instance_norm_scale")
        bias = op.constant(np.zeros_like(ones), "instance_norm_bias")
        return op.InstanceNormalization(x, scale, bias, epsilon=eps)


class LayerNorm(Rule):
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) -> LayerNormalization(x, 1)

    over the last axes (Ba et al., arXiv:1607.06450). `NormScaleShift` adds scale and bias.
    """

    def pattern(self, op: Any, x: Any, epsilon: Any) -> Any:
        return _centred_over_root(op, x, epsilon)

    def check(self, ctx: Context, match: Match, x: ir.Value, epsilon: ir.Value) -> Verdict:
        return _over_last_axes(ctx, "LayerNormalization", 17, match, x, epsilon)

    def rewrite(self, op: Builder, x: ir.Value, axis: int, ones: Array, eps: float) -> ir.Value:
        scale = op.constant(ones, "layer_norm_scale")
        return op.LayerNormalization(x, scale, axis=axis, epsilon=eps)


class RMSNorm(Rule):
    """x / sqrt(mean(x^2) + eps) -> RMSNormalization(x, 1)

    over the last axes (Zhang & Sennrich, arXiv:1910.07467). `NormScaleShift` adds the scale.
    """

    def pattern(self, op: Any, x: Any, epsilon: Any) -> Any:
        square = op.any(op.Pow(x, 2.0), op.Mul(x, x))
        return _over_root(op, x, op.Add(op.ReduceMean(square, ...), epsilon))

    def check(self, ctx: Context, match: Match, x: ir.Value, epsilon: ir.Value) -> Verdict:
        return _over_last_axes(ctx, "RMSNormalization", 23, match, x, epsilon)

    def rewrite(self, op: Builder, x: ir.Value, axis: int, ones: Array, eps: float) -> ir.Value:
        return op.RMSNormalization(x, op.constant(ones, "rms_norm_scale"), axis=axis, epsilon=eps)


class NormScaleShift(Rule):
    """s * (g n(x) + b) + t -> (s g) n(x) + (s b + t)

    for constants s and t along the normalized axes (LayerNormalization, RMSNormalization, which
    takes no shift) or along the channels (InstanceNormalization, BatchNormalization).
    """

    def pattern(self, op: Any, c: Any) -> Any:
        norm = op.any(
            op.LayerNormalization(..., as_="norm"),
            op.RMSNormalization(..., as_="norm"),
            op.InstanceNormalization(..., as_="norm"),
            op.BatchNormalization(..., as_="norm"),
        )
        return op.any(
            op.Mul(norm, c), op.Div(norm, c), op.Add(norm, c), op.Sub(norm, c), op.Sub(c, norm)
        )

    def check(self, norm: ir.Node, match: Match, ctx: Context) -> Verdict:
        facts = ctx.get(shapes)
        f, dims = affine_of(match.root, facts, norm.outputs[0]), facts.shape(norm.outputs[0])
        shape = constant_shape(norm.inputs[1])
        if f is None or dims is None or shape is None:
            return None
        if any(o.uses() or o.is_graph_output() for o in norm.outputs[1:]):
            return Refused("another output of the normalization is used")
        if f.shifts and norm.op_type == "RMSNormalization":
            return Refused("an RMS normalization has no bias")
        bias = norm.inputs[2] if len(norm.inputs) > 2 else None
        if bias is not None and constant_shape(bias) != shape:
            return Refused("the normalization's bias is no constant")
        constant = _along(norm, f.constants[0], len(dims), shape)
        if constant is None:
            return Refused("the constant does not run along the normalized axes")
        return _scaled_and_shifted(f, constant, norm.inputs[1], bias)

    def rewrite(
        self, op: Builder, norm: ir.Node, scale: Array | None, bias: Array | None
    ) -> ir.Value:
        inputs = list(norm.inputs)
        assert inputs[1] is not None
        if scale is not None:
            inputs[1] = op.constant(scale, inputs[1].name)
        if bias is not None:
            old = inputs[2] if len(inputs) > 2 else None
            name = old.name if old is not None else f"{norm.name}_bias"
            inputs[2:3] = [op.constant(bias, name)]
        return op.again(norm, inputs)


def _along(norm: ir.Node, c: ir.Value, rank: int, shape: tuple[int, ...]) -> Array | None:
    """`c` in float64, of the shape of the scale; None if it varies along other axes."""
    given = constant_shape(c)
    assert given is not None
    if norm.op_type in ("LayerNormalization", "RMSNormalization"):
        own = (1,) * (rank - len(shape)) + shape
    else:
        own = (1, *shape, *(1,) * (rank - 2))
    wide = (1,) * (rank - len(given)) + given
    if len(given) > rank or any(g not in (1, o) for g, o in zip(wide, own, strict=True)):
        return None
    return np.broadcast_to(array_of(c).astype(np.float64).reshape(wide), own).reshape(shape)


def _scaled_and_shifted(
    f: Affine, constant: Array, scale: ir.Value | None, bias: ir.Value | None
) -> Bind | Refused:
    """The new scale and bias, of `constant`'s shape; None: as it was."""
    s, t = (np.broadcast_to(v, constant.shape) for v in f.scale_shift(constant))
    if not (np.isfinite(s).all() and np.isfinite(t).all()):
        return Refused("the constant is not finite")
    old = array_of(scale)
    new_scale = rounded(old.astype(np.float64) * s, old) if f.scales else None
    if f.scales and new_scale is None:
        return Refused("the folded scale would overflow")
    new_bias = None
    if bias is not None or f.shifts:
        b = np.zeros(constant.shape) if bias is None else array_of(bias).astype(np.float64)
        new_bias = rounded(b * s + t, old)
        if new_bias is None:
            return Refused("the folded bias would overflow")
    return Bind(scale=new_scale, bias=new_bias)
