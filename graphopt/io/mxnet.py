"""Faults of MXNet's ONNX exporter, set right: the models that it left behind are of opset 7 and 8.

MXNet is retired and its exporter with it (faces by InsightFace, GluonCV). It wrote spatial=0 into
BatchNormalization, whose statistics are of channels all the same, and slopes of PRelu as [C] where
they must broadcast to [N, C, H, W].
"""

from __future__ import annotations

import onnx

__all__ = ["mend_mxnet"]

#: The newest opset that it wrote.
NEWEST = 8
#: Operators whose output has the channels of their first input.
CARRIES = frozenset(
    """Add BatchNormalization Clip Dropout Identity LeakyRelu MaxPool AveragePool Mul PRelu Relu
    Sigmoid Sum Tanh""".split()  # noqa: SIM905
)


def mend_mxnet(proto: onnx.ModelProto) -> list[str]:
    """Set right what it wrote, in place; a sentence on each kind of change."""
    versions = [o.version for o in proto.opset_import if o.domain in ("", "ai.onnx")]
    if not versions or versions[0] > NEWEST:
        return []
    graph = proto.graph
    weights = {t.name: t for t in graph.initializer}
    declared = {v.name: v for v in graph.input}
    makers = {o: n for n in graph.node for o in n.output}
    spatial = [n for n in graph.node if _says_spatial(n, weights)]
    if not spatial:  # nobody else writes that, and slopes of the last axis may be meant
        return []
    for node in spatial:
        kept = [a for a in node.attribute if a.name != "spatial"]
        del node.attribute[:]
        node.attribute.extend(kept)
    slopes = 0
    for node in graph.node:
        slope = weights.get(node.input[1]) if node.op_type == "PRelu" else None
        shape = _channels(node.input[0], makers, weights) if slope is not None else []
        if slope is None or len(shape) < 2 or list(slope.dims) != shape[:1]:
            continue
        slope.dims[:] = shape
        if slope.name in declared:
            dims = declared[slope.name].type.tensor_type.shape.dim
            del dims[:]
            dims.extend(onnx.TensorShapeProto.Dimension(dim_value=d) for d in shape)
        slopes += 1
    notes = [f"{len(spatial)} BatchNormalization said spatial=0, with statistics of channels."]
    if slopes:
        notes.append(f"{slopes} slopes of PRelu got the axes that channels broadcast along.")
    return notes


def _says_spatial(node: onnx.NodeProto, weights: dict[str, onnx.TensorProto]) -> bool:
    """Whether it claims statistics of single elements, and has those of channels."""
    if node.op_type != "BatchNormalization" or len(node.input) < 2:
        return False
    scale = weights.get(node.input[1])
    claims = any(a.name == "spatial" and not a.i for a in node.attribute)
    return claims and scale is not None and len(scale.dims) == 1


def _channels(
    name: str, makers: dict[str, onnx.NodeProto], weights: dict[str, onnx.TensorProto]
) -> list[int]:
    """[C, 1, ...] as a value's channels broadcast, from the convolution that it comes from."""
    while (node := makers.get(name)) is not None:
        if node.op_type == "Conv" and (kernel := weights.get(node.input[1])) is not None:
            return [kernel.dims[0], *[1] * (len(kernel.dims) - 2)]
        if node.op_type not in CARRIES:
            break
        name = node.input[0]
    return []
