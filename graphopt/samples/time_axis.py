"""Inputs whose first axis is time: windows slide along it, or a recurrence goes through it.

Exporters that know no batches write [time, features]: rows of such an array are no samples of their
own, so they are neither cut apart nor joined.
"""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_value
from graphopt.graph.traverse import RECURRENT

__all__ = ["first_is_time"]

#: Values that are looked at.
MOST = 64
_WINDOWS = frozenset({"AveragePool", "Conv", "ConvTranspose", "LpPool", "MaxPool"})
#: Operators that leave axes where they are, where the first operand has them all.
_KEEP = frozenset(
    """Abs Add BatchNormalization Cast Clip Div Elu Erf Exp Gelu HardSigmoid HardSwish Identity
    LeakyRelu Log Max Min Mul Neg PRelu Pad Pow Relu Selu Sigmoid Softplus Sqrt Sub Tanh""".split()  # noqa: SIM905
)


def first_is_time(value: ir.Value) -> bool:
    """Whether what reads an input takes its first axis as one that order matters along."""
    todo, seen = [(value, 0)], {value}
    while todo and len(seen) < MOST:
        current, axis = todo.pop()
        for node, k in current.uses():
            if node.domain not in ("", "ai.onnx") or k != 0:
                continue
            if _goes_along(node, axis):
                return True
            moved = _moved(node, axis)
            if moved is not None and node.outputs[0] not in seen:
                seen.add(node.outputs[0])
                todo.append((node.outputs[0], moved))
    return False


def _goes_along(node: ir.Node, axis: int) -> bool:
    if node.op_type in RECURRENT:
        return bool(axis == attribute(node, "layout", 0))
    if node.op_type not in _WINDOWS or axis < 2:
        return False
    weight = node.inputs[1].shape if "Conv" in node.op_type and node.inputs[1] else None
    kernel = attribute(node, "kernel_shape") or (weight[2:] if weight is not None else ())
    return axis - 2 < len(kernel) and kernel[axis - 2] != 1


def _moved(node: ir.Node, axis: int) -> int | None:
    """Where the axis is in the first output; None if nothing says so."""
    if node.op_type in _KEEP:
        return axis
    if node.op_type == "Transpose":
        perm = attribute(node, "perm")
        return None if perm is None else list(perm).index(axis)
    if node.op_type not in ("Squeeze", "Unsqueeze"):
        return None
    told = constant_value(node.inputs[1]) if len(node.inputs) > 1 else None
    axes = attribute(node, "axes") if told is None else told.numpy().ravel().tolist()
    if not axes or min(axes) < 0:
        return None
    if node.op_type == "Squeeze":
        return None if axis in axes else axis - sum(a < axis for a in axes)
    for a in sorted(axes):
        axis += a <= axis
    return axis
