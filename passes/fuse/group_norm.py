"""Group normalization, which exporters write by InstanceNormalization of reshaped channels."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.affine.operators import rounded
from graphopt.passes.fuse.availability import reachable, standard
from graphopt.passes.fuse.weights import FLOATS, Array, per_channel

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import array_of, constant_shape

__all__ = ["GroupNorm"]


class GroupNorm(Rule):
    """g * back(InstanceNormalization(groups(x), s, t)) + b -> GroupNormalization(x, g', b')

    with groups(x) = [n, groups, -1], back its inverse, and one scale and shift a channel
    (Wu & He, arXiv:1803.08494): g' = g s and b' = g t + b, s and t of the channel's group.
    """

    def pattern(self, op: Any, x: Any, g: Any, b: Any) -> Any:
        """The normalization between two Reshapes, scaled and shifted."""
        norm = op.InstanceNormalization(op.Reshape(x, ...), ..., as_="norm")
        return op.Add(op.Mul(op.Reshape(norm, ..., as_="back"), g), b)

    def check(
        self, ctx: Context, x: ir.Value, g: ir.Value, b: ir.Value, norm: ir.Node, back: ir.Node
    ) -> bool | str | dict[str, Any]:
        """Channels in groups, constants along the channels, no overflow."""
        facts = ctx.get(shapes)
        dims, inner = facts.shape(x), facts.shape(norm.outputs[0])
        if dims is None or inner is None or facts.dtype(x) not in FLOATS or len(dims) < 3:
            return False
        if facts.shape(back.outputs[0]) != dims or len(inner) < 3 or inner[0] != dims[0]:
            return False
        groups, channels = inner[1], dims[1]
        if not isinstance(groups, int) or not isinstance(channels, int) or channels % groups:
            return False
        for value in (g, b):
            shape = constant_shape(value)
            if shape is None or per_channel(shape, len(dims), 1, channels) is None:
                return "the scale or shift does not run along the channels"
        if any(constant_shape(v) != (groups,) for v in norm.inputs[1:3]):
            return False
        if not reachable(ctx, "GroupNormalization", 21):
            return "the target has no GroupNormalization at this opset"
        like = array_of(norm.inputs[1])
        s, t = (
            np.repeat(array_of(v).astype(np.float64), channels // groups) for v in norm.inputs[1:3]
        )
        wide = array_of(g).astype(np.float64).reshape(-1)
        scale = rounded(np.broadcast_to(wide * s, (channels,)), like)
        shift = rounded(
            np.broadcast_to(wide * t + array_of(b).astype(np.float64).reshape(-1), (channels,)),
            like,
        )
        if scale is None or shift is None:
            return "the folded scale or shift would overflow"
        if not standard(ctx, "GroupNormalization", 21):
            return False
        epsilon = float(attribute(norm, "epsilon"))
        return {"groups": groups, "scale": scale, "shift": shift, "epsilon": epsilon}

    def rewrite(
        self,
        op: Any,
        x: ir.Value,
        g: ir.Value,
        b: ir.Value,
        groups: int,
        scale: Array,
        shift: Array,
        epsilon: float,
    ) -> ir.Value:
        """GroupNormalization."""
        out: ir.Value = op.GroupNormalization(
            x,
            op.constant(np.ascontiguousarray(scale), g.name),
            op.constant(np.ascontiguousarray(shift), b.name),
            num_groups=groups,
            epsilon=epsilon,
        )
        return out
