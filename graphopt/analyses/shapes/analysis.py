"""The shape analysis: of a whole model, its dynamic axes as they are or bound to sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.operators import infer_node
from graphopt.context import Context

__all__ = ["at_sizes", "bound_shapes", "hand_on", "infer", "on_demand", "renew", "shapes"]


def shapes(ctx: Context) -> Shapes:
    """Types, shapes and shape data of the model in `ctx`, subgraphs included.

    It may be asked about values made after it was computed: rewrites that keep what every value
    denotes (see `graphopt.rewriting.rules`) need not throw it away.
    """
    return infer(ctx.model)


def renew(ctx: Context) -> None:
    """Let shapes be inferred again after edits, unless nothing in them is unknown.

    What was found of a value stays true of it, but an edit may let more be found.
    """
    known = ctx.cached().get(shapes)
    if known is not None and not known.certain:
        ctx.invalidate()


def hand_on(ctx: Context, model: ir.Model) -> Context:
    """A context of `model`, a copy of the model in `ctx`, that knows its shapes if `ctx` does."""
    made = Context(model, shapes=ctx.shapes)
    known = ctx.cached().get(shapes)
    if known is not None:
        made.know(shapes, known.of_copy(model))
    return made


def bound_shapes(model: ir.Model, inputs: Mapping[str, Sequence[int]]) -> Shapes:
    """Shapes when the named graph inputs have these shapes: all static unless data-dependent."""
    return infer(model, inputs)


def at_sizes(ctx: Context) -> Shapes:
    """Shapes at the concrete input shapes of `ctx`.

    They follow from the symbolic ones where those are certain; elsewhere the model is walked again.
    """
    known = ctx.get(shapes)
    if known.certain:
        sizes = _sizes(known, ctx.model, ctx.shapes)
        found = known.at(sizes) if sizes is not None else None
        if found is not None:
            return found
    return bound_shapes(ctx.model, ctx.shapes)


def _sizes(
    known: Shapes, model: ir.Model, inputs: Mapping[str, Sequence[int]]
) -> dict[str, int] | None:
    """The size of each unknown, or None if the inputs' shapes do not give it plainly."""
    sizes: dict[str, int] = {}
    for value in model.graph.inputs:
        dims = known.shape(value)
        given = inputs.get(value.name or "")
        if given is None:
            if dims is None or not all(isinstance(d, int) for d in dims):
                return None
            continue
        if dims is None or len(dims) != len(given):
            return None
        for dim, size in zip(dims, given, strict=True):
            if isinstance(dim, int):
                if dim != size:
                    return None
            elif dim.name is None or sizes.setdefault(dim.name, size) != size:
                return None
    return sizes


def infer(model: ir.Model, inputs: Mapping[str, Sequence[int]] | None = None) -> Shapes:
    """Walk the model; annotations are believed of operators that nobody here knows."""
    return Shapes(model, inputs or {}, not inputs, infer_node).walk()


def on_demand(model: ir.Model, inputs: Mapping[str, Sequence[int]] | None = None) -> Shapes:
    """Shapes inferred as they are asked for, from operators alone: no annotation is believed."""
    return Shapes(model, inputs or {}, False, infer_node)
