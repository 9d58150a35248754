"""Attributes as every opset writes them: defaults left out, breaking versions told apart."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt.graph.attributes import default_attribute

__all__ = ["MOVED", "attributes_of", "hashable", "version_of"]

#: Where a newer version of an operator means something else by the same words.
BREAKS = {
    "Hardmax": (13,),
    "LogSoftmax": (13,),
    "Resize": (11,),
    "Softmax": (13,),
    "BatchNormalization": (7, 14),
    "Dropout": (7, 12),
}
#: Attributes that newer versions take as inputs: by operator, (attribute, position).
MOVED: dict[str, tuple[tuple[str, int], ...]] = {
    **{f"Reduce{k}": (("axes", 1),) for k in ("L1", "L2", "LogSum", "LogSumExp", "Max", "Mean")},
    **{f"Reduce{k}": (("axes", 1),) for k in ("Min", "Prod", "Sum", "SumSquare")},
    "Squeeze": (("axes", 1),),
    "Unsqueeze": (("axes", 1),),
    "Split": (("split", 1),),
    "Slice": (("starts", 1), ("ends", 2), ("axes", 3)),
    "Clip": (("min", 1), ("max", 2)),
    "Pad": (("pads", 1), ("value", 2)),
    "Reshape": (("shape", 1),),
}


def attributes_of(node: ir.Node, opset: int) -> dict[str, Any]:
    """Attributes that say something: graphs and defaults left out."""
    found: dict[str, Any] = {}
    for a in node.attributes.values():
        if a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            continue
        value = a.value
        if isinstance(value, (list, tuple)):
            value = tuple(value)
        default = default_attribute(node.domain, node.op_type, a.name, opset or None)
        if isinstance(default, list):
            default = tuple(default)
        if a.type is not ir.AttributeType.TENSOR and value == default:
            continue
        found[a.name] = value
    return found


def version_of(op: str, opset: int) -> int:
    """Which of the meanings that an operator of the standard has had."""
    return sum(v <= opset for v in BREAKS.get(op, ()))


def hashable(value: Any) -> Any:
    """An attribute's value as part of a key."""
    if isinstance(value, (int, float, str, bytes, tuple)):
        return value
    if isinstance(value, ir.TensorProtocol):
        text = value.dtype is ir.DataType.STRING
        elements = repr(value.numpy().tolist()) if text else value.tobytes()
        return (tuple(value.shape.numpy()), value.dtype, elements)
    if isinstance(value, ir.TypeAndShape):
        return (repr(value.type), repr(value.shape))
    return tuple(map(hashable, value)) if isinstance(value, (list, tuple, np.ndarray)) else value
