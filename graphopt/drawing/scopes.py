"""Module scopes: which module of the traced program a node is of, as its exporter noted."""

from __future__ import annotations

import ast

import onnx_ir as ir

__all__ = ["scope_of"]


def scope_of(node: ir.Node) -> list[str]:
    """The module path that an exporter noted, in metadata or in the node's name."""
    text = node.metadata_props.get("pkg.torch.onnx.name_scopes", "")
    if text.startswith("["):
        try:
            scopes = ast.literal_eval(text)
        except (ValueError, SyntaxError):
            return []
        return str(scopes[-2]).split(".") if len(scopes) > 1 else []
    return [p for p in (node.name or "").split("/")[:-1] if p]
