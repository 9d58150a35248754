"""Pooling before activations: fewer elements reach what the runtime does not join with a layer."""

from __future__ import annotations

from math import prod
from typing import Any

import onnx_ir as ir

from graphopt import Bind, Context, Refused, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.attributes import attribute
from graphopt.graph.building import Builder
from graphopt.graph.constants import array_of, constant_shape
from graphopt.rewriting.rules import Verdict

__all__ = ["PoolFirst"]

#: Elementwise and nowhere falling, as long as their attributes are not negative.
RISING = ("Celu", "Elu", "Selu", "Softplus", "Softsign")


class PoolFirst(Rule):
    """MaxPool(f(x)) -> f(MaxPool(x)), f being elementwise and nowhere falling

    Relu and others that convolutions take into themselves stay with them.
    """

    def pattern(self, op: Any, x: Any) -> Any:
        rising = (getattr(op, name)(x, as_="f") for name in RISING)
        return op.MaxPool(op.any(op.PRelu(x, ..., as_="f"), *rising), as_="pool")

    def check(self, f: ir.Node, pool: ir.Node, x: ir.Value, ctx: Context) -> Verdict:
        if prod(attribute(pool, "strides") or (1,)) < 2:
            return None  # no fewer elements
        if len(pool.outputs) > 1 and pool.outputs[1].uses():
            return Refused("indices of the pooling are read")
        if f.op_type == "PRelu":
            return _rising_slopes(f.inputs[1], ctx.get(shapes).rank(x))
        falls = any((attribute(f, name) or 0) < 0 for name in ("alpha", "gamma"))
        return Refused("it falls somewhere") if falls else Bind()

    def rewrite(self, op: Builder, f: ir.Node, pool: ir.Node, x: ir.Value) -> ir.Value:
        return op.again(f, [op.again(pool, [x]), *f.inputs[1:]])


def _rising_slopes(slope: ir.Value | None, rank: int | None) -> Verdict:
    """Constant slopes that are the same all over a channel, and none negative."""
    shape = constant_shape(slope)
    if shape is None or rank is None:
        return None
    if any(n != 1 for n in shape[max(0, len(shape) - (rank - 2)) :]):
        return Refused("slopes differ from place to place")
    return Refused("it falls somewhere") if (array_of(slope) < 0).any() else Bind()
