"""Embedding tables of a few bits: rows are looked up packed, and scaled after.

    Gather(T, i)                  ->  GatherBlockQuantized(Q, i, s, z)
    Gather(T, i) and  x T^t       ->  the same, and MatMulNBits(x, Reshape(Q), s, z)

Where a language model's head is tied to its table, both read the same packed numbers.
"""

from __future__ import annotations

from collections.abc import Collection

import onnx_ir as ir

from graphopt.analyses.linear import Linear, linear_of
from graphopt.graph.constants import VIEWS, weight_of

__all__ = ["LOOKUP", "candidates", "tied", "why_not"]

#: The operator, as targets list it.
LOOKUP = "com.microsoft:GatherBlockQuantized"
#: Smaller tables cost more in scales and calls than they save.
SMALLEST = 1 << 14


def candidates(graph: ir.Graph) -> dict[ir.Node, Linear]:
    """The nodes that look rows up in a held matrix of floats."""
    found = {}
    for node in graph:
        op = linear_of(node) if node.op_type == "Gather" else ""
        if isinstance(op, Linear) and _rows(op) is not None:
            found[node] = op
    return found


def why_not(op: Linear, block: int, others: Collection[ir.Node]) -> str:
    """Why a table stays as it is, or ""; `others` are nodes that read it packed too."""
    root = _rows(op)
    assert root is not None
    if op.out_channels * op.in_channels < SMALLEST or op.out_channels % block:
        return "its table is small" if op.out_channels >= block else "its rows are short"
    if not _readers(root) <= {op.node, *others}:
        return "its table is read elsewhere too"
    return ""


def tied(op: Linear, lookups: Collection[ir.Node], block: int) -> bool:
    """Whether a product reads the rows of a table that is else looked up in alone."""
    held = weight_of(op.weight)
    if held is None or held.perm[op.out_axis] != 0 or op.in_channels % block:
        return False
    return _readers(held.root) <= {op.node, *lookups}


def _rows(op: Linear) -> ir.Value | None:
    """What holds the table that `op` looks rows up in, as they are."""
    held = weight_of(op.weight)
    floats = op.dtype in (ir.DataType.FLOAT, ir.DataType.FLOAT16)
    return held.root if held is not None and held.perm == (0, 1) and floats else None


def _readers(value: ir.Value) -> set[ir.Node | None]:
    """The nodes that read these numbers, also through nodes that move them; None the outside."""
    found: set[ir.Node | None] = {None} if value.is_graph_output() else set()
    for node, _ in value.uses():
        found |= _readers(node.outputs[0]) if node.op_type in VIEWS else {node}
    return found
