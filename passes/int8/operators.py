"""What each operator is to quantization: which inputs are data, weight and bias, and its output.

One dict from operator name to function. An operator that is not in it is a barrier.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

import numpy as np
import onnx_ir as ir

from graphopt.analyses.linear import COMPUTED, linear_of
from graphopt.calibration.ranges import Range
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import weight_of

__all__ = ["FEW_BITS", "OPERATORS", "Operator", "describe"]

#: The product that reads a weight of a few bits, where the target has it (pass `weight_only`).
FEW_BITS = "com.microsoft:MatMulNBits"


@dataclasses.dataclass(frozen=True)
class Operator:
    """How one node takes part in an integer region.

    Attributes:
        data: positions of the activations it reads as integers.
        weight, axis: position of its constant weight, and the weight's output channel axis
            (None: one scale for all of it).
        bias: position of its bias, added at the scale of data times weight.
        output: "integer": it can only give integers; "either": also float, at no cost;
            "same": it moves or selects values, so its inputs and outputs share one grid.
        fixed: the range of its output, where mathematics gives it.
    """

    data: tuple[int, ...]
    output: Literal["integer", "either", "same"]
    weight: int | None = None
    axis: int | None = None
    bias: int | None = None
    fixed: Range | None = None


ALREADY = "it already is integer"

#: An operator, or the reason why this node cannot be integer.
Verdict = Operator | str


def describe(node: ir.Node) -> Verdict | None:
    """What `node` is to quantization; None for an operator that is not known here."""
    function = OPERATORS.get(node.op_type) if node.domain in ("", "ai.onnx") else None
    if function is None:
        return None
    tensors = [w.tensor for w in map(weight_of, node.inputs) if w is not None]
    held = [t.dtype for t in tensors if t.dtype.is_floating_point()]
    for dtype in (*(v.dtype for v in (*node.inputs[:1], *node.outputs[:1]) if v), *held):
        if dtype not in (None, ir.DataType.FLOAT):
            return f"it computes in {dtype.name.lower()}, not in float32"
    if any(v is not None and _dequantized(v) for v in node.inputs):
        return ALREADY
    return function(node)


def _dequantized(value: ir.Value) -> bool:
    producer = value.producer()
    return producer is not None and producer.op_type == "DequantizeLinear"


def _linear(node: ir.Node) -> Verdict:
    """y = x W + b in integers, with W held and one scale for each output channel."""
    if node.op_type == "MatMul" and weight_of(node.inputs[0]) is not None:
        return "its left operand is the constant one"
    op = linear_of(node)
    if isinstance(op, str):
        return op or Operator((0, 1), "either")
    weight = weight_of(op.weight)
    if weight is None:
        return Operator((0, 1), "either") if node.op_type == "MatMul" else COMPUTED
    if op.alpha != 1:
        return "alpha is not 1"
    if op.turned:
        return "it transposes its data"
    bias = None if op.bias is None else 2
    if op.kernel:
        return Operator((0,), "integer", weight=1, axis=op.out_axis, bias=bias)
    if op.bias is not None:
        addend = weight_of(op.bias)
        if addend is None or addend.shape not in ((op.out_channels,), (1, op.out_channels)):
            return "its addend is not a constant of one value per output column"
        if op.beta != 1:
            return "beta is not 1"
    axis = None if op.stacked else op.out_axis
    return Operator((0,), "either", weight=1, axis=axis, bias=bias)


def _both(node: ir.Node) -> Verdict:
    data = tuple(i for i in (0, 1) if weight_of(node.inputs[i]) is None)
    if len(data) == 0:
        return "both operands are constant"
    return Operator((0, 1), "integer")


def _first_own(node: ir.Node) -> Verdict:
    return Operator((0,), "integer")


def _unit(node: ir.Node) -> Verdict:
    return Operator((0,), "integer", fixed=Range(0.0, 255 / 256))


def _hard_sigmoid(node: ir.Node) -> Verdict:
    """clip(a x + b, 0, 1): the grid's own ends clip, see `graphopt.passes.int8.insert`."""
    if attribute(node, "alpha") <= 0 or attribute(node, "beta") <= 0:
        return "its line falls, or meets zero beyond the middle"
    return Operator((0,), "integer", fixed=Range(0.0, 1.0))


def _first_same(node: ir.Node) -> Verdict:
    return Operator((0,), "same")


def _max_pool(node: ir.Node) -> Verdict:
    if len(node.outputs) > 1:
        return "its indices are used"
    return Operator((0,), "same")


def _average_pool(node: ir.Node) -> Verdict:
    return Operator((0,), "integer")  # a mean may be far below the peaks of what it is of


def _concat(node: ir.Node) -> Verdict:
    return Operator(tuple(range(len(node.inputs))), "same")


def _resize(node: ir.Node) -> Verdict:
    if attribute(node, "mode") == "cubic":
        return "cubic interpolation overshoots the range of its input"
    if attribute(node, "coordinate_transformation_mode") == "tf_crop_and_resize":
        return "it extrapolates"
    return Operator((0,), "same")


def _gather(node: ir.Node) -> Verdict:
    if weight_of(node.inputs[0]) is not None:
        return "it reads a table"
    return Operator((0,), "same")


OPERATORS: dict[str, Callable[[ir.Node], Verdict]] = {
    "Add": _both,
    "AveragePool": _average_pool,
    "Concat": _concat,
    "Conv": _linear,
    "DepthToSpace": _first_same,
    "Expand": _first_same,
    "Flatten": _first_same,
    "Gather": _gather,
    "Gemm": _linear,
    "GlobalAveragePool": _average_pool,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _first_own,
    "MatMul": _linear,
    "MaxPool": _max_pool,
    "Mul": _both,
    "Reshape": _first_same,
    "Resize": _resize,
    "Sigmoid": _unit,
    "Slice": _first_same,
    "Softmax": _unit,
    "SpaceToDepth": _first_same,
    "Split": _first_same,
    "Squeeze": _first_same,
    "Transpose": _first_same,
    "Unsqueeze": _first_same,
}

#: Clamps that a grid's own ends can stand for, with their least output.
CLAMPS = frozenset({"Relu", "Clip"})


def clamp_after(node: ir.Node) -> ir.Node | None:
    """The Relu or Clip that alone reads `node`'s output, whose work the rounding then does."""
    value = node.outputs[0]
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return None
    after = uses[0].node
    if after.op_type not in CLAMPS or after.domain not in ("", "ai.onnx") or uses[0].idx != 0:
        return None
    if after.graph is not node.graph:
        return None
    if after.op_type == "Clip":
        low = weight_of(after.inputs[1]) if len(after.inputs) > 1 else None
        if low is None or float(np.asarray(low.array()).reshape(-1)[0]) != 0.0:
            return None
    return after
