"""The name of a value's first axis: nodes of a graph, tokens, whatever the inputs have as rows.

Exporters write no shapes beside inner values, so it is followed to the inputs, through operators
that make one row of each row.
"""

from __future__ import annotations

from collections import deque

import onnx_ir as ir

from graphopt.graph.attributes import attribute
from graphopt.graph.axes import axis_name
from graphopt.graph.constants import constant_value

__all__ = ["first_axis"]

#: Values that are looked at.
MOST = 256
#: Operators whose first output has the first axis of these inputs, of those with the most axes.
_KEEP: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("Add", "Div", "Max", "Min", "Mul", "Pow", "Sub", "Sum"), (0, 1)),
    **dict.fromkeys(("BatchNormalization", "Cast", "Clip", "Dropout", "Elu", "Erf", "Exp"), (0,)),
    **dict.fromkeys(("Gelu", "Identity", "LayerNormalization", "LeakyRelu", "Log", "Neg"), (0,)),
    **dict.fromkeys(("PRelu", "Relu", "ScatterElements", "ScatterND", "Sigmoid", "Silu"), (0,)),
    **dict.fromkeys(("Softmax", "Softplus", "Sqrt", "Swish", "Tanh"), (0,)),
    "Concat": tuple(range(64)),
    "Gather": (1,),
    "Gemm": (0,),
    "MatMul": (0,),
    "Unsqueeze": (0,),
    "Where": (1, 2),
}


def first_axis(value: ir.Value) -> str | None:
    """The axis' name; None if it is a number, or not known."""
    todo, seen = deque([value]), {value}
    while todo and len(seen) < MOST:
        current = todo.popleft()
        if current.shape is not None and len(current.shape):
            name = axis_name(current.shape[0])
            if name is not None:
                return name
        node = current.producer()
        if node is None or not _keeps(node):
            continue
        for k in _KEEP[node.op_type]:
            operand = node.inputs[k] if k < len(node.inputs) else None
            if operand is not None and operand not in seen and constant_value(operand) is None:
                seen.add(operand)
                todo.append(operand)
    return None


def _keeps(node: ir.Node) -> bool:
    """Whether rows of what it reads are rows of what it makes."""
    if node.op_type not in _KEEP:
        return False
    if node.op_type in ("Concat", "Gather"):
        axis = attribute(node, "axis")
        return bool(axis == 0) == (node.op_type == "Gather")
    if node.op_type == "Gemm":
        return not attribute(node, "transA")
    if node.op_type == "Unsqueeze":
        axes = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
        return axes is not None and bool((axes.numpy() > 0).all())
    return True
