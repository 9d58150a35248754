"""Every operator that can be lowered, by "Name" or "domain:Name"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import onnx_ir as ir
from graphopt.backends.torch_fx import (
    convolution,
    elementwise,
    indexing,
    norms,
    pooling,
    quantized,
    recurrent,
    reductions,
    shape,
)

__all__ = ["MOVES", "TABLE", "key_of"]

TABLE: dict[str, Callable[..., Any]] = {
    **elementwise.TABLE,
    **shape.TABLE,
    **indexing.TABLE,
    **reductions.TABLE,
    **convolution.TABLE,
    **pooling.TABLE,
    **norms.TABLE,
    **recurrent.TABLE,
    **quantized.TABLE,
}

#: Operators that move elements of their first input about and change none.
MOVES = frozenset(
    {
        *("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "Identity", "MaxPool"),
        *("Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose"),
        "Unsqueeze",
    }
)


def key_of(node: ir.Node) -> str:
    """The node's operator as the table names it."""
    if node.domain in ("", "ai.onnx"):
        return node.op_type
    return f"{node.domain}:{node.op_type}"
