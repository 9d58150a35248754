"""QNN: Qualcomm's NPUs (HTP) through ONNX Runtime's provider, from data: nothing here runs it.

The HTP computes integers: Q/DQ around every operator, unsigned activations of 8 or 16 bits, shapes
fixed. Operators are those that the provider has builders for (onnxruntime, qnn/builder).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from graphopt.backends.devices.limits import (
    Limit,
    dynamic,
    rank_above,
    unequal,
)
from graphopt.backends.devices.provider import ProviderDevice

from graphopt.analyses.shapes.facts import Shapes
from graphopt.deploy.manifest import Manifest
from graphopt.graph.attributes import attribute
from graphopt.graph.constants import constant_value
from graphopt.target import Int8Scheme, Target

__all__ = ["BACKEND", "LIMITS", "OPERATORS", "Qnn"]

OPERATORS = frozenset(
    {
        *("Abs", "Add", "And", "ArgMax", "ArgMin", "Asin", "Atan", "AveragePool"),
        *("BatchNormalization", "Cast", "Ceil", "Clip", "Concat", "Conv", "ConvTranspose", "Cos"),
        *("CumSum", "DepthToSpace", "DequantizeLinear", "Div", "Einsum", "Elu", "Equal", "Exp"),
        *("Expand", "Flatten", "Floor", "Gather", "GatherElements", "GatherND", "Gelu", "Gemm"),
        *("GlobalAveragePool", "GlobalMaxPool", "Greater", "GreaterOrEqual", "GridSample"),
        *("HardSigmoid", "HardSwish", "InstanceNormalization", "LRN", "LSTM"),
        *("LayerNormalization", "LeakyRelu", "Less", "LessOrEqual", "Log", "LogSoftmax"),
        *("LpNormalization", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mod", "Mul", "Neg", "Not"),
        *("Or", "PRelu", "Pad", "Pow", "QuantizeLinear", "RMSNormalization", "Reciprocal"),
        *("ReduceL2", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu"),
        *("Reshape", "Resize", "Round", "ScatterElements", "ScatterND", "Sigmoid", "Sign", "Sin"),
        *("Slice", "Softmax", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tanh"),
        *("ThresholdedRelu", "Tile", "TopK", "Transpose", "Unsqueeze", "Where"),
        # integers of 16 bits, before opset 21
        *("com.microsoft:DequantizeLinear", "com.microsoft:QuantizeLinear"),
    }
)

#: The unsigned types of 8 and 16 bits.
UNSIGNED = (ir.DataType.UINT8, ir.DataType.UINT16)
_GRIDS = ("QuantizeLinear", "DequantizeLinear")
_ACTIVATIONS, _ACTIVATED = ("Clip", "Relu"), ("Add", "Conv", "Gemm", "MatMul")

INT8 = Int8Scheme(
    activation="uint8",
    weight="uint8",
    per_channel=False,
    everywhere=True,
    wide="uint16",
    operators=OPERATORS - {"Cast", "LSTM", "QuantizeLinear", "DequantizeLinear"},
)


def computes_floats(node: ir.Node, shapes: Shapes) -> bool:
    """Whether a float that the node reads does not come from Q/DQ, or one it makes goes elsewhere.

    An activation may stand between an operator and its QuantizeLinear: it is that one's range.
    """
    if node.op_type in _GRIDS:
        return False
    for value in node.inputs:
        if value is None or shapes.dtype(value) is not ir.DataType.FLOAT:
            continue
        source = value.producer()
        before = "" if source is None else source.op_type
        followed = node.op_type in _ACTIVATIONS and before in _ACTIVATED
        if constant_value(value) is None and before not in _GRIDS and not followed:
            return True
    after = (*_GRIDS, *(_ACTIVATIONS if node.op_type in _ACTIVATED else ()))
    made = [v for v in node.outputs if shapes.dtype(v) is ir.DataType.FLOAT]
    return any(
        v.is_graph_output() or any(u.op_type not in after for u, _ in v.uses()) for v in made
    )


def float_weights(node: ir.Node, shapes: Shapes) -> bool:
    """Whether a constant that it multiplies is not quantized."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    return value is not None and constant_value(value) is not None


def two_widths(node: ir.Node, shapes: Shapes) -> bool:
    """Whether activations that it reads and those that it makes have different types."""
    found: set[ir.DataType | None] = set()
    for value in node.inputs:
        source = None if value is None else value.producer()
        if source is None or source.op_type != "DequantizeLinear":
            continue
        assert source.inputs[0] is not None
        if constant_value(source.inputs[0]) is None:
            found.add(shapes.dtype(source.inputs[0]))
    users = [u for v in node.outputs for u, _ in v.uses()]
    users += [u for n in users if n.op_type in _ACTIVATIONS for u, _ in n.outputs[0].uses()]
    found |= {shapes.dtype(n.outputs[0]) for n in users if n.op_type == "QuantizeLinear"}
    return node.op_type not in _GRIDS and len(found) > 1


def gathers_negative(node: ir.Node, shapes: Shapes) -> bool:
    """Whether constant indices count from the end."""
    tensor = constant_value(node.inputs[1])
    return tensor is not None and bool((np.asarray(tensor.numpy()) < 0).any())


def signed(node: ir.Node, shapes: Shapes) -> bool:
    """Whether an operand was quantized to a signed type."""
    for value in node.inputs[:2]:
        source = None if value is None else value.producer()
        if source is not None and source.op_type == "DequantizeLinear":
            assert source.inputs[0] is not None
            if shapes.dtype(source.inputs[0]) not in UNSIGNED:
                return True
    return False


def signed_16(node: ir.Node, shapes: Shapes) -> bool:
    """Whether data becomes int16."""
    return shapes.dtype(node.outputs[0]) is ir.DataType.INT16


def blocked(node: ir.Node, shapes: Shapes) -> bool:
    """Whether scales are given for blocks."""
    return bool(attribute(node, "block_size", 0))


LIMITS = (
    Limit("its shape is dynamic: the HTP wants fixed ones", dynamic),
    Limit("it computes in float: the HTP wants Q/DQ around it (int8)", computes_floats),
    Limit(
        "its weights are floats: the HTP wants them quantized",
        float_weights,
        frozenset({"Conv", "ConvTranspose", "Gemm", "LSTM", "MatMul"}),
    ),
    Limit("it reads 8 bits and makes 16, or the other way: the HTP wants one width", two_widths),
    Limit("it has more than five axes", rank_above(5)),
    Limit("its indices count from the end", gathers_negative, frozenset({"Gather"})),
    Limit("only the second norm is taken", unequal("p", 2), frozenset({"LpNormalization"})),
    Limit(
        "its operands are signed: the HTP multiplies uint8 and uint16",
        signed,
        frozenset({"MatMul"}),
    ),
    Limit(
        "it rounds to int16: activations of the HTP are uint8 or uint16",
        signed_16,
        frozenset({"QuantizeLinear", "com.microsoft:QuantizeLinear"}),
    ),
    Limit("its scales are given for blocks", blocked, frozenset({"DequantizeLinear"})),
)


@dataclasses.dataclass(frozen=True)
class Qnn(ProviderDevice):
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "qnn"
    title: ClassVar[str] = "QNN"
    operators: ClassVar[frozenset[str]] = OPERATORS
    limits: ClassVar[tuple[Limit, ...]] = LIMITS

    def targets(self) -> Sequence[str]:
        """One: the HTP."""
        return (self.name,)

    def target(self, name: str) -> Target:
        """Its data."""
        return Target(
            name,
            backend=self.name,
            opset=20,
            channel_multiple=32,
            precisions=("float16", "int8"),
            int8=INT8,
            deploys=False,
        )

    def how(self, path: Path, target: Target) -> Manifest:
        """As every model for the HTP."""
        options = {"htp_performance_mode": "burst", "htp_graph_finalization_optimization_mode": "3"}
        return Manifest(
            target.name,
            provider="QNNExecutionProvider",
            provider_options=options,
            extra="qnn",
        )


BACKEND = Qnn()
