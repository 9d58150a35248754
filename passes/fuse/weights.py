"""Constant operands: what a rule may know of them before it loads them.

A rule decides by shapes alone (`constant_shape`), and loads an array only when nothing else can
refuse: weights that no rule touches stay on disk.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant_value

__all__ = ["FLOATS", "array", "constant_shape", "number", "per_channel", "shared"]

Array = np.ndarray[Any, Any]

FLOATS = (ir.DataType.FLOAT, ir.DataType.DOUBLE, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)


def constant_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """The shape of a constant, without loading it; None if `value` is no constant."""
    tensor = constant_value(value)
    return None if tensor is None else tuple(tensor.shape.numpy())


def array(value: ir.Value | None) -> Array:
    """The constant as an array (loads it)."""
    tensor = constant_value(value)
    assert tensor is not None
    return tensor.numpy()


def number(value: ir.Value | None) -> float | None:
    """The value of a constant of one element, or None."""
    shape = constant_shape(value)
    if shape is None or int(np.prod(shape)) != 1:
        return None
    return float(array(value).astype(np.float64).reshape(()))


def shared(value: ir.Value) -> bool:
    """Whether more than one node reads `value`: a changed copy would untie or duplicate it."""
    return len(value.uses()) > 1 or value.is_graph_output()


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
