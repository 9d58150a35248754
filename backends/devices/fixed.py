"""Fixed shapes: a model whose dynamic axes have one size each, folded, as devices want it."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from graphopt.analyses.binding import bind_shapes
from graphopt.analyses.shapes.analysis import infer
from graphopt.context import Context
from graphopt.errors import ModelError
from graphopt.spec import parse
from graphopt.target import Target

__all__ = ["at_fixed_shapes", "free_dimensions"]


def at_fixed_shapes(model: ir.Model, target: Target) -> ir.Model:
    """A clone (it shares the weights) at the sizes of `bind_shapes`: batch axes are 1.

    What depends on sizes alone is computed. Quantized weights stay quantized.
    """
    shapes, _ = bind_shapes(model)
    clone = model.clone()
    for value in clone.graph.inputs:
        if value.name in shapes:
            value.shape = ir.Shape(shapes[value.name])
    for value in clone.graph.outputs:
        value.shape = None  # its names of axes are no longer true
    for one in parse("clean, fold"):
        one.run(clone, Context(clone, target=target, pass_name=str(one)))
    known = infer(clone)
    for value in clone.graph.outputs:
        if (dims := known.static(value)) is None:
            raise ModelError(f"the shape of its output '{value.name}' depends on data")
        value.shape = ir.Shape(dims)
    return clone


def free_dimensions(model: ir.Model) -> Mapping[str, int]:
    """The size that each named dynamic axis of an input gets."""
    shapes, _ = bind_shapes(model)
    return {
        str(dim.value): size
        for value in model.graph.inputs
        if value.name in shapes and value.shape is not None
        for dim, size in zip(value.shape, shapes[value.name], strict=True)
        if isinstance(dim, ir.SymbolicDim) and dim.value
    }
