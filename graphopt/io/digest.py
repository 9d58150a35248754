"""SHA-256 of a model: what recipes and caches tell models apart by."""

from __future__ import annotations

import hashlib
import json

import onnx_ir as ir

from graphopt.graph.traverse import all_graphs
from graphopt.io.tensors import chunks

__all__ = ["digest"]


def digest(model: ir.Model) -> str:
    """SHA-256 of a model: its graph and every weight, streamed."""
    import onnx_ir.serde as serde

    seen = hashlib.sha256()
    for graph in all_graphs(model.graph):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is not None:
                seen.update(f"{value.name}|{tensor.dtype}|{tensor.shape}|".encode())
                for chunk in chunks(tensor):
                    seen.update(chunk)
        for value in (*graph.inputs, *graph.outputs):
            seen.update(f"{value.name}|{value.type}|{value.shape}|".encode())
        for node in graph:
            names = ",".join((v.name or "") if v is not None else "" for v in node.inputs)
            outputs = ",".join(v.name or "" for v in node.outputs)
            seen.update(f"{node.domain}|{node.op_type}|{names}|{outputs}|".encode())
            for attribute in sorted(node.attributes.values(), key=lambda a: a.name):
                if attribute.type is ir.AttributeType.TENSOR:  # whatever it is called
                    tensor = attribute.as_tensor()
                    seen.update(f"{attribute.name}|{tensor.dtype}|{tensor.shape}|".encode())
                    for chunk in chunks(tensor):
                        seen.update(chunk)
                elif attribute.type not in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
                    seen.update(
                        serde.serialize_attribute(attribute).SerializeToString(deterministic=True)
                    )
    seen.update(json.dumps(sorted(model.graph.opset_imports.items())).encode())
    return seen.hexdigest()
