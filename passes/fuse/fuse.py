"""Operator fusion: every rule of the themes beside this file, applied until none matches."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import onnx_ir as ir
from graphopt.passes.clean.clean import LEFTOVERS, tidy
from graphopt.passes.fuse.activations import (
    ErfGelu,
    HardSigmoidClip,
    HardSwish,
    Mish,
    OneSlope,
    SigmoidGate,
    TanhGelu,
)
from graphopt.passes.fuse.affine.after import ScaleShiftAfter
from graphopt.passes.fuse.affine.before import ScaleBefore, ShiftBefore
from graphopt.passes.fuse.affine.bias import ScaleAfterBias
from graphopt.passes.fuse.attention.heads import PackHeads, RepeatedHeads
from graphopt.passes.fuse.attention.rotary import Rotary
from graphopt.passes.fuse.attention.rotary_packed import PackRotary, PartialRotary
from graphopt.passes.fuse.attention.sdpa import ScaledDotProduct
from graphopt.passes.fuse.availability import STUCK, WANTED
from graphopt.passes.fuse.contrib import (
    BiasGelu,
    ConvActivation,
    GemmActivation,
    SkipLayerNorm,
    SkipRMSNorm,
    TransposedMatMul,
)
from graphopt.passes.fuse.gemm import MatMulAdd, TransposedOperand
from graphopt.passes.fuse.group_norm import GroupNorm
from graphopt.passes.fuse.joined_products import join_products
from graphopt.passes.fuse.layout.chains import ConcatChain, ReduceChain, SliceChain
from graphopt.passes.fuse.layout.ones import KeepOnes
from graphopt.passes.fuse.layout.slices import SlicesToSplit
from graphopt.passes.fuse.layout.transposes import meet_transposes
from graphopt.passes.fuse.layout.views import ShortenViews
from graphopt.passes.fuse.norms import InstanceNorm, LayerNorm, NormScaleShift, RMSNorm
from graphopt.passes.fuse.pad import PadIntoConv, PadIntoPool
from graphopt.passes.fuse.parallel.convolutions import ParallelConvolutions
from graphopt.passes.fuse.parallel.products import ParallelProducts
from graphopt.passes.fuse.pools import PoolFirst
from graphopt.passes.fuse.slow_forms import MeanOverRows, SumBeforeNorm
from graphopt.passes.fuse.softmax import LogSoftmaxWritten, SoftmaxWritten

from graphopt import Context, Pass
from graphopt.analyses.shapes.analysis import renew, shapes
from graphopt.errors import ModelError
from graphopt.graph.collector import resting_collector
from graphopt.rewriting.driver import AnyRule, apply_rules
from graphopt.rewriting.opset import raise_opset

__all__ = ["Fuse"]


@dataclasses.dataclass(frozen=True)
class Fuse(Pass):
    """Fuse operators into fewer ones that compute the same."""

    #: What is written out: it has to be recognized before a rule below moves a constant of it.
    written: ClassVar[tuple[AnyRule, ...]] = (
        ErfGelu,
        TanhGelu,
        SigmoidGate,
        HardSwish,
        HardSigmoidClip,
        Mish,
        InstanceNorm,
        LayerNorm,
        RMSNorm,
        GroupNorm,
        SoftmaxWritten,
        LogSoftmaxWritten,
        ScaledDotProduct,
        Rotary,
        PartialRotary,
    )
    rules: ClassVar[tuple[AnyRule, ...]] = (
        *written,
        RepeatedHeads,
        PackRotary,
        PackHeads,
        NormScaleShift,
        ScaleShiftAfter,
        ScaleAfterBias,
        ScaleBefore,
        ShiftBefore,
        ParallelConvolutions,
        ParallelProducts,
        PadIntoConv,
        PadIntoPool,
        OneSlope,
        PoolFirst,
        TransposedOperand,
        MatMulAdd,
        ConcatChain,
        ReduceChain,
        SliceChain,
        SlicesToSplit,
        KeepOnes,
        ShortenViews,
    )
    #: What only some targets have goes last: the rules above look for the standard operators.
    last: ClassVar[tuple[AnyRule, ...]] = (
        BiasGelu,
        SkipLayerNorm,
        SkipRMSNorm,
        SumBeforeNorm,
        MeanOverRows,
        TransposedMatMul,
        ConvActivation,
        GemmActivation,
    )

    preserves: ClassVar[tuple[Callable[[Any], Any], ...]] = (shapes,)

    @resting_collector()
    def run(self, model: ir.Model, ctx: Context) -> int:
        """Apply the rules until none matches; raise the opset once if a fusion needs it."""
        renew(ctx)
        edits = self._apply(self.written, model, ctx) + self._apply(self.rules, model, ctx)
        while made := self._meet(model, ctx, edits):
            edits += made
        edits += join_products(model, ctx)
        edits += self._apply(self.last, model, ctx)
        if edits:
            edits += tidy(model, ctx, LEFTOVERS)
        ctx.scratch.pop(STUCK, None)
        return edits

    def _meet(self, model: ir.Model, ctx: Context, before: int) -> int:
        """What whole regions show, and what the rules find after it."""
        made = meet_transposes(model, ctx)
        if before or made:
            made += tidy(model, ctx, LEFTOVERS)
        return made and made + self._apply(self.rules, model, ctx)

    def _apply(self, rules: tuple[AnyRule, ...], model: ir.Model, ctx: Context) -> int:
        """Apply rules until none matches; where one needs a newer opset, raise it and go on."""
        refused = len(ctx.refusals)
        edits = apply_rules(model, ctx, rules)
        wanted = ctx.scratch.pop(WANTED, None)
        if wanted is not None:
            edits += self._raise(model, ctx, wanted)
            del ctx.refusals[refused:]
            edits += apply_rules(model, ctx, rules)
        return edits

    def _raise(self, model: ir.Model, ctx: Context, version: int) -> int:
        """Raise the opset; a model that cannot be raised stays where it is, with a note."""
        if not ctx.edit(self, f"opset {version}"):
            ctx.scratch[STUCK] = True
            return 0
        try:
            raise_opset(model, version)
        except ModelError as error:
            ctx.edits.pop()
            ctx.scratch[STUCK] = True
            ctx.note(f"some fusions need opset {version}: {error}")
            return 0
        if ctx.get(shapes).certain:
            ctx.invalidate(preserves=(shapes,))
        else:
            ctx.invalidate()
        return 1
