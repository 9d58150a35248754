"""Batch size that a model holds on to, though its inputs declare any: exporters' frozen shapes."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analyses.equations import may_hold, required
from graphopt.analyses.shapes.facts import symbol_of
from graphopt.samples.inputs import inputs_of

__all__ = ["held_batch"]


def held_batch(model: ir.Model) -> int | None:
    """The batch that the graph's own shapes leave no choice of, though its inputs declare any.

    Exporters write the batch that a model was traced with into its shapes. Where all its multiples
    run too, as of rows that are looked at in fours, it is the smallest.
    """
    inputs = [i for i in inputs_of(model) if i.axis is not None]
    if not inputs or any(i.batch is not None for i in inputs) or not may_hold(model):
        return None
    named = {i.name: i.dims[0] for i in inputs if i.dims}
    symbols = {symbol_of(x, 0, d) for x, d in named.items() if not isinstance(d, int)}
    found = required(model)
    sizes = {found[s] for s in symbols if s in found}
    return sizes.pop() if len(sizes) == 1 else None
