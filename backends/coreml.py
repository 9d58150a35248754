"""Core ML: Apple's Neural Engine and GPUs through ONNX Runtime's provider, from data: nothing here
runs it.

ML Programs compute in float16 and float32; fixed shapes run best. Operators and their limits are
those that onnxruntime documents for its provider (coreml_supported_mlprogram_ops).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import onnx_ir as ir
from graphopt.backends.devices.limits import (
    Broken,
    Limit,
    constant_inputs,
    dynamic,
    rank_above,
    unequal,
)
from graphopt.backends.devices.provider import ProviderDevice

from graphopt.analyses.shapes.facts import Shapes
from graphopt.deploy.manifest import Manifest
from graphopt.target import Target

__all__ = ["BACKEND", "LIMITS", "OPERATORS", "CoreMl"]

OPERATORS = frozenset(
    {
        *("Add", "And", "ArgMax", "AveragePool", "Cast", "Ceil", "Clip", "Concat", "Conv"),
        *("ConvTranspose", "Cos", "DepthToSpace", "Div", "Elu", "Erf", "Exp", "GatherND", "Gelu"),
        *("Gemm", "GlobalAveragePool", "GlobalMaxPool", "GridSample", "GroupNormalization"),
        *("HardSigmoid", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu"),
        *("MatMul", "Max", "MaxPool", "Mul", "PRelu", "Pow", "Reciprocal", "ReduceMax"),
        *("ReduceMean", "ReduceSum", "Relu", "Reshape", "Resize", "Round", "Shape", "Sigmoid"),
        *("Sin", "Slice", "Softmax", "Softplus", "Split", "Sqrt", "Squeeze", "Sub", "Tanh"),
        *("Tile", "Transpose"),
    }
)
_POOLS = frozenset({"AveragePool", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"})


def over(*spatial: int) -> Broken:
    """Whether the node's images have another number of axes than these, beside batch, channel."""

    def broken(node: ir.Node, shapes: Shapes) -> bool:
        rank = None if node.inputs[0] is None else shapes.rank(node.inputs[0])
        return rank is not None and rank - 2 not in spatial

    return broken


def not_of(dtype: ir.DataType) -> Broken:
    """Whether an operand has another type."""

    def broken(node: ir.Node, shapes: Shapes) -> bool:
        return any(v is not None and shapes.dtype(v) not in (None, dtype) for v in node.inputs)

    return broken


def padded_output(node: ir.Node, shapes: Shapes) -> bool:
    """Whether a transposed convolution asks for a shape or padding of its output."""
    given = node.attributes
    return "output_shape" in given or any(given.get_ints("output_padding", ()))


LIMITS = (
    Limit("its shape is dynamic: the Neural Engine wants fixed ones", dynamic),
    Limit("it has more than five axes", rank_above(5)),
    Limit("only one and two axes are convolved", over(1, 2), frozenset({"Conv"})),
    Limit("only two axes are pooled", over(2), _POOLS),
    Limit("its bias is computed at run time", constant_inputs(2), frozenset({"Conv"})),
    Limit(
        "its weights are computed at run time", constant_inputs(1, 2), frozenset({"ConvTranspose"})
    ),
    Limit(
        "it names the shape or padding of its output", padded_output, frozenset({"ConvTranspose"})
    ),
    Limit(
        "its padding is SAME: give it in numbers",
        unequal("auto_pad", "NOTSET", "VALID"),
        frozenset({"ConvTranspose"}),
    ),
    Limit("its second factor is computed at run time", constant_inputs(1), frozenset({"Gemm"})),
    Limit("it has batch axes", unequal("batch_dims", 0), frozenset({"GatherND"})),
    Limit("its limits are computed at run time", constant_inputs(1, 2, 3, 4), frozenset({"Slice"})),
    Limit("its sizes are computed at run time", constant_inputs(1), frozenset({"Split"})),
    Limit("both operands must be float32", not_of(ir.DataType.FLOAT), frozenset({"Pow"})),
    Limit("both operands must be booleans", not_of(ir.DataType.BOOL), frozenset({"And"})),
)


@dataclasses.dataclass(frozen=True)
class CoreMl(ProviderDevice):
    """The backend object; see `graphopt.backend.Backend` for its methods."""

    name: str = "coreml"
    title: ClassVar[str] = "Core ML"
    operators: ClassVar[frozenset[str]] = OPERATORS
    limits: ClassVar[tuple[Limit, ...]] = LIMITS

    def targets(self) -> Sequence[str]:
        """One: ML Programs on whatever the device has."""
        return (self.name,)

    def target(self, name: str) -> Target:
        """Its data: the provider takes no Q/DQ."""
        return Target(
            name,
            backend=self.name,
            opset=20,
            precisions=("float32", "float16"),
            int8=None,
            no_int8="the provider takes no Q/DQ",
            deploys=False,
        )

    def how(self, path: Path, target: Target) -> Manifest:
        """As every model for Core ML."""
        options = {"ModelFormat": "MLProgram", "MLComputeUnits": "ALL"}
        options |= {"RequireStaticInputShapes": "1"}
        return Manifest(
            target.name,
            provider="CoreMLExecutionProvider",
            provider_options=options,
            extra="coreml",
        )


BACKEND = CoreMl()
