"""The pass: every rule of the themes beside this file, applied until none matches."""

from __future__ import annotations

import dataclasses

from graphopt.passes.fuse.affine_after import ScaleShiftAfter
from graphopt.passes.fuse.affine_before import ScaleBefore, ShiftBefore
from graphopt.passes.fuse.gemm import MatMulAdd, TransposedOperand
from graphopt.passes.fuse.pad import PadIntoConv, PadIntoPool

from graphopt import Rewrite

__all__ = ["Fuse"]


@dataclasses.dataclass(frozen=True)
class Fuse(Rewrite):
    """Fuse operators into fewer ones that compute the same."""

    rules = (
        ScaleShiftAfter,
        ScaleBefore,
        ShiftBefore,
        PadIntoConv,
        PadIntoPool,
        TransposedOperand,
        MatMulAdd,
    )
