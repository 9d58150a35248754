"""Exporter stack traces in node metadata: where in its author's program each node was written."""

from __future__ import annotations

import re

import onnx_ir as ir

from graphopt import Context
from graphopt.graph.traverse import all_nodes

__all__ = ["drop_traces"]

#: What torch.onnx writes on every node beside names and namespaces: often half of a small file.
TRACES = ("pkg.torch.onnx.stack_trace", "pkg.torch.onnx.fx_node")
#: The lines that its older exporter leaves as a node's documentation: "/a/b.py(12): forward".
_FRAME = re.compile(r"\S.*\.py\(\d+\): \S.*")


def drop_traces(model: ir.Model, ctx: Context) -> int:
    """Stack traces of the program that made the model -> nothing; one edit for all."""
    traced = [n for n in all_nodes(model.graph) if _keys(n) or _is_trace(n.doc_string)]
    if not traced or not ctx.edit("StackTraces", f"{len(traced)} nodes"):
        return 0
    for node in traced:
        for key in _keys(node):
            del node.metadata_props[key]
        if _is_trace(node.doc_string):
            node.doc_string = None
    return 1


def _keys(node: ir.Node) -> list[str]:
    return [k for k in TRACES if k in node.metadata_props]


def _is_trace(text: str | None) -> bool:
    lines = (text or "").strip().splitlines()
    return bool(lines) and all(_FRAME.fullmatch(line.strip()) for line in lines)
