"""An instance: the model at one set of numbers for its named sizes.

Products of a known and an unknown size (batch times heads, as older exporters write attention) can
only be divided at numbers. Equations are therefore stated at sizes that stand for any: primes,
different for each name, or larger numbers where those leave nothing after a convolution's windows.
Axes whose own size is unknown are frozen, so that nothing that is found depends on the numbers.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.analyses.shapes.analysis import bound_shapes, shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.analyses.shapes.symbolic import Dim, Expr
from graphopt.context import Context

__all__ = ["free_size", "instance"]

#: Numbers for the first, second, ... name: for tokens and batches, images, and sounds.
NUMBERS = ((7, 11, 13, 17, 19, 23, 29, 31), (2, 224, 224, 11, 13, 17), (2, 16000, 4000, 11, 13))


def instance(ctx: Context) -> Shapes:
    """Shapes of the model in `ctx` with numbers for all named sizes, as far as they fit."""
    known = ctx.get(shapes)
    named: dict[str, None] = {}
    for value in ctx.model.graph.inputs:
        for dim in known.shape(value) or ():
            if isinstance(dim, Expr):
                named.update(dict.fromkeys(sorted(dim.atoms)))
    if not named:
        return known
    for numbers in NUMBERS:
        given = dict(zip(named, numbers, strict=False))
        if len(given) < len(named):
            continue
        inputs = {
            value.name or "": [_value(d, given) for d in dims]
            for value in ctx.model.graph.inputs
            for dims in [known.shape(value)]
            if dims is not None
        }
        found = bound_shapes(ctx.model, inputs)
        if _fits(ctx.model, found, known):
            return found
    return known


def _value(dim: Dim, given: dict[str, int]) -> int:
    if isinstance(dim, int):
        return dim
    total = 0
    for monomial, k in dim.terms:
        for atom in monomial:
            k *= given[atom]
        total += k
    return total


def _fits(model: ir.Model, found: Shapes, known: Shapes) -> bool:
    """Whether every value has a shape of the same rank as before, with no size below 1."""
    for node in model.graph:
        for value in node.outputs:
            before, now = known.shape(value), found.shape(value)
            if before is None:
                continue
            if now is None or len(now) != len(before):
                return False
            if any(
                isinstance(d, int) and d < 1 and e != d for d, e in zip(now, before, strict=True)
            ):
                return False
    return True


def free_size(dim: Dim) -> bool:
    """Whether a size is a number times something: a product in which the number may be an axis."""
    if isinstance(dim, int):
        return True
    return len(dim.terms) == 1 and dim.terms[0][1] > 1
