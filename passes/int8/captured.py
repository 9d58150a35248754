"""Values that loops and branches read from outside (captured variables), as they are or moved."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["read_inside"]

#: Operators that a DequantizeLinear is moved behind, and those that are part of what is before it.
_MOVES = frozenset(
    {"Clip", "Flatten", "Identity", "MaxPool", "Relu", "Reshape", "Slice", "Squeeze"}
    | {"Transpose", "Unsqueeze"}
)


def read_inside(value: ir.Value) -> bool:
    """Whether a graph inside of a node reads it.

    ONNX Runtime (1.32) moves a DequantizeLinear behind what moves elements, and aborts the process
    where what reads them next does so from inside.
    """
    producer = value.producer()
    todo, seen = [value], {value}
    while todo:
        for use in todo.pop().uses():
            if producer is not None and use.node.graph is not producer.graph:
                return True
            new = use.node.outputs[0]
            if use.node.op_type in _MOVES and new not in seen:
                seen.add(new)
                todo.append(new)
    return False
