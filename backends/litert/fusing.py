"""Fused tails: the bias and the activation behind a linear operator, written with it."""

from __future__ import annotations

import dataclasses

import onnx_ir as ir
from graphopt.backends.litert.writer import Writer

__all__ = ["Tail", "tail_of"]

#: Operators of LiteRT with a field for the activation behind them.
ACTIVATED = frozenset(
    {"Add", "AveragePool", "Conv", "Div", "Gemm", "MatMul", "MaxPool", "Mul", "Sub"}
)
NONE, RELU, RELU6 = 0, 1, 3


@dataclasses.dataclass(frozen=True)
class Tail:
    """What follows a node and is computed with it.

    Attributes:
        bias: what is added, one number per column, or None.
        activation: LiteRT's number of it.
        value: the result of all.
        nodes: those that are written with the node.
    """

    bias: ir.Value | None
    activation: int
    value: ir.Value
    nodes: tuple[ir.Node, ...]


def tail_of(w: Writer, node: ir.Node) -> Tail:
    """The tail of a node; of one without, its own result."""
    value, nodes, bias = node.outputs[0], [], None
    if node.op_type not in ACTIVATED:
        return Tail(None, NONE, value, ())
    if node.op_type == "MatMul" and (found := _bias(w, value)) is not None:
        (after, bias), value = found, found[0].outputs[0]
        nodes.append(after)
    reader = w.only_reader(value)
    activation = NONE
    if reader is not None and reader.op_type == "Relu":
        activation = RELU
    elif reader is not None and reader.op_type == "Clip" and reader.inputs[0] is value:
        limits = [w.array(v) for v in (*reader.inputs[1:], None, None)[:2]]
        if all(v is not None and v.size == 1 for v in limits):
            low, high = (float(v.reshape(-1)[0]) for v in limits if v is not None)
            activation = RELU6 if (low, high) == (0.0, 6.0) else NONE
    if reader is not None and activation != NONE:
        value = reader.outputs[0]
        nodes.append(reader)
    return Tail(bias, activation, value, tuple(nodes))


def _bias(w: Writer, value: ir.Value) -> tuple[ir.Node, ir.Value] | None:
    """The Add behind a product, and the one number per column that it adds."""
    reader = w.only_reader(value)
    if reader is None or reader.op_type != "Add":
        return None
    other = next((v for v in reader.inputs if v is not value), None)
    if other is None or (added := w.real(other)) is None or added.shape != w.shape(value)[-1:]:
        return None
    return reader, other
