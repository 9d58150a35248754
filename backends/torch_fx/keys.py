"""The name of a node's operator as the tables have it."""

from __future__ import annotations

import onnx_ir as ir

__all__ = ["key_of"]


def key_of(node: ir.Node) -> str:
    """ "Name" for standard operators, "domain:Name" for others."""
    if node.domain in ("", "ai.onnx"):
        return node.op_type
    return f"{node.domain}:{node.op_type}"
