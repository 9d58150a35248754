"""Around RotaryEmbedding: the channels it leaves alone, and operands that stay packed."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.attention.heads import packed_steps
from graphopt.passes.fuse.attention.rotary import taken
from graphopt.passes.fuse.layout.axes import Steps
from graphopt.passes.fuse.layout.views import apply_steps, reshape_target

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.attributes import attribute
from graphopt.rewriting.patterns import Match

__all__ = ["PackRotary", "PartialRotary"]


class PartialRotary(Rule):
    """Concat(RotaryEmbedding(x[:r]), x[r:]) -> RotaryEmbedding(x, rotary_embedding_dim=r)

    along the channels, for x: [b, h, s, d], or [b, s, h, d] with the rotated part packed.
    """

    shared = True

    def pattern(self, op: Any, x: Any, y: Any) -> Any:
        """The rotated channels and the others."""
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
    ) -> bool | dict[str, Any]:
        """Both are parts of one value, and nothing else reads the rotated one."""
        facts = ctx.get(shapes)
        node = x.producer()
        if apart is not None:
            if node is None or node.op_type != "Reshape" or node.inputs[0] is None:
                return False
            x = node.inputs[0]
        inner = apart if apart is not None else rotary
        if len(rotary.outputs[0].uses()) != 1 or len(inner.outputs[0].uses()) != 1:
            return False
        a, b = taken(x, facts), taken(y, facts)
        width = facts.shape(x)
        if a is None or b is None or width is None or attribute(match.root, "axis") not in (-1, 3):
            return False
        whole = facts.shape(a[0])
        if a != (a[0], 0, 1) or b != (a[0], width[-1], 1) or whole is None or len(whole) != 4:
            return False
        if facts.shape(match.root.outputs[0]) != whole or not isinstance(whole[1], int):
            return False
        if apart is not None and not all(isinstance(d, int) for d in whole):
            return False
        return {"whole": a[0], "dims": whole, "width": width[-1], "packed": apart is not None}

    def rewrite(
        self,
        op: Any,
        rotary: ir.Node,
        whole: ir.Value,
        dims: tuple[int, int, int, int],
        width: int,
        packed: bool,
    ) -> ir.Value:
        """The rotation of a part of the channels."""
        attributes: dict[str, Any] = {**rotary.attributes, "rotary_embedding_dim": width}
        b, h, s, d = dims
        if packed:
            whole = op.Reshape(whole, op.constant(np.array([b, h, s * d]), "shape"))
        else:
            # implementations want the number of heads to go with a part
            attributes["num_heads"] = h
        out: ir.Value = op.node("RotaryEmbedding", [whole, *rotary.inputs[1:]], attributes).outputs[
            0
        ]
        return op.Reshape(out, op.constant(np.array(dims), "shape")) if packed else out


class PackRotary(Rule):
    """RotaryEmbedding(apart(x)) -> apart(RotaryEmbedding(x))

    where apart is [b, s, h d] -> [b, h, s, d]: packed, the operator does the same, and what follows
    can stay packed too.
    """

    def pattern(self, op: Any, x: Any) -> Any:
        """A rotation of a transposed value."""
        return op.RotaryEmbedding(x, ...)

    def check(self, ctx: Context, match: Match, x: ir.Value) -> bool | dict[str, Any]:
        """As many view operators or fewer, and a known number of heads."""
        facts = ctx.get(shapes)
        dims = facts.shape(x)
        packed = packed_steps(x, facts)
        if packed is None or dims is None or len(dims) != 4 or not isinstance(dims[1], int):
            return False
        if packed[3] < 2:
            return False
        b, h, s, d = dims
        target = reshape_target((b, s, h, d), (b, s, h * d))
        return target is not None and {"packed": packed, "dims": dims}

    def rewrite(
        self,
        op: Any,
        match: Match,
        packed: tuple[ir.Value, Steps, tuple[Dim, ...], int],
        dims: tuple[Dim, ...],
    ) -> ir.Value:
        """The rotation of the packed value, taken apart."""
        source, steps, shape, _ = packed
        x = apply_steps(op, source, steps, shape)
        b, h, s, d = dims
        attributes = {**match.root.attributes, "num_heads": h}
        out = op.node("RotaryEmbedding", [x, *match.root.inputs[1:]], attributes).outputs[0]
        apart: Steps = [("Reshape", (b, s, h, d)), ("Transpose", (0, 2, 1, 3))]
        return apply_steps(op, out, apart, (b, s, h * d))
