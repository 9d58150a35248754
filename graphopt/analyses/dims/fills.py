"""Fills: tensors of one value that a node makes, such as the zeros a recurrence starts from.

Exporters make one and take parts of it wherever zeros are needed. A use of a fill says nothing
about any other use, so each has axes of its own, as with constants; the cut makes a fill of the new
size for every use whose size changes.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.constants import constant_value

__all__ = ["fill"]

Array = np.ndarray[Any, Any]
#: They take, move or repeat elements of their first operand and nothing else.
MOVES = frozenset(
    {"Expand", "Flatten", "Gather", "Identity", "Reshape", "Slice", "Split", "Squeeze", "Tile"}
    | {"Transpose", "Unsqueeze"}
)
#: Constants larger than this are not read to see whether they hold one value only.
LIMIT = 1 << 16


def fill(value: ir.Value) -> Array | None:
    """The one value, as a scalar, of every element of what a node makes; None if there is none."""
    node = value.producer()
    while node is not None and node.domain in ("", "ai.onnx"):
        if node.op_type == "ConstantOfShape":
            held = node.attributes.get("value")
            return np.array(0, np.float32) if held is None else held.as_tensor().numpy().reshape(())
        if node.op_type not in MOVES or node.inputs[0] is None:
            return None
        tensor = constant_value(node.inputs[0])
        if tensor is not None:
            array = tensor.numpy().ravel() if tensor.size <= LIMIT else np.zeros(0)
            same = array.size > 0 and array.dtype.kind in "fiub" and bool((array == array[0]).all())
            return np.array(array[0]) if same else None
        node = node.inputs[0].producer()
    return None
