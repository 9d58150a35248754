"""Constant operands: shapes, scalars and per-channel constants, known before they are loaded.

A rule decides by shapes alone (`graph.constants.constant_shape`), and loads an array only when
nothing else can refuse: weights that no rule touches stay on disk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

__all__ = ["FLOATS", "Array", "per_channel"]

Array = np.ndarray[Any, Any]

FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def per_channel(
    shape: tuple[int, ...], rank: int | None, axis: int, channels: int
) -> tuple[int, ...] | None:
    """`(channels,)` or `()`: how a constant of `shape` varies along `axis` of a value.

    None if it varies along another axis or would broadcast the value to a larger one. With an
    unknown `rank` only a scalar or, along the last axis (-1), a vector is known to do neither.
    """
    size = int(np.prod(shape))
    if rank is None:
        if len(shape) > 1 or (len(shape) == 1 and axis != -1 and shape != (1,)):
            return None
        rank = max(len(shape), 1)
    if len(shape) > rank or size not in (1, channels):
        return None
    if size == 1:
        return ()
    padded = (1,) * (rank - len(shape)) + shape
    return (channels,) if padded[axis] == channels else None
