"""Weights: constants as an operator sees them, also through Identity and Transpose nodes.

Exporters leave `MatMul(x, Transpose(W))` and `Identity(W)` for weights used twice.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant_value

__all__ = ["FEW_BITS", "Weight", "weight_of"]

#: The product that reads a weight of a few bits, where the target has it (pass `weight_only`).
FEW_BITS = "com.microsoft:MatMulNBits"


@dataclasses.dataclass(frozen=True)
class Weight:
    """A constant, transposed: `array = transpose(root, perm)`.

    Attributes:
        root: the initializer (or output of a Constant) that holds the numbers.
        tensor: its tensor.
        perm: axes of `root` in the order they are seen.
    """

    root: ir.Value
    tensor: ir.TensorProtocol
    perm: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape the operator sees."""
        shape = [d for d in self.tensor.shape if isinstance(d, int)]  # a tensor's are all numbers
        return tuple(shape[i] for i in self.perm)

    @property
    def key(self) -> tuple[ir.Value, tuple[int, ...]]:
        """Equal for two uses of the same numbers in the same order."""
        return self.root, self.perm

    def array(self) -> np.ndarray[Any, Any]:
        """The numbers the operator sees (a view; do not write)."""
        return self.tensor.numpy().transpose(self.perm)


def weight_of(value: ir.Value | None) -> Weight | None:
    """The constant behind `value`, or None if it is computed from something else."""
    perm: tuple[int, ...] | None = None
    while value is not None:
        tensor = constant_value(value)
        if tensor is not None:
            rank = len(tensor.shape)
            return Weight(value, tensor, perm if perm is not None else tuple(range(rank)))
        node = value.producer()
        if node is None or node.domain not in ("", "ai.onnx"):
            return None
        if node.op_type == "Transpose":
            source = node.inputs[0]
            if source is None or (source.shape is None and "perm" not in node.attributes):
                return None
            rank = len(source.shape) if source.shape is not None else 0
            own = tuple(node.attributes.get_ints("perm", tuple(range(rank))[::-1]))
            perm = own if perm is None else tuple(own[i] for i in perm)
        elif node.op_type != "Identity":
            return None
        value = node.inputs[0]
    return None
