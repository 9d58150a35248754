"""Casts that change nothing, and chains of two that may be one."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
from graphopt.passes.clean.noops import Noop

from graphopt import Context, Rule
from graphopt.analyses.shapes.analysis import shapes
from graphopt.analyses.shapes.facts import Shapes
from graphopt.rewriting.patterns import Match

__all__ = ["RULES"]


class SameCast(Noop):
    """Cast(x: T, to=T) -> x"""

    def pattern(self, op: Any, x: Any) -> Any:
        """Match Cast and CastLike."""
        return op.any(op.Cast(x), op.CastLike(x, ...))

    def holds(self, node: ir.Node, x: ir.Value, facts: Shapes) -> bool:
        """The type is known and stays."""
        have = facts.dtype(x)
        return have is not None and have == facts.dtype(node.outputs[0])


#: to -> the types whose every value it holds exactly.
_HOLDS: dict[ir.DataType, set[ir.DataType]] = {}


def _lossless(have: ir.DataType | None, to: ir.DataType | None) -> bool:
    """Whether every value of type `have` is a value of type `to`."""
    if have is None or to is None:
        return False
    if have == to or have is ir.DataType.BOOL:
        return to is not ir.DataType.STRING
    if not _HOLDS:
        _HOLDS.update(_lossless_table())
    return have in _HOLDS.get(to, set())


def _lossless_table() -> dict[ir.DataType, set[ir.DataType]]:
    """Integers fit by range, in floats up to their mantissa; floats by exponent and mantissa."""
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
        """Match two Casts, the inner perhaps used elsewhere too."""
        return op.Cast(op.Cast(x))

    def check(self, ctx: Context, match: Match, x: ir.Value) -> bool | str | None:
        """Refuse where the type between rounds or cuts."""
        facts = ctx.get(shapes)
        between = match.root.inputs[0]
        assert between is not None
        if _lossless(facts.dtype(x), facts.dtype(between)):
            return None
        return f"a cast to {facts.dtype(between)} in between loses values"

    def rewrite(self, op: Any, match: Match, x: ir.Value) -> ir.Value:
        """Cast once."""
        result: ir.Value = op.Cast(x, **{a.name: a.value for a in match.root.attributes.values()})
        return result


RULES: tuple[type[Rule], ...] = (SameCast, CastChain)
