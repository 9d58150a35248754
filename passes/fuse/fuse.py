"""The pass: every rule of the themes beside this file, applied until none matches."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from graphopt.passes.fuse.affine_after import ScaleShiftAfter
from graphopt.passes.fuse.affine_before import ScaleBefore, ShiftBefore
from graphopt.passes.fuse.gemm import MatMulAdd, TransposedOperand
from graphopt.passes.fuse.pad import PadIntoConv, PadIntoPool
from graphopt.passes.fuse.views import ShortenViews

from graphopt import Context, Pass, Rule
from graphopt.analyses.shapes import shapes
from graphopt.rewrite import rewrite

__all__ = ["Fuse"]


@dataclasses.dataclass(frozen=True)
class Fuse(Pass):
    """Fuse operators into fewer ones that compute the same."""

    rules: ClassVar[tuple[type[Rule], ...]] = (
        ScaleShiftAfter,
        ScaleBefore,
        ShiftBefore,
        PadIntoConv,
        PadIntoPool,
        TransposedOperand,
        MatMulAdd,
        ShortenViews,
    )

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Apply the rules until none matches."""
        return rewrite(model, ctx, self.rules, preserves=(shapes,))
