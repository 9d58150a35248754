"""The pass: every rule of the themes beside this file, applied until none matches."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import onnx_ir as ir
from graphopt.passes.fuse.activations import (
    ErfGelu,
    HardSigmoidClip,
    HardSwish,
    Mish,
    SigmoidGate,
    TanhGelu,
)
from graphopt.passes.fuse.affine_after import ScaleShiftAfter
from graphopt.passes.fuse.affine_before import ScaleBefore, ShiftBefore
from graphopt.passes.fuse.apart import SumBeforeNorm
from graphopt.passes.fuse.attention import ScaledDotProduct
from graphopt.passes.fuse.gemm import MatMulAdd, TransposedOperand
from graphopt.passes.fuse.heads import PackHeads, RepeatedHeads
from graphopt.passes.fuse.norms import LayerNorm, NormScaleShift, RMSNorm
from graphopt.passes.fuse.operators import OPSET, raise_opset
from graphopt.passes.fuse.pad import PadIntoConv, PadIntoPool
from graphopt.passes.fuse.rotary import PackRotary, Rotary
from graphopt.passes.fuse.runtime import (
    BiasGelu,
    ConvActivation,
    GemmActivation,
    SkipLayerNorm,
    SkipRMSNorm,
    TransposedMatMul,
)
from graphopt.passes.fuse.softmax import LogSoftmaxWritten, SoftmaxWritten
from graphopt.passes.fuse.views import ShortenViews

from graphopt import Context, Pass, Rule
from graphopt.analyses.shapes import shapes
from graphopt.rewrite import rewrite

__all__ = ["Fuse"]


@dataclasses.dataclass(frozen=True)
class Fuse(Pass):
    """Fuse operators into fewer ones that compute the same."""

    rules: ClassVar[tuple[type[Rule], ...]] = (
        ErfGelu,
        TanhGelu,
        SigmoidGate,
        HardSwish,
        HardSigmoidClip,
        Mish,
        LayerNorm,
        RMSNorm,
        NormScaleShift,
        SoftmaxWritten,
        LogSoftmaxWritten,
        ScaledDotProduct,
        RepeatedHeads,
        Rotary,
        PackRotary,
        PackHeads,
        ScaleShiftAfter,
        ScaleBefore,
        ShiftBefore,
        PadIntoConv,
        PadIntoPool,
        TransposedOperand,
        MatMulAdd,
        ShortenViews,
        SumBeforeNorm,
    )

    #: What only some targets have goes last: the rules above look for the standard operators.
    last: ClassVar[tuple[type[Rule], ...]] = (
        BiasGelu,
        SkipLayerNorm,
        SkipRMSNorm,
        TransposedMatMul,
        ConvActivation,
        GemmActivation,
    )

    def run(self, model: ir.Model, ctx: Context) -> int:
        """Apply the rules until none matches; raise the opset once if a fusion needs it."""
        refused = len(ctx.refusals)
        edits = rewrite(model, ctx, self.rules, preserves=(shapes,))
        wanted = ctx.facts.pop(OPSET, None)
        if wanted is not None and ctx.edit(self, f"opset {wanted}"):
            if raise_opset(model, wanted):
                ctx.invalidate()
                del ctx.refusals[refused:]
                edits += 1 + rewrite(model, ctx, self.rules, preserves=(shapes,))
            else:
                ctx.note(f"the model stays below opset {wanted}, which some fusions need")
        return edits + rewrite(model, ctx, self.last, preserves=(shapes,))
