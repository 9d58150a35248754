"""Dimension types: which positions of which axes belong together, for any ONNX graph.

Every axis of every tensor has positions; every operator states equations between them (one small
function per operator, in `operators`); the solver finds the finest units that satisfy all of them;
what is left free is a `Dimension`, prunable wherever it occurs.

    dims = ctx.get(dimensions)
    dims.prunable["conv1.weight"].members

Operators of your own: `operators["my.domain:Norm"] = function` (see `operation`).
"""

from __future__ import annotations

from graphopt.analyses.dims.analysis import dimensions
from graphopt.analyses.dims.dimension import Dimension, Dimensions, Frozen, Member
from graphopt.analyses.dims.operation import Operation, Unsupported
from graphopt.analyses.dims.operators import operators

__all__ = [
    "Dimension",
    "Dimensions",
    "Frozen",
    "Member",
    "Operation",
    "Unsupported",
    "dimensions",
    "operators",
]
