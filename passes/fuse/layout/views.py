"""Reshape and Transpose elimination: chains of views become as short as they can be."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.layout.axes import Layout, Steps

from graphopt import Context, Replacement, Walker
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.graph.traverse import read_once

__all__ = ["VIEWS", "ShortenViews", "apply_steps", "is_view", "reshape_target", "view_step"]

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


def apply_steps(op: Builder, x: ir.Value, steps: Steps, source: tuple[Dim, ...]) -> ir.Value:
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


class ShortenViews(Walker):
    """A chain of Reshape, Transpose, Squeeze, Unsqueeze and Flatten -> the shortest that does it

    which is at most Reshape, Transpose, Reshape; see `axes`. A link that other nodes read too is
    kept for them, and counts as no gain. Moving axes of size 1 is a Reshape, which copies nothing.
    """

    shared = True
    roots = VIEWS

    def find(self, node: ir.Node, ctx: Context) -> Replacement | None:
        out = node.outputs[0]
        if read_once(out) and is_view(out.consumers()[0]):
            return None  # the last link of a chain finds it
        best = _shortest(node, ctx.get(shapes))
        if best is None:
            return None
        source, steps, dims = best
        return Replacement(lambda op: apply_steps(op, source, steps, dims))


def _shortest(root: ir.Node, facts: Shapes) -> tuple[ir.Value, Steps, tuple[Dim, ...]] | None:
    """Where to start from, the steps from there and its shape: fewer operators in all.

    As many with fewer that move memory are better too.
    """
    links: list[ir.Node] = []
    best = None
    most = removed = (0, 0)
    alone = True
    node: ir.Node | None = root
    while node is not None and is_view(node) and len(links) < LONGEST:
        source, value = node.inputs[0], node.outputs[0]
        if node.graph is not root.graph:
            break
        links.append(node)
        alone &= node is root or read_once(value)
        if alone:
            removed = (removed[0] + 1, removed[1] + (node.op_type == "Transpose"))
        if source is None:
            break
        dims = facts.shape(source)
        steps = None if dims is None else _steps(links, dims, facts)
        if dims is not None and steps is not None:
            moving = sum(kind == "Transpose" for kind, _ in steps)
            gain = (removed[0] - len(steps), removed[1] - moving)
            if gain > most:
                most, best = gain, (source, steps, dims)
        node = source.producer()
    return best


def _steps(links: list[ir.Node], dims: tuple[Dim, ...], facts: Shapes) -> Steps | None:
    """The fewest steps that do what `links` (the last one first) do to a value of shape `dims`."""
    layout = Layout(dims)
    if not all(view_step(layout, link, facts) for link in reversed(links)):
        return None
    steps = layout.steps()
    return steps if writable(steps, dims) else None
