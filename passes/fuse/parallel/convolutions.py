"""RepVGG re-parameterization: parallel convolutions of one value become one convolution."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from functools import partial

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.affine.operators import held_linear, rounded
from graphopt.passes.fuse.parallel.addends import (
    SUMS,
    Scaled,
    addends,
    scaled,
    single_use,
    sum_of,
    without,
)
from graphopt.passes.fuse.weights import FLOATS, Array

from graphopt import Context, Refused, Replacement, Walker
from graphopt.analyses.linear import Linear
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape, shared
from graphopt.rewriting.rules import Found

__all__ = ["ParallelConvolutions"]


@dataclasses.dataclass(frozen=True)
class _Window:
    """Where along one spatial axis the taps of a kernel lie, seen from the output."""

    first: int
    step: int
    taps: int
    #: Output positions beyond the input's, at stride 1.
    longer: int

    def at(self, other: _Window) -> slice | None:
        """The taps of this window that are those of `other`, or None."""
        far = other.first - self.first
        step = other.step if other.taps > 1 else self.step
        if far % self.step or step % self.step or far < 0:
            return None
        begin, stride = far // self.step, step // self.step
        end = begin + stride * (other.taps - 1) + 1
        return slice(begin, end, stride) if end <= self.taps else None


def _windows(lin: Linear) -> tuple[_Window, ...] | None:
    node, rank = lin.node, len(lin.kernel)
    if attribute(node, "auto_pad") not in (None, "NOTSET"):
        return None
    pads = attribute(node, "pads") or [0] * (2 * rank)
    steps = attribute(node, "dilations") or [1] * rank
    return tuple(
        _Window(-int(a), int(d), k, int(a) + int(b) - int(d) * (k - 1))
        for a, b, d, k in zip(pads[:rank], pads[rank:], steps, lin.kernel, strict=True)
    )


@dataclasses.dataclass(frozen=True)
class _Kernel:
    """The addend that a convolution makes, for nothing else."""

    leaf: ir.Value
    lin: Linear
    windows: tuple[_Window, ...]

    @property
    def nodes(self) -> tuple[ir.Node, ...]:
        return (self.lin.node,)

    @property
    def strides(self) -> tuple[int, ...]:
        return tuple(attribute(self.lin.node, "strides") or [1] * len(self.windows))

    def place(self, other: _Kernel) -> tuple[slice, ...] | None:
        """Where in this kernel that of `other` lies, or None: then it reaches beyond."""
        same = self.lin.x is other.lin.x and self.strides == other.strides
        same = same and self.lin.out_channels == other.lin.out_channels
        if not same or self.lin.dtype != other.lin.dtype or other.lin.groups % self.lin.groups:
            return None
        if [w.longer for w in self.windows] != [w.longer for w in other.windows]:
            return None
        places = [a.at(b) for a, b in zip(self.windows, other.windows, strict=True)]
        return None if None in places else tuple(p for p in places if p is not None)

    def centre(self) -> tuple[slice, ...] | None:
        """Where in this kernel x itself lies, or None."""
        if set(self.strides) != {1} or any(w.longer for w in self.windows):
            return None
        places = [w.at(_Window(0, 1, 1, 0)) for w in self.windows]
        return None if None in places else tuple(p for p in places if p is not None)


_Part = tuple[_Kernel | Scaled, tuple[slice, ...]]


class ParallelConvolutions(Walker):
    """conv(x, U) + conv(x, V) + (s * x + t) -> conv(x, U + V' + diag(s)) + t

    where each kernel lies inside U's window (V' is V with zeros around and between its taps) and
    each of its groups inside one of U's: the result costs what conv(x, U) did.
    """

    roots = SUMS

    def find(self, node: ir.Node, ctx: Context) -> Found:
        facts = ctx.get(shapes)
        leaves, inner = addends(node)
        kernels = [k for k in (_kernel(v, facts, node.graph) for v in leaves) if k is not None]
        for base in sorted(kernels, key=lambda k: -int(np.prod(k.lin.shape))):
            parts = list(_inside(base, kernels, leaves, facts))
            if not parts:
                continue
            arrays = _merged(base, parts)
            if arrays is None:
                return Refused("the sum of the weights would overflow or a weight is not finite")
            rest = without(leaves, [base.leaf, *(part.leaf for part, _ in parts)])
            return Replacement(
                partial(_convolution, node, base, arrays, rest),
                (*inner, *base.nodes, *(n for part, _ in parts for n in part.nodes)),
            )
        return None


def _kernel(leaf: ir.Value, facts: Shapes, graph: object) -> _Kernel | None:
    maker = single_use(leaf, graph)
    lin = held_linear(maker, facts) if maker is not None and maker.op_type == "Conv" else None
    if lin is None or lin.dtype not in FLOATS or shared(lin.weight):
        return None
    if lin.bias is not None and constant_shape(lin.bias) != (lin.out_channels,):
        return None
    windows = _windows(lin)
    return None if windows is None else _Kernel(leaf, lin, windows)


def _inside(
    base: _Kernel, kernels: list[_Kernel], leaves: list[ir.Value], facts: Shapes
) -> Iterator[_Part]:
    """The other addends that lie inside the kernel of `base`, and where."""
    for other in kernels:
        place = None if other is base else base.place(other)
        if place is not None:
            yield other, place
    centre = base.centre()
    for leaf in leaves if centre is not None else ():
        copy = scaled(leaf, base.lin, facts, base.lin.node.graph)
        if copy is not None and centre is not None:
            yield copy, centre


def _merged(base: _Kernel, parts: list[_Part]) -> tuple[Array, Array] | None:
    """The sum of all weights, and of all biases; None if one overflows or is not finite."""
    lin, like = base.lin, base.lin.array()
    weight, bias = like.astype(np.float64), _bias(lin)
    for part, place in parts:
        if isinstance(part, _Kernel):
            _add_groups(weight, lin.groups, part.lin.array(), part.lin.groups, place)
            bias = bias + _bias(part.lin)
        else:
            scale, shift = part.scale_shift(lin.out_channels)
            diagonal = scale.reshape(-1, 1, *(1 for _ in place))
            _add_groups(weight, lin.groups, diagonal, lin.out_channels, place)
            bias = bias + shift
    new, offset = rounded(weight, like), rounded(bias, like[:0])
    return None if new is None or offset is None else (new, offset)


def _add_groups(
    weight: Array, groups: int, other: Array, finer: int, place: tuple[slice, ...]
) -> None:
    """Add `other` of shape (N, K / finer, ...), of `finer` groups, where its channels lie."""
    rows, width = len(other) // finer, other.shape[1]
    for k in range(finer):
        mine = slice(k * rows, (k + 1) * rows)
        begin = k % (finer // groups) * width
        weight[(mine, slice(begin, begin + width), *place)] += other[mine]


def _bias(lin: Linear) -> Array:
    return np.zeros(lin.out_channels) if lin.bias is None else array_of(lin.bias).astype(np.float64)


def _convolution(
    root: ir.Node, base: _Kernel, arrays: tuple[Array, Array], rest: list[ir.Value], op: Builder
) -> ir.Value:
    name = base.lin.weight.name or "weight"
    inputs = [base.lin.x, op.constant(arrays[0], name), op.constant(arrays[1], f"{name}_bias")]
    return sum_of(op, root, op.again(base.lin.node, inputs), rest)
