"""Chains of Reshape, Transpose, Squeeze, Unsqueeze and Flatten become as short as they can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.layout.axes import Layout, Steps

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim, Expr
from graphopt.graph.attributes import attribute
from graphopt.rewriting.patterns import Match

__all__ = ["VIEWS", "ShortenViews", "apply_steps", "reshape_target", "view_step"]

VIEWS = ("Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten")
#: No exporter writes longer chains; a bound keeps the cost linear.
LONGEST = 12


def is_view(node: ir.Node | None) -> bool:
    """Whether the node only names the same elements by other axes."""
    return node is not None and node.op_type in VIEWS and node.domain in ("", "ai.onnx")


def view_step(layout: Layout, node: ir.Node, facts: Shapes) -> bool:
    """Apply one view operator to `layout`; False if what it does is not known."""
    if node.op_type == "Transpose":
        perm = attribute(node, "perm")
        layout.transpose(perm if perm is not None else range(len(layout.dims))[::-1])
        return True
    dims = facts.shape(node.outputs[0])
    return dims is not None and layout.reshape(dims)


def reshape_target(dims: tuple[Dim, ...], source: tuple[Dim, ...] | None) -> list[int] | None:
    """What Reshape's second operand must say for `dims`: one -1 at most, 0 where an axis stays."""
    wanted: list[int] = []
    for i, d in enumerate(dims):
        if isinstance(d, int):
            wanted.append(d)
        elif source is not None and i < len(source) and source[i] == d:
            wanted.append(0)
        else:
            wanted.append(-1)
    if any(d == 0 for d in dims) or wanted.count(-1) > 1:
        return None
    return wanted


def writable(steps: Steps, source: tuple[Dim, ...]) -> bool:
    """Whether every Reshape among `steps` can be written with a constant."""
    at = source
    for kind, what in steps:
        if kind == "Transpose":
            at = tuple(at[int(str(p))] for p in what)
        elif reshape_target(what, at) is None:
            return False
        else:
            at = what
    return True


def apply_steps(op: Any, x: ir.Value, steps: Steps, source: tuple[Dim, ...]) -> ir.Value:
    """Write `steps` on `x`, whose shape is `source`."""
    at = source
    for kind, what in steps:
        if kind == "Transpose":
            perm = [int(str(p)) for p in what]
            x, at = op.Transpose(x, perm=perm), tuple(at[p] for p in perm)
        else:
            target = reshape_target(what, at)
            assert target is not None
            x, at = op.Reshape(x, op.constant(np.array(target, np.int64), "shape")), what
    return x


def _cost(steps: Steps) -> tuple[int, int]:
    return len(steps), sum(kind == "Transpose" for kind, _ in steps)


class ShortenViews(Rule):
    """A chain of Reshape, Transpose, Squeeze, Unsqueeze and Flatten -> the shortest that does it

    which is at most Reshape, Transpose, Reshape; see `axes`. A link that other nodes read too is
    kept for them, and counts as no gain. Moving axes of size 1 is a Reshape, which copies nothing.
    """

    shared = True

    def pattern(self, op: Any, x: Any) -> Any:
        """The last link: its users are no links of it alone."""
        return op.any(*(getattr(op, name)(x, ...) for name in VIEWS))

    def check(self, ctx: Context, match: Match) -> bool | dict[str, Any]:
        """Fewer operators, or as many with fewer that move memory."""
        root = match.root
        out = root.outputs[0]
        if len(out.uses()) == 1 and not out.is_graph_output() and is_view(out.consumers()[0]):
            return False
        facts = ctx.get(shapes)
        links: list[ir.Node] = []
        best: tuple[int, int, ir.Value, Steps] | None = None
        node: ir.Node | None = root
        removed = (0, 0)
        alone = True
        while node is not None and is_view(node) and len(links) < LONGEST:
            if node.graph is not root.graph:
                break
            links.append(node)
            value = node.outputs[0]
            alone = alone and (
                node is root or (len(value.uses()) == 1 and not value.is_graph_output())
            )
            if alone:
                removed = (removed[0] + 1, removed[1] + (node.op_type == "Transpose"))
            source = node.inputs[0]
            if source is None:
                break
            steps = self._steps(links, source, facts)
            if steps is not None:
                cost = _cost(steps)
                gain = (removed[0] - cost[0], removed[1] - cost[1])
                if gain > (0, 0) and (best is None or gain > best[:2]):
                    best = (*gain, source, steps)
            node = source.producer()
        if best is None:
            return False
        return {"source": best[2], "steps": best[3], "dims": facts.shape(best[2])}

    @staticmethod
    def _steps(links: list[ir.Node], source: ir.Value, facts: Shapes) -> Steps | None:
        dims = facts.shape(source)
        if dims is None:
            return None
        layout = Layout(dims)
        if not all(view_step(layout, link, facts) for link in reversed(links)):
            return None
        steps = layout.steps()
        return steps if writable(steps, dims) else None

    def rewrite(
        self, op: Any, source: ir.Value, steps: Steps, dims: tuple[int | Expr, ...]
    ) -> ir.Value:
        """The shortest chain."""
        return apply_steps(op, source, steps, dims)
