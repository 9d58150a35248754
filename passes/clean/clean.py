"""The pass: every theme beside this file, until none finds anything."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from graphopt.passes.clean import arithmetic, noops, sequences
from graphopt.passes.clean.branches import resolve_branches, unroll_loops
from graphopt.passes.clean.constants import lift_constants, unlist_initializers
from graphopt.passes.clean.dead import remove_unused
from graphopt.passes.clean.duplicates import merge_initializers, merge_nodes
from graphopt.passes.clean.functions import inline_functions

from graphopt import Context, Pass
from graphopt.rewrite import rewrite

__all__ = ["RULES", "Clean", "tidy"]

RULES = (*noops.RULES, *arithmetic.RULES, *sequences.RULES)


@dataclasses.dataclass(frozen=True)
class Clean(Pass):
    """Remove what does nothing, is never used, or is there twice."""

    speeds_up: ClassVar[bool] = False

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Apply every theme until none makes an edit."""
        edits = inline_functions(model, ctx) + unlist_initializers(model, ctx)
        return edits + tidy(model, ctx)


def tidy(model: ir.Model, ctx: Context) -> int:
    """What other passes leave work for too: rules, duplicates, control flow, dead code."""
    edits = 0
    while True:
        made = lift_constants(model, ctx)
        made += remove_unused(model, ctx)
        made += resolve_branches(model, ctx)
        made += unroll_loops(model, ctx)
        made += merge_initializers(model, ctx)
        made += rewrite(model, ctx, RULES)
        made += merge_nodes(model, ctx)
        made += remove_unused(model, ctx)
        edits += made
        if not made:
            return edits
