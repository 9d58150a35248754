"""ONNX's own shape inference for one node, with symbolic sizes passed through it as names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import onnx
import onnx_ir as ir

from graphopt.analyses.shapes.facts import UNKNOWN, Fact, Shapes
from graphopt.analyses.shapes.symbolic import Dim

__all__ = ["by_onnx"]

#: Operators whose inference in ONNX contradicts their specification: STFT forgets that `onesided`
#: is 1 when it is left out (onnx 1.23).
WRONG = frozenset([("", "STFT")])


def by_onnx(node: ir.Node, domain: str, ins: Sequence[Fact], shapes: Shapes) -> list[Fact] | None:
    """ONNX's own inference for one node, symbolic sizes passing as names; None: not its own."""
    version = shapes.opsets.get(node.domain, shapes.opsets.get(domain, 0))
    schema = _schema(domain, node.op_type, version)
    if schema is None:
        return None
    if (domain, node.op_type) in WRONG or any(_has_graph(a) for a in node.attributes.values()):
        return []
    names: dict[str, Dim] = {}
    proto = onnx.NodeProto(op_type=node.op_type, domain=domain)
    types: dict[str, onnx.TypeProto] = {}
    data: dict[str, onnx.TensorProto] = {}
    for k, (value, fact) in enumerate(zip(node.inputs, ins, strict=True)):
        proto.input.append(f"i{k}" if value is not None else "")
        kind = _type_proto(fact, names) if value is not None else None
        if kind is None and value is not None:
            return []
        if kind is not None:
            types[f"i{k}"] = kind
        if fact.concrete is not None and fact.concrete.dtype.kind in "fiub":
            data[f"i{k}"] = onnx.numpy_helper.from_array(fact.concrete)
    proto.output.extend(f"o{k}" if v.name else "" for k, v in enumerate(node.outputs))
    proto.attribute.extend(ir.serde.serialize_attribute(a) for a in node.attributes.values())
    try:
        found = onnx.shape_inference.infer_node_outputs(
            schema, proto, types, data, opset_imports=_imports(domain, version)
        )
    except (onnx.shape_inference.InferenceError, onnx.checker.ValidationError):
        return []
    return [_from_proto(found.get(f"o{k}"), names, shapes) for k in range(len(node.outputs))]


@cache
def _schema(domain: str, op_type: str, version: int) -> Any:
    try:
        return onnx.defs.get_schema(op_type, version or onnx.defs.onnx_opset_version(), domain)
    except onnx.defs.SchemaError:
        return None


@cache
def _imports(domain: str, version: int) -> list[onnx.OperatorSetIdProto]:
    return [onnx.helper.make_opsetid(domain, version)]


def _has_graph(a: ir.Attr) -> bool:
    return a.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS)


def _type_proto(fact: Fact, names: dict[str, Dim]) -> onnx.TypeProto | None:
    if fact.type is not None:
        return ir.serde.serialize_type(fact.type)
    if fact.dtype is None:
        return None
    kind = onnx.TypeProto()
    kind.tensor_type.elem_type = fact.dtype.value
    if fact.dims is not None:
        kind.tensor_type.shape.SetInParent()
        for d in fact.dims:
            if isinstance(d, int):
                kind.tensor_type.shape.dim.add().dim_value = d
            else:
                token = f"d{len(names)}"
                token = next((t for t, e in names.items() if e == d), token)
                names[token] = d
                kind.tensor_type.shape.dim.add().dim_param = token
    return kind


def _from_proto(kind: onnx.TypeProto | None, names: dict[str, Dim], shapes: Shapes) -> Fact:
    if kind is None or kind.WhichOneof("value") is None:
        return UNKNOWN
    if kind.WhichOneof("value") != "tensor_type":
        try:
            return Fact(type=ir.serde.deserialize_type_proto_for_type(kind))
        except ir.serde.SerdeError:  # maps, which onnx_ir lacks
            return UNKNOWN
    tensor = kind.tensor_type
    dtype = ir.DataType(tensor.elem_type) if tensor.elem_type else None
    if not tensor.HasField("shape"):
        return Fact(dtype)
    dims: list[Dim] = []
    for d in tensor.shape.dim:
        if d.HasField("dim_value"):
            dims.append(int(d.dim_value))
        else:
            dims.append(names.get(d.dim_param) or shapes.fresh())
    return Fact(dtype, tuple(dims))
