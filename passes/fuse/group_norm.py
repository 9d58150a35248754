"""Group normalization fusion: exporters write it by InstanceNormalization of reshaped channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.affine.operators import rounded
from graphopt.passes.fuse.availability import available, reachable
from graphopt.passes.fuse.weights import FLOATS, Array, per_channel

from graphopt import Context, Refused, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape
from graphopt.rewriting.rules import Verdict

__all__ = ["GroupNorm"]


class GroupNorm(Rule):
    """g * back(InstanceNormalization(groups(x), s, t)) + b -> GroupNormalization(x, g', b')

    with groups(x) = [n, groups, -1], back its inverse, and one scale and shift a channel
    (Wu & He, arXiv:1803.08494): g' = g s and b' = g t + b, s and t of the channel's group.
    """

    def pattern(self, op: Any, x: Any, g: Any, b: Any) -> Any:
        norm = op.InstanceNormalization(op.Reshape(x, ...), ..., as_="norm")
        return op.Add(op.Mul(op.Reshape(norm, ..., as_="back"), g), b)

    def check(
        self, ctx: Context, x: ir.Value, g: ir.Value, b: ir.Value, norm: ir.Node, back: ir.Node
    ) -> Verdict:
        facts = ctx.get(shapes)
        dims, inner = facts.shape(x), facts.shape(norm.outputs[0])
        if dims is None or inner is None or facts.dtype(x) not in FLOATS or len(dims) < 3:
            return None
        if facts.shape(back.outputs[0]) != dims or len(inner) < 3 or inner[0] != dims[0]:
            return None
        groups, channels = inner[1], dims[1]
        if not isinstance(groups, int) or not isinstance(channels, int) or channels % groups:
            return None
        for value in (g, b):
            shape = constant_shape(value)
            if shape is None or per_channel(shape, len(dims), 1, channels) is None:
                return Refused("the scale or shift does not run along the channels")
        if any(constant_shape(v) != (groups,) for v in norm.inputs[1:3]):
            return None
        if not reachable(ctx, "GroupNormalization", 21):
            return Refused("the target has no GroupNormalization at this opset")
        scale, shift = _folded(norm, g, b, groups, channels)
        if scale is None or shift is None:
            return Refused("the folded scale or shift would overflow")
        epsilon = float(attribute(norm, "epsilon"))
        found = {"scale": scale, "shift": shift, "groups": groups, "epsilon": epsilon}
        return available(ctx, "GroupNormalization", 21, **found)

    def rewrite(
        self,
        op: Builder,
        x: ir.Value,
        g: ir.Value,
        b: ir.Value,
        groups: int,
        scale: Array,
        shift: Array,
        epsilon: float,
    ) -> ir.Value:
        weights = (op.constant(scale, g.name), op.constant(shift, b.name))
        return op.GroupNormalization(x, *weights, num_groups=groups, epsilon=epsilon)


def _folded(
    norm: ir.Node, g: ir.Value, b: ir.Value, groups: int, channels: int
) -> tuple[Array | None, Array | None]:
    """g' = g s and b' = g t + b, one number a channel; None if it overflows."""
    like = array_of(norm.inputs[1])
    s, t = (np.repeat(array_of(v).astype(np.float64), channels // groups) for v in norm.inputs[1:3])
    wide, bias = (array_of(v).astype(np.float64).reshape(-1) for v in (g, b))
    scale, shift = (np.broadcast_to(v, (channels,)) for v in (wide * s, wide * t + bias))
    return rounded(scale, like), rounded(shift, like)
