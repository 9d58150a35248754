"""Cast elimination: a chain of two casts becomes one where nothing is lost between them."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx_ir as ir

from graphopt import Bind, Context, Refused, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.building import Builder
from graphopt.rewriting.patterns import Match

__all__ = ["RULES"]


def _lossless(have: ir.DataType | None, to: ir.DataType | None) -> bool:
    """Whether every value of type `have` is a value of type `to`."""
    if have is None or to is None:
        return False
    if have == to or have is ir.DataType.BOOL:
        return to is not ir.DataType.STRING
    return have in _held_by().get(to, set())


@cache
def _held_by() -> dict[ir.DataType, set[ir.DataType]]:
    """to -> the types whose every value it holds exactly.

    Integers fit by range, in floats up to their mantissa; floats by exponent and mantissa.
    """
    signed = {f"INT{b}": b - 1 for b in (8, 16, 32, 64)}
    unsigned = {f"UINT{b}": b for b in (8, 16, 32, 64)}
    mantissa = {"FLOAT16": 11, "BFLOAT16": 8, "FLOAT": 24, "DOUBLE": 53}
    floats = {
        "FLOAT16": set(),
        "BFLOAT16": set(),
        "FLOAT": {"FLOAT16", "BFLOAT16"},
        "DOUBLE": {"FLOAT16", "BFLOAT16", "FLOAT"},
    }
    table: dict[str, set[str]] = {}
    for to, bits in signed.items():
        table[to] = {t for t, b in (*signed.items(), *unsigned.items()) if b <= bits}
    for to, bits in unsigned.items():
        table[to] = {t for t, b in unsigned.items() if b <= bits}
    for to, bits in mantissa.items():
        table[to] = {t for t, b in (*signed.items(), *unsigned.items()) if b <= bits} | floats[to]
    return {ir.DataType[k]: {ir.DataType[t] for t in v} for k, v in table.items()}


class CastChain(Rule):
    """Cast(Cast(x, A), B) -> Cast(x, B) where A holds every value of x"""

    shared = True

    def pattern(self, op: Any, x: Any) -> Any:
        return op.Cast(op.Cast(x, as_="inner"))

    def check(self, ctx: Context, x: ir.Value, inner: ir.Node) -> Bind | Refused:
        have, between = (ctx.get(shapes).dtype(v) for v in (x, inner.outputs[0]))
        why_not = f"a cast to {between} in between loses values"
        return Bind() if _lossless(have, between) else Refused(why_not)

    def rewrite(self, op: Builder, match: Match, x: ir.Value) -> ir.Value:
        return op.again(match.root, [x])


RULES = (CastChain,)
