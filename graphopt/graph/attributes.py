"""Node attributes: their values, and the defaults that the ONNX standard gives them."""

from __future__ import annotations

from functools import cache
from typing import Any

import onnx_ir as ir

__all__ = ["attribute", "default_attribute"]


def attribute(node: ir.Node, name: str, default: Any = None, *, opset: int | None = None) -> Any:
    """The value of an attribute; left out, what the standard says at the node's opset.

    Args:
        node: a node of any domain.
        name: the attribute.
        default: for attributes without a value in the standard (of other domains, or computed).
        opset: version of the node's domain, for nodes of a subgraph, whose graph does not say;
            without it they are taken for nodes of the newest.
    """
    have = node.attributes.get(name)
    if have is not None:
        return have.value
    known = default_attribute(node.domain, node.op_type, name, _opset(node) or opset)
    return default if known is None else known


@cache
def default_attribute(domain: str, op_type: str, name: str, opset: int | None = None) -> Any:
    """The value an attribute has when it is left out, or None.

    Args:
        domain: of the operator.
        op_type: its name.
        name: the attribute.
        opset: version of the domain; None is the newest that the installed onnx knows.
    """
    import onnx

    versions = {} if opset is None else {"max_inclusive_version": opset}
    try:
        schema = onnx.defs.get_schema(
            op_type, domain="" if domain == "ai.onnx" else domain, **versions
        )
    except onnx.defs.SchemaError:
        return None
    declared = schema.attributes.get(name)
    if declared is None or not declared.default_value.name:
        return None
    value = onnx.helper.get_attribute_value(declared.default_value)
    return value.decode() if isinstance(value, bytes) else value


def _opset(node: ir.Node) -> int | None:
    """The version of the node's domain, where its graph says so (a subgraph does not)."""
    graph = node.graph
    if graph is None:
        return None
    imports = graph.opset_imports
    own = imports.get(node.domain)
    return imports.get("ai.onnx" if node.domain == "" else "") if own is None else own
