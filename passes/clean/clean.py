"""Clean: dead code, duplicates, no-ops and decided control flow removed, until none is left."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from itertools import cycle
from typing import Any, ClassVar

import onnx_ir as ir
from graphopt.passes.clean import arithmetic, casts, noops, operands, round_trips, sequences
from graphopt.passes.clean.branches import resolve_branches, unroll_loops
from graphopt.passes.clean.carried import hoist_invariants
from graphopt.passes.clean.constants import lift_constants
from graphopt.passes.clean.dead import remove_unused
from graphopt.passes.clean.duplicates import merge_initializers, merge_nodes
from graphopt.passes.clean.functions import inline_functions
from graphopt.passes.clean.traces import drop_traces

from graphopt import Context, Pass
from graphopt.analyses.shapes.analysis import shapes
from graphopt.graph.collector import resting_collector
from graphopt.rewriting.driver import AnyRule, apply_rules

__all__ = ["LEFTOVERS", "RULES", "Clean", "tidy"]

Theme = Callable[[ir.Model, Context], int]

RULES: tuple[AnyRule, ...] = (
    *noops.RULES,
    *casts.RULES,
    *operands.RULES,
    *round_trips.RULES,
    *arithmetic.RULES,
    *sequences.RULES,
)


@dataclasses.dataclass(frozen=True)
class Clean(Pass):
    """Remove what does nothing, is never used, or is there twice."""

    speeds_up: ClassVar[bool] = False
    preserves: ClassVar[tuple[Callable[[Any], Any], ...]] = (shapes,)

    @resting_collector()
    def run(self, model: ir.Model, ctx: Context) -> int:
        """Apply every theme until none makes an edit."""
        edits = inline_functions(model, ctx) + drop_traces(model, ctx)
        return edits + tidy(model, ctx)


def tidy(model: ir.Model, ctx: Context, themes: Sequence[Theme] | None = None) -> int:
    """What other passes leave work for too: rules, duplicates, control flow, dead code."""
    themes = THEMES if themes is None else themes
    edits = 0
    last = len(themes)
    for k, theme in enumerate(cycle(themes)):
        if k == last:  # every other theme has found nothing since
            break
        made = theme(model, ctx)
        if made:
            edits += made
            last = k + len(themes)
    return edits


def simplify(model: ir.Model, ctx: Context) -> int:
    """The rules of every theme that has some."""
    return apply_rules(model, ctx, RULES)


#: Each runs until it finds nothing more by itself.
THEMES: tuple[Theme, ...] = (
    lift_constants,
    remove_unused,
    resolve_branches,
    unroll_loops,
    hoist_invariants,
    merge_initializers,
    simplify,
    merge_nodes,
)
#: What a pass that writes new nodes and constants leaves behind.
LEFTOVERS: tuple[Theme, ...] = (lift_constants, remove_unused, merge_initializers, merge_nodes)
