"""Quantization: integers carried as floats, so that gradients pass (straight through rounding).

    q = clamp(x / s, lo - z, hi - z) rounded, + z          y = (q - z) s

The derivative of rounding is taken as 1. What follows by the chain rule is LSQ (Esser et al.,
2020): dy/dx = 1 inside the range and 0 outside, dy/ds = q - z - x/s inside and q - z outside.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from graphopt.backends.torch_fx.types import torch_dtype

__all__ = [
    "TABLE",
    "Carried",
    "bounds",
    "carried",
    "floats",
    "integer",
    "on_grid",
    "quantize",
    "round_through",
    "spread",
]


@dataclasses.dataclass(frozen=True)
class Carried:
    """Integers of type `dtype` held in the float tensor `tensor`."""

    tensor: Any
    dtype: ir.DataType


def carried(function: Callable[..., Any]) -> Callable[..., Any]:
    """Mark a lowering that takes carried integers as they are."""
    function.carried = True  # type: ignore[attr-defined]
    return function


def integer(value: Carried) -> Any:
    """The integers as such (gradients end here)."""
    return value.tensor.to(torch_dtype(value.dtype))


def floats(value: Any, dtype: Any = torch.float32) -> Any:
    """Integers, carried or not, as floats."""
    return value.tensor if isinstance(value, Carried) else value.to(dtype)


def bounds(dtype: ir.DataType) -> tuple[int, int]:
    """Smallest and largest integer of a type."""
    bits = int(dtype.bitwidth)
    if dtype.name.startswith("U"):
        return 0, 2**bits - 1
    return -(2 ** (bits - 1)), 2 ** (bits - 1) - 1


def round_through(x: Any) -> Any:
    """Round half to even; the derivative is 1."""
    return x + (torch.round(x) - x).detach()


def spread(scale: Any, axis: int | None, rank: int, block: int = 0) -> Any:
    """Scales along `axis` of a tensor of rank `rank`, ready to broadcast."""
    if block:
        return torch.repeat_interleave(scale, block, dim=axis)
    if axis is None:
        return scale
    return scale.reshape([-1 if k == axis % rank else 1 for k in range(rank)])


def quantize(x: Any, scale: Any, zero: Any, low: float, high: float) -> Any:
    """x on the grid (scale, zero) of integers from low to high, as floats."""
    return round_through(torch.clamp(x / scale, low - zero, high - zero)) + zero


def on_grid(x: Any, scale: Any, zero: Any, dtype: ir.DataType) -> Any:
    """x on the grid of integers of type `dtype`, as floats; no zero point means 0."""
    low, high = bounds(dtype)
    shift = 0.0 if zero is None else zero.to(torch.float32)
    return quantize(x, scale, shift, low, high)


def _axis(op: Any, k: int) -> tuple[int | None, int, int]:
    """Axis, rank and block size of the scale that is input `k`."""
    block = op.attribute("block_size", 0)
    rank = op.rank(0)
    if op.rank(k) == 0 or (op.rank(k) == 1 and rank == 0):
        return None, rank, 0
    if not block and op.dims(k) == [1]:
        return None, rank, 0
    return op.attribute("axis", 1) % rank, rank, block


def quantize_linear(op: Any, x: Any, scale: Any, zero: Any = None) -> Any:
    """Q, the integers carried as floats."""
    axis, rank, block = _axis(op, 1)
    wanted = op.attribute("output_dtype", 0)
    dtype = op.dtype(2) if zero is not None else ir.DataType(wanted or ir.DataType.UINT8)
    if zero is not None:
        zero = spread(zero, axis, rank, block)
    return Carried(on_grid(x, spread(scale, axis, rank, block), zero, dtype), dtype)


@carried
def dequantize_linear(op: Any, x: Any, scale: Any, zero: Any = None) -> Any:
    """(q - z) s."""
    axis, rank, block = _axis(op, 1)
    q = floats(x)
    if zero is not None:
        q = q - spread(zero, axis, rank, block).to(torch.float32)
    return q * spread(scale, axis, rank, block)


TABLE = {
    "QuantizeLinear": quantize_linear,
    "DequantizeLinear": dequantize_linear,
    "com.microsoft:QuantizeLinear": quantize_linear,
    "com.microsoft:DequantizeLinear": dequantize_linear,
}
