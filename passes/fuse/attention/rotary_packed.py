"""Partial and packed rotary embedding: channels it leaves alone, operands that stay packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.attention.heads import packed
from graphopt.passes.fuse.attention.rotary import taken
from graphopt.passes.fuse.layout.axes import Steps
from graphopt.passes.fuse.layout.views import apply_steps, reshape_target

from graphopt import Bind, Context, Replacement, Rule, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.rewriting.patterns import Match

__all__ = ["PackRotary", "PartialRotary"]


class PartialRotary(Rule):
    """Concat(RotaryEmbedding(x[:r]), x[r:]) -> RotaryEmbedding(x, rotary_embedding_dim=r)

    along the channels, for x: [b, h, s, d], or [b, s, h, d] with the rotated part packed.
    """

    shared = True

    def pattern(self, op: Any, x: Any, y: Any) -> Any:
        rotary = op.RotaryEmbedding(x, ..., as_="rotary")
        return op.Concat(op.any(rotary, op.Reshape(rotary, ..., as_="apart")), y)

    def check(
        self,
        ctx: Context,
        match: Match,
        x: ir.Value,
        y: ir.Value,
        rotary: ir.Node,
        apart: ir.Node | None = None,
    ) -> Bind | None:
        facts, node, inner = ctx.get(shapes), x.producer(), apart or rotary
        if apart is not None:
            if node is None or node.op_type != "Reshape" or node.inputs[0] is None:
                return None
            x = node.inputs[0]
        if len(rotary.outputs[0].uses()) != 1 or len(inner.outputs[0].uses()) != 1:
            return None
        a, b, width = taken(x, facts), taken(y, facts), facts.shape(x)
        if a is None or b is None or width is None or attribute(match.root, "axis") not in (-1, 3):
            return None
        dims = facts.shape(a[0])
        if a != (a[0], 0, 1) or b != (a[0], width[-1], 1) or dims is None or len(dims) != 4:
            return None
        if facts.shape(match.root.outputs[0]) != dims or not isinstance(dims[1], int):
            return None
        if apart is not None and not all(isinstance(d, int) for d in dims):
            return None
        return Bind(whole=a[0], dims=dims, width=width[-1], packed=apart is not None)

    def rewrite(
        self,
        op: Builder,
        rotary: ir.Node,
        whole: ir.Value,
        dims: tuple[int, int, int, int],
        width: int,
        packed: bool,
    ) -> ir.Value:
        b, h, s, d = dims
        settings = {"rotary_embedding_dim": width}
        if packed:
            whole = op.Reshape(whole, op.constant(np.array([b, h, s * d]), "shape"))
        else:
            # implementations want the number of heads to go with a part
            settings["num_heads"] = h
        out = op.again(rotary, [whole, *rotary.inputs[1:]], **settings)
        return op.Reshape(out, op.constant(np.array(dims), "shape")) if packed else out


class PackRotary(Walker):
    """RotaryEmbedding(apart(x)) -> apart(RotaryEmbedding(x))

    where apart is [b, s, h d] -> [b, h, s, d]: packed, the operator does the same, and what follows
    can stay packed too. As many view operators or fewer, and a known number of heads.
    """

    roots = ("RotaryEmbedding",)

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        x, *tables = node.inputs
        facts = ctx.get(shapes)
        source, dims = (None, None) if x is None else (packed(x, facts), facts.shape(x))
        if source is None or dims is None or len(dims) != 4 or not isinstance(dims[1], int):
            return None
        b, h, s, d = dims
        flat, apart = (b, s, h * d), (b, s, h, d)
        if source.gain < 2 or reshape_target(apart, flat) is None:
            return None
        steps: Steps = [("Reshape", apart), ("Transpose", (0, 2, 1, 3))]

        def build(op: Builder) -> ir.Value:
            out = op.again(node, [source.write(op), *tables], num_heads=h)
            return apply_steps(op, out, steps, flat)

        return Replacement(build)
