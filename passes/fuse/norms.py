"""Normalizations written out become one operator, and take the scale and shift after them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.affine.operators import affine_of, rounded
from graphopt.passes.fuse.availability import reachable, standard
from graphopt.passes.fuse.weights import FLOATS, Array

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import array_of, constant_shape, number
from graphopt.rewriting.patterns import Match

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


def _last_axes(
    means: Sequence[ir.Node], x: ir.Value, epsilon: ir.Value, ctx: Context
) -> dict[str, Any] | str | bool:
    """The first normalized axis, the normalized sizes and epsilon."""
    facts = ctx.get(shapes)
    dims, eps = facts.shape(x), number(epsilon)
    if dims is None or eps is None or facts.dtype(x) not in FLOATS:
        return False
    rank = len(dims)
    axes = {reduced_axes(m, rank) for m in means}
    if any(not attribute(m, "keepdims") for m in means) or len(axes) != 1:
        return "the means are over different axes, or drop them"
    (over,) = axes
    if not over or over != tuple(range(rank - len(over), rank)):
        return "the normalized axes are not the last ones"
    sizes = dims[rank - len(over) :]
    if not all(isinstance(d, int) for d in sizes):
        return "the size of the normalized axes is not known"
    return {"axis": -len(over), "sizes": sizes, "epsilon_value": eps, "dtype": facts.dtype(x)}


def _ones(op: Any, sizes: tuple[int, ...], dtype: ir.DataType, name: str) -> ir.Value:
    value: ir.Value = op.constant(np.ones(sizes, dtype.numpy()), name)
    return value


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
        """As LayerNorm is written."""
        return _centred_over_root(op, x, epsilon)

    def check(
        self,
        ctx: Context,
        match: Match,
        x: ir.Value,
        epsilon: ir.Value,
        mean: ir.Node,
        variance: ir.Node,
    ) -> dict[str, Any] | bool:
        """Both means over the spatial axes, a known number of channels."""
        facts = ctx.get(shapes)
        dims, eps, dtype = facts.shape(x), number(epsilon), facts.dtype(x)
        if dims is None or len(dims) < 4 or eps is None or dtype not in FLOATS:
            return False
        axes = {reduced_axes(m, len(dims)) for m in (mean, variance)}
        if axes != {tuple(range(2, len(dims)))} or not isinstance(dims[1], int):
            return False
        if not all(attribute(m, "keepdims") for m in (mean, variance)):
            return False
        for use in match.root.outputs[0].uses():
            given = [constant_shape(v) for v in use.node.inputs]
            if any(s and s[-1] != 1 for s in given):
                return False
        return {"channels": dims[1], "epsilon_value": eps, "dtype": dtype}

    def rewrite(
        self, op: Any, x: ir.Value, channels: int, epsilon_value: float, dtype: ir.DataType
    ) -> ir.Value:
        """InstanceNormalization with scale 1 and bias 0."""
        scale = _ones(op, (channels,), dtype, "instance_norm_scale")
        bias = op.constant(np.zeros(channels, dtype.numpy()), "instance_norm_bias")
        out: ir.Value = op.InstanceNormalization(x, scale, bias, epsilon=epsilon_value)
        return out


class LayerNorm(Rule):
    """(x - mean(x)) / sqrt(mean((x - mean(x))^2) + eps) -> LayerNormalization(x, 1)

    over the last axes (Ba et al., arXiv:1607.06450). `NormScaleShift` adds scale and bias.
    """

    def pattern(self, op: Any, x: Any, epsilon: Any) -> Any:
        """One mean, subtracted once or twice."""
        return _centred_over_root(op, x, epsilon)

    def check(
        self, ctx: Context, x: ir.Value, epsilon: ir.Value, mean: ir.Node, variance: ir.Node
    ) -> dict[str, Any] | str | bool:
        """Both means over the same last axes, of known size."""
        found = _last_axes((mean, variance), x, epsilon, ctx)
        if not isinstance(found, dict):
            return found
        if not reachable(ctx, "LayerNormalization", 17):
            return "the target has no LayerNormalization at this opset"
        return found if standard(ctx, "LayerNormalization", 17) else False

    def rewrite(
        self,
        op: Any,
        x: ir.Value,
        axis: int,
        sizes: tuple[int, ...],
        epsilon_value: float,
        dtype: ir.DataType,
    ) -> ir.Value:
        """LayerNormalization with scale 1."""
        scale = _ones(op, sizes, dtype, "layer_norm_scale")
        out: ir.Value = op.LayerNormalization(x, scale, axis=axis, epsilon=epsilon_value)
        return out


class RMSNorm(Rule):
    """x / sqrt(mean(x^2) + eps) -> RMSNormalization(x, 1)

    over the last axes (Zhang & Sennrich, arXiv:1910.07467). `NormScaleShift` adds the scale.
    """

    def pattern(self, op: Any, x: Any, epsilon: Any) -> Any:
        """The root of the mean square divides."""
        square = op.any(op.Pow(x, 2.0), op.Mul(x, x))
        return _over_root(op, x, op.Add(op.ReduceMean(square, ..., as_="mean"), epsilon))

    def check(
        self, ctx: Context, x: ir.Value, epsilon: ir.Value, mean: ir.Node
    ) -> dict[str, Any] | str | bool:
        """The mean over last axes of known size."""
        found = _last_axes((mean,), x, epsilon, ctx)
        if not isinstance(found, dict):
            return found
        if not reachable(ctx, "RMSNormalization", 23):
            return "the target has no RMSNormalization at this opset"
        return found if standard(ctx, "RMSNormalization", 23) else False

    def rewrite(
        self,
        op: Any,
        x: ir.Value,
        axis: int,
        sizes: tuple[int, ...],
        epsilon_value: float,
        dtype: ir.DataType,
    ) -> ir.Value:
        """RMSNormalization with scale 1."""
        scale = _ones(op, sizes, dtype, "rms_norm_scale")
        out: ir.Value = op.RMSNormalization(x, scale, axis=axis, epsilon=epsilon_value)
        return out


class NormScaleShift(Rule):
    """s * (g n(x) + b) + t -> (s g) n(x) + (s b + t)

    for constants s and t along the normalized axes (LayerNormalization, RMSNormalization, which
    takes no shift) or along the channels (InstanceNormalization, BatchNormalization).
    """

    def pattern(self, op: Any, c: Any) -> Any:
        """One of the affine operators on one of the normalizations."""
        norm = op.any(
            op.LayerNormalization(..., as_="norm"),
            op.RMSNormalization(..., as_="norm"),
            op.InstanceNormalization(..., as_="norm"),
            op.BatchNormalization(..., as_="norm"),
        )
        return op.any(
            op.Mul(norm, c), op.Div(norm, c), op.Add(norm, c), op.Sub(norm, c), op.Sub(c, norm)
        )

    def check(self, norm: ir.Node, match: Match, ctx: Context) -> dict[str, Any] | str | bool:
        """Constants of the normalization's own shape, and no overflow."""
        facts = ctx.get(shapes)
        f = affine_of(match.root, facts, norm.outputs[0])
        dims = facts.shape(norm.outputs[0])
        shape = constant_shape(norm.inputs[1])
        if f is None or dims is None or shape is None:
            return False
        if any(o.uses() or o.is_graph_output() for o in norm.outputs[1:]):
            return "another output of the normalization is used"
        last = norm.op_type in ("LayerNormalization", "RMSNormalization")
        if f.shifts and norm.op_type == "RMSNormalization":
            return "an RMS normalization has no bias"
        old_bias = norm.inputs[2] if len(norm.inputs) > 2 else None
        if old_bias is not None and constant_shape(old_bias) != shape:
            return "the normalization's bias is no constant"
        (c,) = f.constants
        given = constant_shape(c)
        if given is None:
            return False
        rank = len(dims)
        wide = (1,) * (rank - len(given)) + given
        own = (1,) * (rank - len(shape)) + shape
        if not last:
            own = (1, *shape, *(1,) * (rank - 2))
        if len(given) > rank or any(g not in (1, o) for g, o in zip(wide, own, strict=True)):
            return "the constant does not run along the normalized axes"
        value = array_of(c).astype(np.float64).reshape(wide)
        s, t = f.scale_shift(np.broadcast_to(value, own).reshape(shape))
        scale, shift = np.broadcast_to(s, shape), np.broadcast_to(t, shape)
        if not (np.isfinite(scale).all() and np.isfinite(shift).all()):
            return "the constant is not finite"
        old = array_of(norm.inputs[1])
        new_scale = rounded(old.astype(np.float64) * scale, old) if f.scales else None
        if f.scales and new_scale is None:
            return "the folded scale would overflow"
        new_bias = None
        if old_bias is not None or f.shifts:
            b = np.zeros(shape) if old_bias is None else array_of(old_bias).astype(np.float64)
            new_bias = rounded(b * scale + shift, old)
            if new_bias is None:
                return "the folded bias would overflow"
        return {"scale": new_scale, "bias": new_bias}

    def rewrite(self, op: Any, norm: ir.Node, scale: Array | None, bias: Array | None) -> ir.Value:
        """The normalization with new constants."""
        inputs = list(norm.inputs)
        assert inputs[1] is not None
        if scale is not None:
            inputs[1] = op.constant(scale, inputs[1].name)
        if bias is not None:
            old = inputs[2] if len(inputs) > 2 else None
            name = old.name if old is not None else f"{norm.name}_bias"
            inputs[2:3] = [op.constant(bias, name)]
        out: ir.Value = op.node(norm.op_type, inputs, dict(norm.attributes)).outputs[0]
        return out
