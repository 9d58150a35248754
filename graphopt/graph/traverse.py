"""Traversing: the nodes and graphs inside a graph, subgraphs of control flow included."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

__all__ = [
    "RECURRENT",
    "all_graphs",
    "all_nodes",
    "inner_nodes",
    "passed_on",
    "read_once",
    "subgraphs",
]

#: Standard operators that hold graphs; operators of other domains are looked at one by one.
HOLDERS = frozenset(
    (
        "If",
        "Loop",
        "Scan",
        "SequenceMap",
        "BeamSearch",
        "GreedySearch",
        "Sampling",
        "WhisperBeamSearch",
    )
)
STANDARD = frozenset(("", "ai.onnx", "ai.onnx.ml", "com.microsoft"))
#: Standard operators that go through a sequence step by step.
RECURRENT = frozenset({"GRU", "LSTM", "RNN"})


def subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    """The graphs among a node's attributes."""
    if node.op_type not in HOLDERS and node.domain in STANDARD:
        return
    for attribute in node.attributes.values():
        if attribute.type is ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type is ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def all_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """Every node in order, each followed by those of its subgraphs."""
    for node in graph:
        yield node
        if node.op_type in HOLDERS or node.domain not in STANDARD:
            for inner in subgraphs(node):
                yield from all_nodes(inner)


def inner_nodes(graph: ir.Graph) -> Iterator[ir.Node]:
    """The nodes of branches and bodies, without those of the graph itself."""
    for node in graph:
        for inner in subgraphs(node):
            yield from all_nodes(inner)


def all_graphs(graph: ir.Graph) -> list[ir.Graph]:
    """The graph and every subgraph, outer before inner."""
    found = [graph]
    for node in graph:
        if node.op_type in HOLDERS or node.domain not in STANDARD:
            for inner in subgraphs(node):
                found += all_graphs(inner)
    return found


def passed_on(value: ir.Value) -> ir.Value:
    """What reaches `value` through Identity alone."""
    while (node := value.producer()) is not None and node.op_type == "Identity":
        source = node.inputs[0]
        assert source is not None
        value = source
    return value


def read_once(value: ir.Value) -> bool:
    """Whether one node alone reads `value`, once, and no caller does."""
    return len(value.uses()) == 1 and not value.is_graph_output()
