"""Stored weights: integers in the file, float where they compute, for nodes that stay float.

    W  ->  Cast(Q) * s        one scale for each output channel

A runtime computes constants once, as it loads: the file is a quarter, the speed that of floats, and
the error that of rounding weights alone. It suits what integers spoil, or do not make faster. What
even that spoils (a Fourier transform written as a convolution) is stored in 16 bits.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.int8.grid import SMALLEST_SCALE
from graphopt.passes.int8.writer import Writer

from graphopt.graph.constants import weight_of

__all__ = ["store", "weights_to_store"]

Array = np.ndarray[Any, Any]

#: Smaller weights save less than two more nodes take.
SMALLEST = 1 << 11
#: Inputs that are weights, and the axes of each that are summed over.
_SUMMED: dict[str, dict[int, tuple[int, ...]]] = {
    "Conv": {1: (1, 2, 3, 4)},
    "ConvTranspose": {1: (0, 2, 3, 4)},
    "FusedConv": {1: (1, 2, 3, 4)},
    "FusedGemm": {1: ()},
    "GRU": {1: (2,), 2: (2,)},
    "Gemm": {1: ()},
    "LSTM": {1: (2,), 2: (2,)},
    "MatMul": {0: (-1,), 1: (-2,)},
    "RNN": {1: (2,), 2: (2,)},
}
_DOMAINS = ("", "ai.onnx", "com.microsoft")


def weights_to_store(node: ir.Node) -> tuple[int, ...]:
    """Positions of the float weights of `node` that are worth storing in int8."""
    known = _SUMMED.get(node.op_type, {}) if node.domain in _DOMAINS else {}
    return tuple(k for k in known if k < len(node.inputs) and _worth(node.inputs[k]))


def store(
    writer: Writer,
    node: ir.Node,
    positions: tuple[int, ...],
    bits: int,
    rounded: tuple[Array, Array] | None = None,
) -> None:
    """Let `node` read its weights at `positions` from integers of 8 or 16 bits.

    `rounded` holds better integers than the nearest, and the scales of their output channels.
    """
    top = 2 ** (bits - 1) - 1
    for k in positions:
        value = node.inputs[k]
        weight = weight_of(value)
        assert value is not None
        assert weight is not None
        array = weight.array()
        axes = _SUMMED[node.op_type][k]
        if node.op_type in ("FusedGemm", "Gemm"):
            axes = (1,) if node.attributes.get_int("transB", 0) else (0,)
        axes = tuple(a for a in axes if a < array.ndim)
        key = (weight.key, bits, axes)
        if key not in writer.restored:
            peaks = np.abs(array).max(axis=axes, keepdims=True)
            scales = np.maximum(peaks / top, SMALLEST_SCALE).astype(np.float32)
            integers = np.clip(np.rint(array / scales), -top, top)
            if rounded is not None and np.array_equal(rounded[1], scales.reshape(-1)):
                integers = rounded[0]
            q = writer.initializer(integers.astype(f"int{bits}"), f"{value.name}_q")
            cast = writer.node(
                "Cast",
                [q],
                f"{value.name}_cast",
                origin=[],
                attributes={"to": int(ir.DataType.FLOAT)},
            )
            scale = writer.initializer(scales, f"{value.name}_scale")
            product = writer.node(
                "Mul", [cast.outputs[0], scale], f"{value.name}_stored", origin=[], after=cast
            )
            restored = product.outputs[0]
            restored.type, restored.shape = ir.TensorType(ir.DataType.FLOAT), q.shape
            writer.restored[key] = restored
        node.replace_input_with(k, writer.restored[key])


def _worth(value: ir.Value | None) -> bool:
    weight = weight_of(value)
    if weight is None or weight.tensor.dtype != ir.DataType.FLOAT:
        return False
    return int(np.prod(weight.shape)) >= SMALLEST
