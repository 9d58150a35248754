"""Every operator that can be lowered, by "Name" or "domain:Name"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from graphopt.backends.torch_fx import (
    attention,
    control,
    convolution,
    elementwise,
    images,
    indexing,
    integers,
    norms,
    pooling,
    quantized,
    recurrent,
    reductions,
    sequences,
    shape,
)

__all__ = ["MOVES", "TABLE"]

TABLE: dict[str, Callable[..., Any]] = {
    **elementwise.TABLE,
    **shape.TABLE,
    **indexing.TABLE,
    **reductions.TABLE,
    **convolution.TABLE,
    **pooling.TABLE,
    **images.TABLE,
    **attention.TABLE,
    **integers.TABLE,
    **sequences.TABLE,
    **control.TABLE,
    **norms.TABLE,
    **recurrent.TABLE,
    **quantized.TABLE,
}

#: Operators that move elements of their first input about and change none.
MOVES = frozenset(
    {
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool"),
        "Pad",
        *("Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"),
        "Unsqueeze",
    }
)
