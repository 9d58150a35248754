"""Trees of sums: their addends, what is a scaled copy of another value, and sums written anew."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.affine.operators import Affine, affine_of
from graphopt.passes.fuse.weights import Array

from graphopt.analyses.linear import Linear
from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.building import Builder
from graphopt.graph.traverse import read_once

__all__ = ["SUMS", "Scaled", "addends", "scaled", "single_use", "sum_of", "without"]

SUMS = ("Add", "Sum")


def single_use(value: ir.Value, graph: object) -> ir.Node | None:
    """What makes `value` in `graph`, where one node alone reads it; else None."""
    maker = value.producer()
    return maker if maker is not None and maker.graph is graph and read_once(value) else None


def addends(root: ir.Node) -> tuple[list[ir.Value], list[ir.Node]]:
    """What a tree of sums adds up, in order, and its sums below `root`; empty inside a tree."""
    y = root.outputs[0]
    reader = y.consumers()[0] if read_once(y) else None
    if reader is not None and reader.op_type in SUMS and reader.graph is root.graph:
        return [], []
    leaves: list[ir.Value] = []
    inner: list[ir.Node] = []
    stack = [v for v in root.inputs[::-1] if v is not None]
    while stack:
        value = stack.pop()
        maker = single_use(value, root.graph)
        if maker is not None and maker.op_type in SUMS:
            inner.append(maker)
            stack += [v for v in maker.inputs[::-1] if v is not None]
        else:
            leaves.append(value)
    return leaves, inner


@dataclasses.dataclass(frozen=True)
class Scaled:
    """The addend s * x + t, or x itself where no node scales or shifts it."""

    leaf: ir.Value
    affine: Affine | None

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        return () if self.affine is None else (self.affine.node,)

    def scale_shift(self, channels: int) -> tuple[Array, Array]:
        """s and t, float64, each of shape (channels,)."""
        parts = (np.ones(()), np.zeros(())) if self.affine is None else self.affine.scale_shift()
        scale, shift = (np.broadcast_to(part.reshape(-1), (channels,)) for part in parts)
        return scale, shift


def scaled(leaf: ir.Value, lin: Linear, facts: Shapes, graph: object) -> Scaled | None:
    """`leaf` as a scaled copy of what `lin` reads, along the channels that `lin` makes."""
    if lin.in_channels != lin.out_channels:
        return None
    if leaf is lin.x:
        return Scaled(leaf, None)
    maker = single_use(leaf, graph)
    affine = None if maker is None else affine_of(maker, facts, lin.x)
    if affine is None or affine.input is not lin.x:
        return None
    fits = affine.fits(facts.rank(lin.x), lin.x_axis, lin.in_channels)
    return Scaled(leaf, affine) if fits else None


def sum_of(op: Builder, root: ir.Node, merged: ir.Value, rest: Sequence[ir.Value]) -> ir.Value:
    """`merged` and what else `root` adds up."""
    if not rest:
        return merged
    if root.op_type == "Sum":
        return op.again(root, [merged, *rest])
    for value in rest:
        merged = op.Add(merged, value)
    return merged


def without(leaves: list[ir.Value], merged: list[ir.Value]) -> list[ir.Value]:
    """`leaves` less `merged`, each as often as it is there."""
    rest = list(leaves)
    for leaf in merged:
        rest.remove(leaf)
    return rest
