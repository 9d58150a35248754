"""Graph checks: names, order, types, the ONNX checker; and a fingerprint of the structure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.errors import ModelError
from graphopt.execution.caches import quantized_caches
from graphopt.graph.traverse import all_graphs
from graphopt.io.checking import check_structure
from graphopt.io.reading import set_aside
from graphopt.io.signatures import EXPERIMENTS, STANDARD
from graphopt.io.skeleton import Skeleton, skeleton_of

__all__ = ["changed_signature", "check_graph", "fingerprint"]

#: A domain whose operators the checker knows nothing of.
_OPAQUE = "graphopt.opaque"
#: Operators by the opsets in which runtimes have them and the standard does not: opset 21 defined
#: GroupNormalization anew; what ONNX Runtime's optimizer fused, the standard took up later.
_BESIDE = {
    "GroupNormalization": range(18, 21),
    "LayerNormalization": range(17),
    "MeanVarianceNormalization": range(9),
}
#: Operators that ONNX Runtime and its providers register in the standard domain: exporters of
#: language models write the first, TensorRT's plugins end in _TRT.
_RUNTIMES = EXPERIMENTS | {
    "SimplifiedLayerNormalization",
    *("DisentangledAttention_TRT", "EfficientNMS_TRT", "MultilevelCropAndResize_TRT"),
    "PyramidROIAlign_TRT",
}


def check_graph(model: ir.Model | Skeleton, *, full: bool = True) -> None:
    """Raise ModelError unless names, order and types are right and ONNX's checker agrees.

    Large tensors stay where they are, and sparse ones are hidden: the checker sees inputs of the
    same type and shape.

    Args:
        model: the model to check.
        full: infer types and shapes, and compare them with those that the model declares.
    """
    runnable, large = skeleton_of(model).runnable
    check_structure(runnable)
    proto = onnx.ModelProto()
    proto.CopyFrom(runnable)
    outside = {one.name for one in large}
    given = {i.name for i in proto.graph.input}
    kept = [t for t in proto.graph.initializer if t.name not in outside]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)
    shown = [(n, int(t.dtype), [int(d) for d in t.shape.numpy()]) for n, t, _ in large]
    for one in proto.graph.sparse_initializer:  # shapes of what reads them are not inferred
        shown.append((one.values.name, one.values.data_type, list(one.dims)))
    del proto.graph.sparse_initializer[:]
    for name, dtype, shape in shown:
        if name not in given:
            proto.graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, shape))
    _show_unshaped(proto)
    _hide_unknown(proto)
    try:
        onnx.checker.check_model(proto, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise ModelError(lines[0] if lines else "the ONNX checker refuses it") from error


def _show_unshaped(proto: onnx.ModelProto) -> None:
    """Let the checker see inputs and outputs without a declared shape, which it insists on.

    Inputs become results of an operator that nothing is known of; outputs need not be listed.
    """
    inputs = [v for v in proto.graph.input if not _shaped(v)]
    outputs = [v for v in proto.graph.output if _shaped(v)]
    if inputs:
        kept = [v for v in proto.graph.input if _shaped(v)]
        del proto.graph.input[:]
        proto.graph.input.extend(kept)
        given = onnx.helper.make_node("Given", [], [v.name for v in inputs], domain=_OPAQUE)
        proto.graph.node.insert(0, given)
        proto.opset_import.add(domain=_OPAQUE, version=1)
    del proto.graph.output[:]
    proto.graph.output.extend(outputs)


def _hide_unknown(proto: onnx.ModelProto) -> None:
    """Hide operators from the checker that runtimes have and the standard has not, or no more."""
    version = next((e.version for e in proto.opset_import if e.domain in STANDARD), 0)
    hidden = [
        node
        for node in _nodes(proto.graph.node)
        if node.domain in STANDARD
        and (node.op_type in _RUNTIMES or version in _BESIDE.get(node.op_type, ()))
    ]
    for node in hidden:
        node.domain = _OPAQUE
    if hidden and not any(e.domain == _OPAQUE for e in proto.opset_import):
        proto.opset_import.add(domain=_OPAQUE, version=1)


def _nodes(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner.node)


def _shaped(value: onnx.ValueInfoProto) -> bool:
    kind = value.type.WhichOneof("value")
    return kind is not None and (kind != "tensor_type" or value.type.tensor_type.HasField("shape"))


def changed_signature(source: ir.Model, model: ir.Model) -> str:
    """How a model's inputs and outputs differ from the source's in what those declare; "" if not.

    Names, their order, element types, and shapes with their symbols. What the source leaves open
    may be declared. A cache may come to be held in integers.
    """
    caches = quantized_caches(model)
    maps = set_aside(model)
    for kind in ("input", "output"):
        old = [v for v in getattr(source.graph, f"{kind}s") if not v.is_initializer()]
        new = [v for v in getattr(model.graph, f"{kind}s") if not v.is_initializer()]
        if [v.name for v in old] != [v.name for v in new]:
            names = (", ".join(v.name or "?" for v in vs) for vs in (old, new))
            return "{}s {} became {}".format(kind, *names)
        for a, b in zip(old, new, strict=True):
            if b.name in maps and b.type is not None:
                return f"{kind} {a.name}: dictionaries became {b.type}"
            if a.dtype is not None and a.dtype != b.dtype and b.name not in caches:
                return f"{kind} {a.name}: type {a.dtype} became {b.dtype}"
            if a.shape is not None and not _refines(a.shape, b.shape):
                return f"{kind} {a.name}: shape {a.shape} became {b.shape}"
    return ""


def _refines(old: ir.Shape, new: ir.Shape | None) -> bool:
    """Whether every axis that is declared is declared the same."""
    if new is None or len(old) != len(new):
        return False
    return all(
        a == b or (isinstance(a, ir.SymbolicDim) and a.value is None)
        for a, b in zip(old, new, strict=True)
    )


def fingerprint(model: ir.Model) -> int:
    """A hash of the graph's structure, tensors by identity: equal if nothing was touched."""
    parts: list[Any] = [tuple(model.graph.opset_imports.items())]
    for graph in all_graphs(model.graph):
        for node in graph:
            attributes = tuple(
                (a.name, id(a.value) if a.type in _BULKY else str(a.value))
                for a in node.attributes.values()
            )
            names = tuple(v.name if v is not None else None for v in node.inputs)
            parts.append((node.domain, node.op_type, names, len(node.outputs), attributes))
        parts += [(n, id(v.const_value)) for n, v in graph.initializers.items()]
        parts += [
            tuple((v.name, v.dtype, str(v.shape)) for v in values)
            for values in (graph.inputs, graph.outputs)
        ]
    return hash(tuple(parts))


_BULKY = (ir.AttributeType.TENSOR, ir.AttributeType.GRAPH, ir.AttributeType.SPARSE_TENSOR)
