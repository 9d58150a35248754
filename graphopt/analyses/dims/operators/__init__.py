"""What each operator says about the axes of its tensors: one small table per theme."""

from __future__ import annotations

from collections.abc import Callable

from graphopt.analyses.dims.operation import Operation
from graphopt.analyses.dims.operators import (
    attention,
    control,
    elementwise,
    gather,
    layout,
    linear,
    norm,
    pool,
    quantize,
    recurrent,
    reduce,
    reshape,
    sizes,
)

__all__ = ["Table", "operators"]

Table = dict[str, Callable[[Operation], None]]

#: Operator ("Conv", or "domain:Name" outside the standard) -> what it says. Add your own here;
#: an operator that is not listed is a barrier, and all it touches is frozen.
operators: Table = {
    **attention.OPERATORS,
    **control.OPERATORS,
    **elementwise.OPERATORS,
    **gather.OPERATORS,
    **layout.OPERATORS,
    **linear.OPERATORS,
    **norm.OPERATORS,
    **pool.OPERATORS,
    **quantize.OPERATORS,
    **recurrent.OPERATORS,
    **reduce.OPERATORS,
    **reshape.OPERATORS,
    **sizes.OPERATORS,
}
