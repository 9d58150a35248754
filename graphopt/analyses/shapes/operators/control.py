"""Shapes of the operators that hold graphs: If, Loop, Scan."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analyses.shapes.facts import Fact, Shapes
from graphopt.analyses.shapes.rules import Facts
from graphopt.analyses.shapes.symbolic import Dim
from graphopt.graph.attributes import attribute

__all__ = ["OPERATORS"]

INT64 = ir.DataType.INT64


def _if(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    condition = ins[0].concrete
    if condition is not None and condition.size == 1:
        taken = "then_branch" if condition.item() else "else_branch"
        return shapes.enter(attribute(node, taken), ())
    then = shapes.enter(attribute(node, "then_branch"), ())
    other = shapes.enter(attribute(node, "else_branch"), ())
    return [_join(a, b, shapes) for a, b in zip(then, other, strict=False)]


def _join(a: Fact, b: Fact, shapes: Shapes) -> Fact:
    """What is true of a value that is either `a` or `b`."""
    if a.type is not None or b.type is not None:
        return Fact(type=a.type if a.type == b.type else None)
    dims = None
    if a.dims is not None and b.dims is not None and len(a.dims) == len(b.dims):
        dims = tuple(d if d == e else shapes.fresh() for d, e in zip(a.dims, b.dims, strict=True))
    return Fact(a.dtype if a.dtype == b.dtype else None, dims)


def _loop(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact]:
    """Carried values whose shape a turn does not change keep it; scanned ones are stacked."""
    body = attribute(node, "body")
    first = [Fact(INT64, ()), Fact(ir.DataType.BOOL, ())]
    carried, ends = _turn(body, first, ins[2:], (), 1, shapes)
    scans = []
    for f in ends[1 + len(carried) :]:
        inner = None if f.dims is None else (shapes.fresh(), *_outside(f.dims, shapes))
        scans.append(Fact(f.dtype, inner))
    return [*carried, *scans]


def _turn(
    body: ir.Graph, before: Facts, states: Facts, after: Facts, skip: int, shapes: Shapes
) -> tuple[list[Fact], list[Fact]]:
    """Facts of the states of a loop that hold in every turn, and of its body's outputs.

    If a turn that is given states of these shapes returns states of these shapes, by induction all
    do (`skip` outputs come before them); if not, nothing is known of their shapes.
    """
    carried = [Fact(f.dtype, f.dims, type=f.type) for f in states]
    ends = shapes.enter(body, [*before, *carried, *after])
    if any(e.dims != f.dims for e, f in zip(ends[skip:], carried, strict=False)):
        carried = [Fact(f.dtype, type=f.type) for f in states]
        shapes.forget(body)
        ends = shapes.enter(body, [*before, *carried, *after])
    return carried, ends


def _outside(dims: tuple[Dim, ...], shapes: Shapes) -> tuple[Dim, ...]:
    """Sizes found inside a loop body, as seen from outside: unknowns may differ by turn."""
    return tuple(d if isinstance(d, int) else shapes.fresh() for d in dims)


def _scan(node: ir.Node, ins: Facts, shapes: Shapes) -> list[Fact] | None:
    """States as in a loop; slices of the scanned inputs go in, slices of outputs come out."""
    body = attribute(node, "body")
    count = attribute(node, "num_scan_inputs")
    states, scanned = ins[: len(ins) - count], ins[len(ins) - count :]
    axes = attribute(node, "scan_input_axes") or [0] * count
    slices = []
    for f, axis in zip(scanned, axes, strict=True):
        at = axis % len(f.dims) if f.dims else 0
        slices.append(Fact(f.dtype, None if not f.dims else (*f.dims[:at], *f.dims[at + 1 :])))
    carried, ends = _turn(body, (), states, slices, 0, shapes)
    out_axes = attribute(node, "scan_output_axes") or [0] * (len(ends) - len(carried))
    outs = []
    for f, axis in zip(ends[len(carried) :], out_axes, strict=True):
        dims = None
        if f.dims is not None:
            at = axis % (len(f.dims) + 1)
            inner = _outside(f.dims, shapes)
            dims = (*inner[:at], shapes.fresh(), *inner[at:])
        outs.append(Fact(f.dtype, dims))
    return [*carried, *outs]


OPERATORS = {"If": _if, "Loop": _loop, "Scan": _scan}
