"""Blocked channel layout (NCHWc): what ONNX Runtime's optimizer leaves in a model that it saves."""

from __future__ import annotations

import onnx_ir as ir

from graphopt.graph.traverse import all_nodes

__all__ = ["blocked"]

DOMAIN = "com.microsoft.nchwc"


def blocked(model: ir.Model) -> list[str]:
    """A sentence for the user if some of its convolutions are laid out for one processor."""
    count = sum(node.domain == DOMAIN for node in all_nodes(model.graph))
    if not count:
        return []
    nodes = "node is" if count == 1 else "nodes are"
    return [
        f"{count} {nodes} of {DOMAIN}, the layout that ONNX Runtime saves for one kind of "
        "processor: no pass reaches into them. Optimize the model that this one was made from."
    ]
