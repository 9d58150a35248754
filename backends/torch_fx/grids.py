"""Grids of integer weights: where an operator has one, and how its scales lie over it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import onnx_ir as ir
import torch
from graphopt.backends.torch_fx.keys import key_of
from graphopt.backends.torch_fx.quantized import bounds, quantize

from graphopt.graph.constants import constant_value

__all__ = ["Grid", "grid_at"]


@dataclasses.dataclass(frozen=True)
class Grid:
    """The grid of an integer weight that is held as floats.

    Attributes:
        scale: path of the scale.
        zero: path of the zero point, or None if it is `offset`.
        dtype: the integer type.
        shape: what scales and zero points are reshaped to before they broadcast; None for as is.
        axis: axis along which each of them holds for `block` elements.
        block: elements a scale; 0 for no blocks.
        offset: the zero point where it is no tensor.
    """

    scale: str
    zero: str | None
    dtype: ir.DataType
    shape: tuple[int, ...] | None = None
    axis: int = 0
    block: int = 0
    offset: int = 0

    def over(self, steps: Any) -> Any:
        """Scales or zero points so that they broadcast over the weight."""
        if self.block:
            return torch.repeat_interleave(steps, self.block, self.axis)
        return steps if self.shape is None else steps.reshape(self.shape)

    def zeros(self, held: Callable[[str], Any]) -> Any:
        """The zero points as floats, ready to broadcast."""
        if self.zero is None:
            return float(self.offset)
        return self.over(held(self.zero)).to(torch.float32)

    def real(self, integers: Any, held: Callable[[str], Any]) -> Any:
        """(q - z) s"""
        scale = self.over(held(self.scale))
        return (integers.to(scale.dtype) - self.zeros(held)) * scale

    def round(self, weight: Any, held: Callable[[str], Any]) -> Any:
        """The integers of a float weight, as floats; gradients pass."""
        low, high = bounds(self.dtype)
        return quantize(weight, self.over(held(self.scale)), self.zeros(held), low, high)


#: Where operators have an integer weight: (weight, scale, zero point) among their inputs.
_WEIGHTS = {
    "DequantizeLinear": ((0, 1, 2),),
    "com.microsoft:DequantizeLinear": ((0, 1, 2),),
    "QLinearConv": ((3, 4, 5),),
    "QLinearMatMul": ((3, 4, 5),),
    "com.microsoft:MatMulIntegerToFloat": ((1, 3, 5),),
    "com.microsoft:QGemm": ((3, 4, 5),),
    "com.microsoft:DynamicQuantizeMatMul": ((1, 2, 3),),
    "com.microsoft:DynamicQuantizeLSTM": ((1, 8, 9), (2, 10, 11)),
    "com.microsoft:GatherBlockQuantized": ((0, 2, 3),),
    "com.microsoft:QAttention": ((1, 4, 7),),
}


def grid_at(node: ir.Node, k: int, path: Callable[[ir.Value], str | None]) -> Grid | None:
    """The grid of input `k` of `node`, if that is an integer weight with a constant grid.

    `path` gives the path of a constant, None for other values.
    """
    for weight, scale, zero in _WEIGHTS.get(key_of(node), ()):
        if weight != k:
            continue
        inputs = [*node.inputs, *[None] * 12]
        tensor, steps = constant_value(inputs[k]), inputs[scale]
        step_path = None if steps is None else path(steps)
        zeros = inputs[zero]
        zero_path = None if zeros is None else path(zeros)
        if tensor is None or step_path is None or (zeros is not None and zero_path is None):
            return None
        plain = Grid(step_path, zero_path, tensor.dtype)
        return _laid_out(node, plain, len(tensor.shape), constant_value(steps))
    return None


def _laid_out(node: ir.Node, grid: Grid, rank: int, steps: ir.TensorProtocol | None) -> Grid | None:
    """The grid with the layout that the operator gives its scales."""
    assert steps is not None
    name, count = node.op_type, len(steps.shape)
    if name == "GatherBlockQuantized":
        if node.attributes.get_int("bits", 4) != 8:
            return None
        block = node.attributes.get_int("block_size", 128)
        axis = node.attributes.get_int("quantize_axis", 1)
        offset = 128 if grid.zero is None and grid.dtype is ir.DataType.UINT8 else 0
        return dataclasses.replace(grid, block=block, axis=axis, offset=offset)
    if name == "DequantizeLinear":
        axis = node.attributes.get_int("axis", 1)
        block = int(node.attributes.get_int("block_size", 0))
        if block:
            return dataclasses.replace(grid, block=block, axis=axis % rank)
        if count == 0 or rank == 0:
            return grid
        axis = 0 if rank == 1 else axis % rank
    elif name == "DynamicQuantizeLSTM":
        directions = int(steps.shape.numpy()[0])
        return dataclasses.replace(grid, shape=(directions, 1, -1))
    else:
        transposed = name == "QGemm" and bool(node.attributes.get_int("transB", 0))
        axis = 0 if name == "QLinearConv" or transposed else rank - 1
    shape = tuple(-1 if a == axis else 1 for a in range(rank))
    return dataclasses.replace(grid, shape=shape) if count == 1 else grid
