"""Element by element: arithmetic, comparisons, activations, in whatever order axes are at hand."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from graphopt.backends.litert.flatbuffer import Tensor
from graphopt.backends.litert.fusing import tail_of
from graphopt.backends.litert.writer import Axes, Lower, Refused, Writer, plain_axes

__all__ = ["BINARY", "COMPARED", "UNARY", "broadcast"]


def broadcast(
    w: Writer, node: ir.Node, values: Sequence[ir.Value | None]
) -> tuple[list[Tensor], Axes]:
    """The operands of a node in one order of axes: that of the largest that was moved."""
    rank = len(w.shape(node.outputs[0]))
    full = [w.axes(v) for v in values if v is not None and len(w.shape(v)) == rank]
    axes = next((a for a in full if a != plain_axes(rank)), plain_axes(rank))
    return [_aligned(w, v, rank, axes) for v in values if v is not None], axes


def _aligned(w: Writer, value: ir.Value, rank: int, axes: Axes) -> Tensor:
    shape = w.shape(value)
    if len(shape) == rank:
        return w.read(value, axes)
    if axes == plain_axes(rank) or all(d == 1 for d in shape):
        return w.read(value)
    missing = rank - len(shape)
    return w.weight(value, (1,) * missing + shape, axes)


def unary(code: str, options: str = "") -> Lower:
    """An operator of one operand."""

    def lower(w: Writer, node: ir.Node) -> None:
        x, axes = w.operand(node)
        kind = x.dtype if x.grid is None else "float32"
        w.give(node.outputs[0], w.emit(code, [x], x.shape, options, kind), axes)

    return lower


def binary(code: str, options: str, kind: str = "") -> Lower:
    """An operator of two operands, with the activation behind it where it has a field for one."""

    def lower(w: Writer, node: ir.Node) -> None:
        operands, axes = broadcast(w, node, node.inputs)
        shape = np.broadcast_shapes(*(t.shape for t in operands))
        tail = tail_of(w, node)
        given = {"fusedActivationFunction": tail.activation} if tail.activation else {}
        dtype = kind or ("float32" if operands[0].grid is not None else operands[0].dtype)
        for one in tail.nodes:
            w.skip(one)
        made = w.emit(code, operands, shape, options, dtype, **given)
        w.give(tail.value, made, axes)

    return lower


def variadic(code: str, options: str) -> Lower:
    """An operator that folds any number of operands."""

    def lower(w: Writer, node: ir.Node) -> None:
        (made, *others), axes = broadcast(w, node, node.inputs)
        for other in others:
            shape = np.broadcast_shapes(made.shape, other.shape)
            made = w.emit(code, [made, other], shape, options, made.dtype)
        w.give(node.outputs[0], made, axes)

    return lower


def where(w: Writer, node: ir.Node) -> None:
    """Where(c, a, b) -> SELECT_V2"""
    operands, axes = broadcast(w, node, node.inputs)
    shape = np.broadcast_shapes(*(t.shape for t in operands))
    made = w.emit("SELECT_V2", operands, shape, "SelectV2", operands[1].dtype)
    w.give(node.outputs[0], made, axes)


def is_nan(w: Writer, node: ir.Node) -> None:
    """IsNaN(x) -> x != x"""
    x, axes = w.operand(node)
    w.give(node.outputs[0], w.emit("NOT_EQUAL", [x, x], x.shape, "NotEqual", "bool"), axes)


def power(w: Writer, node: ir.Node) -> None:
    """x^2 -> x * x; x^0.5 -> Sqrt(x); others -> POW"""
    exponent = w.array(node.inputs[1])
    x, axes = w.operand(node)
    if exponent is not None and exponent.size == 1 and float(exponent.reshape(-1)[0]) in (2.0, 0.5):
        two = float(exponent.reshape(-1)[0]) == 2.0
        made = w.emit("MUL", [x, x], x.shape, "Mul") if two else w.emit("SQRT", [x], x.shape)
        w.give(node.outputs[0], made, axes)
        return
    binary("POW", "Pow")(w, node)


def reciprocal(w: Writer, node: ir.Node) -> None:
    """1 / x"""
    x, axes = w.operand(node)
    w.give(node.outputs[0], w.emit("DIV", [w.floats(1.0), x], x.shape, "Div"), axes)


def clip(w: Writer, node: ir.Node) -> None:
    """Minimum(Maximum(x, low), high)"""
    x, axes = w.operand(node)
    if x.grid is not None:
        raise Refused("a Clip in integers")
    for code, k in (("MAXIMUM", 1), ("MINIMUM", 2)):
        if k < len(node.inputs) and node.inputs[k] is not None:
            x = w.emit(code, [x, w.read(node.inputs[k])], x.shape, "MaximumMinimum", x.dtype)
    w.give(node.outputs[0], x, axes)


def gelu(w: Writer, node: ir.Node) -> None:
    """Gelu(x) -> GELU"""
    x, axes = w.operand(node)
    tanh = w.attribute(node, "approximate", "none") == "tanh"
    w.give(node.outputs[0], w.emit("GELU", [x], x.shape, "Gelu", approximate=tanh), axes)


def leaky(w: Writer, node: ir.Node) -> None:
    """LeakyRelu(x) -> LEAKY_RELU"""
    x, axes = w.operand(node)
    alpha = float(w.attribute(node, "alpha"))
    w.give(node.outputs[0], w.emit("LEAKY_RELU", [x], x.shape, "LeakyRelu", alpha=alpha), axes)


def hard_sigmoid(w: Writer, node: ir.Node) -> None:
    """max(0, min(1, alpha x + beta))"""
    x, axes = w.operand(node)
    alpha, beta = (w.floats(w.attribute(node, k)) for k in ("alpha", "beta"))
    x = w.emit("ADD", [w.emit("MUL", [x, alpha], x.shape, "Mul"), beta], x.shape, "Add")
    x = w.emit("MAXIMUM", [x, w.floats(0.0)], x.shape, "MaximumMinimum")
    x = w.emit("MINIMUM", [x, w.floats(1.0)], x.shape, "MaximumMinimum")
    w.give(node.outputs[0], x, axes)


def swish(w: Writer, node: ir.Node) -> None:
    """x * Sigmoid(alpha x)"""
    x, axes = w.operand(node)
    alpha = float(w.attribute(node, "alpha", 1.0))
    scaled = x if alpha == 1.0 else w.emit("MUL", [x, w.floats(alpha)], x.shape, "Mul")
    gate = w.emit("LOGISTIC", [scaled], x.shape)
    w.give(node.outputs[0], w.emit("MUL", [x, gate], x.shape, "Mul"), axes)


def cast(w: Writer, node: ir.Node) -> None:
    """Cast(x) -> CAST"""
    x, axes = w.operand(node)
    kind = str(ir.DataType(w.attribute(node, "to")).numpy())
    made = x if kind == x.dtype else w.emit("CAST", [x], x.shape, "Cast", kind)
    w.give(node.outputs[0], made, axes)


def same(w: Writer, node: ir.Node) -> None:
    """Identity(x), Dropout(x) -> x"""
    assert node.inputs[0] is not None
    w.rename(node.outputs[0], node.inputs[0], plain_axes(len(w.shape(node.inputs[0]))))


UNARY: dict[str, Lower] = {
    "Abs": unary("ABS", "Abs"),
    "Cast": cast,
    "Ceil": unary("CEIL"),
    "Clip": clip,
    "Cos": unary("COS", "Cos"),
    "Dropout": same,
    "Elu": unary("ELU"),
    "Exp": unary("EXP", "Exp"),
    "Floor": unary("FLOOR"),
    "Gelu": gelu,
    "HardSigmoid": hard_sigmoid,
    "HardSwish": unary("HARD_SWISH", "HardSwish"),
    "Identity": same,
    "IsNaN": is_nan,
    "LeakyRelu": leaky,
    "Log": unary("LOG"),
    "Neg": unary("NEG", "Neg"),
    "Not": unary("LOGICAL_NOT", "LogicalNot"),
    "Reciprocal": reciprocal,
    "Relu": unary("RELU"),
    "Round": unary("ROUND"),
    "Sigmoid": unary("LOGISTIC"),
    "Sin": unary("SIN"),
    "Sqrt": unary("SQRT"),
    "Swish": swish,
    "Tanh": unary("TANH"),
}
BINARY: dict[str, Lower] = {
    "Add": binary("ADD", "Add"),
    "And": binary("LOGICAL_AND", "LogicalAnd"),
    "Div": binary("DIV", "Div"),
    "Max": variadic("MAXIMUM", "MaximumMinimum"),
    "Min": variadic("MINIMUM", "MaximumMinimum"),
    "Mul": binary("MUL", "Mul"),
    "Or": binary("LOGICAL_OR", "LogicalOr"),
    "Pow": power,
    "PRelu": binary("PRELU", ""),
    "Sub": binary("SUB", "Sub"),
    "Sum": variadic("ADD", "Add"),
    "Where": where,
}
COMPARED: dict[str, Lower] = {
    "Equal": binary("EQUAL", "Equal", "bool"),
    "Greater": binary("GREATER", "Greater", "bool"),
    "GreaterOrEqual": binary("GREATER_EQUAL", "GreaterEqual", "bool"),
    "Less": binary("LESS", "Less", "bool"),
    "LessOrEqual": binary("LESS_EQUAL", "LessEqual", "bool"),
}
