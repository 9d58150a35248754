"""Stored weights: integers in the file, float where they compute, for nodes that stay float.

    W  ->  Cast(Q) * s                            one scale for each output channel
    W  ->  (16 Cast(H) + Cast([L >> 4, L % 16])) * s       12 bits: a byte, and half of another

A runtime computes constants once, as it loads: the file is a quarter, the speed that of floats, and
the error that of rounding weights alone. It suits what integers spoil, or do not make faster. What
even that spoils is stored in 12 bits (a sixteenth of the error), or in 16.
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
#: Of tables (of words, of positions) rows have a scale each, and so have weights that the graph
#: takes apart itself (gates in another order).
_SUMMED: dict[str, dict[int, tuple[int, ...]]] = {
    "Add": {0: (-1,), 1: (-1,)},
    "Concat": dict.fromkeys(range(8), (-1,)),
    "Conv": {1: (1, 2, 3, 4)},
    "ConvTranspose": {1: (0, 2, 3, 4)},
    "FusedConv": {1: (1, 2, 3, 4)},
    "FusedGemm": {1: ()},
    "GRU": {1: (2,), 2: (2,)},
    "Gather": {0: (-1,)},
    "Gemm": {1: ()},
    "LSTM": {1: (2,), 2: (2,)},
    "MatMul": {0: (-1,), 1: (-2,)},
    "RNN": {1: (2,), 2: (2,)},
    "Reshape": {0: (-1,)},
    "Slice": {0: (-1,)},
    "Split": {0: (-1,)},
    "Unsqueeze": {0: (-1,)},
}
#: Operators whose constants may be masks, which reach minus infinity.
_TABLES = frozenset({"Add", "Concat", "Gather", "Reshape", "Slice", "Split", "Unsqueeze"})
_DOMAINS = ("", "ai.onnx", "com.microsoft")


def weights_to_store(node: ir.Node) -> tuple[int, ...]:
    """Positions of the float weights of `node` that are worth storing in int8."""
    known = _SUMMED.get(node.op_type, {}) if node.domain in _DOMAINS else {}
    found = tuple(k for k in known if k < len(node.inputs) and _worth(node.inputs[k]))
    return found if node.op_type not in _TABLES or all(map(_finite, node.inputs)) else ()


def store(
    writer: Writer,
    node: ir.Node,
    positions: tuple[int, ...],
    bits: int,
    rounded: tuple[Array, Array] | None = None,
) -> None:
    """Let `node` read its weights at `positions` from integers of 8, 12 or 16 bits.

    `rounded` holds better integers than the nearest, and the scales of their output channels.
    """
    top = 2 ** (bits - 1) - 1
    for k in positions:
        value = node.inputs[k]
        weight = weight_of(value)
        assert value is not None
        assert weight is not None
        dtype = weight.tensor.dtype
        if bits == 16 and dtype == ir.DataType.FLOAT16:
            continue  # that is what it has
        array = weight.array().astype(np.float32)
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
            if bits == 16 and np.array_equal(array, array.astype(np.float16)):
                restored = _widened(writer, array, value.name or "W")
            else:
                scale = writer.initializer(scales, f"{value.name}_scale")
                whole = integers.astype(np.int32)
                restored = _read(writer, whole, bits, scale, dtype, value.name or "W")
            restored.type = ir.TensorType(dtype)
            restored.shape = ir.Shape(array.shape)
            writer.restored[key] = restored
        node.replace_input_with(k, writer.restored[key])


def _widened(writer: Writer, array: Array, name: str) -> ir.Value:
    """What halves hold exactly, as halves."""
    held = writer.initializer(array.astype(np.float16), f"{name}_half")
    float_ = {"to": int(ir.DataType.FLOAT)}
    return writer.node("Cast", [held], name, origin=[], attributes=float_).outputs[0]


def _read(
    writer: Writer, integers: Array, bits: int, scale: ir.Value, dtype: ir.DataType, name: str
) -> ir.Value:
    """The product of integers of so many bits, as the file holds them, and their scales."""
    last: list[ir.Node] = []

    def add(op: str, *inputs: ir.Value, **attributes: Any) -> ir.Value:
        at = last[-1] if last else None
        last.append(writer.node(op, inputs, name, origin=[], after=at, attributes=attributes))
        return last[-1].outputs[0]

    def cast(value: ir.Value, to: ir.DataType = ir.DataType.FLOAT) -> ir.Value:
        return add("Cast", value, to=int(to))

    def scaled(value: ir.Value) -> ir.Value:
        product = add("Mul", value, scale)
        return product if dtype == ir.DataType.FLOAT else cast(product, dtype)

    axis = _even(integers.shape)
    if bits != 12 or axis is None:
        held = writer.initializer(integers.astype(np.int8 if bits == 8 else np.int16), f"{name}_q")
        return scaled(cast(held))
    first, second = np.split((integers & 15).astype(np.uint8), 2, axis=axis)
    low = writer.initializer(first << 4 | second, f"{name}_low")
    four, sixteen = (writer.shared(np.asarray(n, np.uint8), f"of_{n}") for n in (4, 16))
    halves = add("BitShift", low, four, direction="RIGHT"), add("Mod", low, sixteen)
    joined = cast(add("Concat", *halves, axis=axis))
    high = cast(writer.initializer((integers >> 4).astype(np.int8), f"{name}_q"))
    times = writer.shared(np.asarray(16, np.float32), "sixteen")
    return scaled(add("Add", add("Mul", high, times), joined))


def _even(shape: tuple[int, ...]) -> int | None:
    """The first axis that can be cut in half."""
    return next((k for k, n in enumerate(shape) if n % 2 == 0), None)


def _worth(value: ir.Value | None) -> bool:
    weight = weight_of(value)
    if weight is None or weight.tensor.dtype not in (ir.DataType.FLOAT, ir.DataType.FLOAT16):
        return False
    return int(np.prod(weight.shape)) >= SMALLEST and sum(n > 1 for n in weight.shape) > 1


def _finite(value: ir.Value | None) -> bool:
    weight = weight_of(value)
    return weight is None or bool(np.isfinite(weight.array()).all())
