"""Plain forms: newer operators of ONNX written in older ones, for converters that lack them."""

from __future__ import annotations

from typing import Any

import onnx_ir as ir

from graphopt.context import Context
from graphopt.rewriting.driver import apply_rules
from graphopt.rewriting.rules import Rule

__all__ = ["in_plain_forms"]


class IsNan(Rule):
    """IsNaN(x) -> Not(Equal(x, x))"""

    def pattern(self, op: Any, x: Any) -> Any:
        return op.IsNaN(x)

    def rewrite(self, op: Any, x: Any) -> Any:
        return op.Not(op.Equal(x, x))


def in_plain_forms(model: ir.Model) -> ir.Model:
    """A clone of `model` (it shares the weights) in forms that converters take."""
    clone = model.clone()
    apply_rules(clone, Context(clone), (IsNan,))
    return clone
