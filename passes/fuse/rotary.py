"""Rotary position embeddings written out become RotaryEmbedding (opset 23)."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.affine import attribute
from graphopt.passes.fuse.axes import Steps
from graphopt.passes.fuse.heads import packed_steps
from graphopt.passes.fuse.operators import reachable, standard
from graphopt.passes.fuse.views import apply_steps, reshape_target
from graphopt.passes.fuse.weights import Array, array, constant_shape

from graphopt import Context, Rule
from graphopt.analyses.shapes import Shapes, shapes
from graphopt.analyses.symbolic import Dim
from graphopt.pattern import Match

__all__ = ["PackRotary", "Rotary"]

#: Tables up to this many elements are read.
LARGEST = 1 << 24


def _half(node: ir.Node, facts: Shapes, first: bool) -> bool:
    """Whether a Slice takes the first (or second) half of the last of four axes."""
    source, out = node.inputs[0], node.outputs[0]
    if source is None:
        return False
    dims, got = facts.shape(source), facts.shape(out)
    if dims is None or got is None or len(dims) != 4 or not isinstance(dims[3], int):
        return False
    half = dims[3] // 2
    if dims[3] % 2 or got != (*dims[:3], half) or len(node.inputs) < 4:
        return False
    start, axes = facts.data(node.inputs[1]), facts.data(node.inputs[3])  # type: ignore[arg-type]
    if start is None or axes is None or list(axes.reshape(-1)) not in ([3], [-1]):
        return False
    begin = start.reshape(-1)[0]
    if len(node.inputs) > 4 and node.inputs[4] is not None:
        step = facts.data(node.inputs[4])
        if step is None or step.reshape(-1)[0] != 1:
            return False
    return bool(begin == 0) if first else bool(begin in (half, -half))


class Rotary(Rule):
    """x * cos + rotate(x) * sin -> RotaryEmbedding(x, cos', sin', positions)

    with rotate(x1, x2) = (-x2, x1), x: [b, h, s, d] and constant tables cos and sin: [1, 1, s, d]
    whose two halves are equal (Su et al., arXiv:2104.09864); cos' and sin' are the half tables.
    """

    shared = True

    def pattern(self, op: Any, x: Any, cos: Any, sin: Any) -> Any:
        """Neg and Concat of the two halves."""
        rotated = op.Concat(
            op.Neg(op.Slice(x, ..., as_="second"), as_="neg"),
            op.Slice(x, ..., as_="first"),
            as_="rotated",
        )
        return op.Add(op.Mul(x, cos, as_="straight"), op.Mul(rotated, sin, as_="turned"))

    def check(
        self,
        ctx: Context,
        x: ir.Value,
        cos: ir.Value,
        sin: ir.Value,
        first: ir.Node,
        second: ir.Node,
        rotated: ir.Node,
        straight: ir.Node,
        turned: ir.Node,
    ) -> bool | str | dict[str, Any]:
        """Halves of the last axis, tables with equal halves."""
        facts = ctx.get(shapes)
        if not (_half(first, facts, True) and _half(second, facts, False)):
            return False
        if attribute(rotated, "axis") not in (-1, 3):
            return False
        if any(len(n.outputs[0].uses()) != 1 for n in (straight, turned, rotated)):
            return False
        dims = facts.shape(x)
        assert dims is not None
        tables = []
        for value in (cos, sin):
            shape = constant_shape(value)
            if shape is None or int(np.prod(shape)) > LARGEST:
                return "the tables of cosines and sines are not constant"
            wide = (1,) * (4 - len(shape)) + shape
            if len(wide) != 4 or wide[:2] != (1, 1) or wide[2:] != dims[2:]:
                return "the tables do not run along positions and channels alone"
            table = array(value).reshape(wide[2:])
            half = table.shape[1] // 2
            if not np.array_equal(table[:, :half], table[:, half:]):
                return "the halves of the tables differ"
            tables.append(np.ascontiguousarray(table[:, :half]))
        if not isinstance(dims[0], int):
            return "the batch size is not known"
        if not reachable(ctx, "RotaryEmbedding", 23):
            return "the target has no RotaryEmbedding at this opset"
        if not standard(ctx, "RotaryEmbedding", 23):
            return False
        return {"tables": tables, "batch": dims[0]}

    def rewrite(
        self, op: Any, x: ir.Value, cos: ir.Value, sin: ir.Value, tables: list[Array], batch: int
    ) -> ir.Value:
        """RotaryEmbedding with half tables, one row a position."""
        positions = np.tile(np.arange(tables[0].shape[0], dtype=np.int64), (batch, 1))
        out: ir.Value = op.RotaryEmbedding(
            x,
            op.constant(tables[0], cos.name),
            op.constant(tables[1], sin.name),
            op.constant(positions, "positions"),
        )
        return out


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
        if packed is None or dims is None or not isinstance(dims[1], int):
            return False
        if "num_heads" in match.root.attributes or packed[3] < 2:
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
