"""Layout propagation: what an operator must be told when its operands have other axis orders.

With y = Transpose(x, perm), axis j of y is axis perm[j] of x. An operator on y computes the same
on x, as a node with the attributes and constants that `restated` gives.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from graphopt.passes.fuse.norms import reduced_axes

from graphopt.analyses.shapes.facts import Shapes
from graphopt.graph.attributes import attribute

__all__ = ["Perm", "Restated", "drops_axes", "is_elementwise", "operands", "restated"]

Perm = tuple[int, ...]
#: Attributes to set, and constants to put in the place of inputs, by position.
Restated = tuple[dict[str, Any], dict[int, np.ndarray[Any, Any]]]

#: Elementwise, with parameters (if any) that are scalars behind the first input.
_UNARY = frozenset(
    """Abs Acos Acosh Asin Asinh Atan Atanh Cast Ceil Celu Clip Cos Cosh Elu Erf Exp FastGelu
    Floor Gelu HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not QuickGelu
    Reciprocal Relu Round Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh
    ThresholdedRelu""".split()  # noqa: SIM905
)
#: Elementwise, operands broadcast.
_BROADCAST = frozenset(
    """Add And Div Equal Greater GreaterOrEqual Less LessOrEqual Max Mean Min Mod Mul Or PRelu Pow
    Sub Sum Where Xor""".split()  # noqa: SIM905
)
_REDUCTIONS = frozenset(f"Reduce{n}" for n in ("Sum", "Mean", "Max", "Min", "Prod", "L1", "L2"))
_DOMAINS = ("", "ai.onnx", "com.microsoft")


def operands(node: ir.Node) -> list[ir.Value]:
    """The inputs whose axes are meant; none for an operator that is not known."""
    if node.domain not in _DOMAINS:
        return []
    values = [v for v in node.inputs if v is not None]
    if node.op_type in _BROADCAST or node.op_type == "Concat":
        return values
    known = node.op_type in _UNARY or node.op_type in _LAYOUT or node.op_type == "Pad"
    return values[:1] if known else []


def is_elementwise(node: ir.Node) -> bool:
    """Whether each element of the result is made of elements at the same place."""
    known = node.op_type in _UNARY or node.op_type in _BROADCAST
    return known and node.domain in _DOMAINS


def drops_axes(node: ir.Node) -> bool:
    """Whether the node is a reduction that drops axes: its result has no layout."""
    return node.op_type in _REDUCTIONS and not attribute(node, "keepdims")


def restated(node: ir.Node, perm: Perm, facts: Shapes, rank: int | None = None) -> Restated | None:
    """How `node`, which reads y = Transpose(x, perm), says the same of x; None if it cannot.

    With `rank`, the axes that x has; those that `perm` does not name have size 1, and y lacks them.
    """
    if node.op_type in _UNARY or node.op_type in _BROADCAST:
        return {}, {}
    if node.op_type == "Pad":
        return _pad(node, perm, facts, len(perm) if rank is None else rank)
    return _LAYOUT[node.op_type](node, perm, facts)


def _axis(node: ir.Node, perm: Perm, facts: Shapes) -> Restated | None:
    axis = attribute(node, "axis")
    return ({"axis": perm[axis % len(perm)]}, {}) if axis is not None else None


def _axis_13(node: ir.Node, perm: Perm, facts: Shapes) -> Restated | None:
    """Before opset 13 these took a value for a matrix."""
    return _axis(node, perm, facts) if facts.opsets.get("", 1) >= 13 else None


def _kept(node: ir.Node, perm: Perm, facts: Shapes) -> Restated | None:
    return _axis(node, perm, facts) if attribute(node, "keepdims") else None


def _reduce(node: ir.Node, perm: Perm, facts: Shapes) -> Restated | None:
    axes = reduced_axes(node, len(perm))
    if not axes:
        return None
    left = [perm[k] for k in range(len(perm)) if k not in axes]
    if drops_axes(node) and left != sorted(left):
        return None
    moved = sorted(perm[k] for k in axes)
    if len(node.inputs) > 1:
        return {}, {1: np.array(moved, np.int64)}
    return {"axes": moved}, {}


def _numbers(node: ir.Node, k: int, facts: Shapes) -> list[int] | None:
    """The integers of a constant input."""
    value = node.inputs[k] if k < len(node.inputs) else None
    data = None if value is None else facts.fact(value).concrete
    return None if data is None else [int(n) for n in data.ravel()]


def _pad(node: ir.Node, perm: Perm, facts: Shapes, rank: int) -> Restated | None:
    given = attribute(node, "pads")
    pads = list(given) if given is not None else _numbers(node, 1, facts)
    if pads is None or len(pads) != 2 * len(perm) or any(node.inputs[3:]):
        return None
    moved = [0] * (2 * rank)
    for k, p in enumerate(perm):
        moved[p], moved[rank + p] = pads[k], pads[len(perm) + k]
    if given is not None:
        return {"pads": moved}, {}
    return {}, {1: np.array(moved, np.int64)}


def _slice(node: ir.Node, perm: Perm, facts: Shapes) -> Restated | None:
    axes = _numbers(node, 3, facts)
    if axes is None:
        return None
    return {}, {3: np.array([perm[a % len(perm)] for a in axes], np.int64)}


def _scaled(node: ir.Node, perm: Perm, facts: Shapes) -> Restated | None:
    """Quantization: one scale, or one for each index of an axis."""
    rank = facts.rank(node.inputs[1]) if node.inputs[1] is not None else None
    if rank is None or rank > 1 or attribute(node, "block_size"):
        return None
    return ({}, {}) if rank == 0 else _axis(node, perm, facts)


_LAYOUT: dict[str, Callable[[ir.Node, Perm, Shapes], Restated | None]] = {
    "ArgMax": _kept,
    "ArgMin": _kept,
    "Concat": _axis,
    "DequantizeLinear": _scaled,
    "Hardmax": _axis_13,
    "LogSoftmax": _axis_13,
    "LpNormalization": _axis,
    "QuantizeLinear": _scaled,
    "Slice": _slice,
    "Softmax": _axis_13,
    "Split": _axis,
    **dict.fromkeys(_REDUCTIONS, _reduce),
}
